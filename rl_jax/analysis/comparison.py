"""Tables and curves of compared variants, from their saved metrics: `python -m rl_jax.analysis.comparison DIR`.

Every number is an interquartile mean over seeds with a 95 % bootstrap interval (arXiv:2108.13264).
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rl_jax.analysis.figures import pyplot
from rl_jax.ops.statistics import bootstrap_interval, interquartile_mean, probability_of_improvement
from rl_jax.runs.directory import read_config
from rl_jax.train import variants

Results = Mapping[str, Mapping[str, np.ndarray]]

# (title, metric, digits): the last value of evaluations, the mean over the last tenth of training.
COLUMNS = (
  ("reward", "evaluation/reward", 3),
  ("exact match", "evaluation/solved", 3),
  ("length", "evaluation/length", 2),
  ("entropy [nats]", "evaluation/entropy", 3),
  ("KL to the start [nats]", "evaluation/kl_ref", 3),
  ("clipped low", "train/clip_low", 3),
  ("clipped high", "train/clip_high", 3),
  ("gradient norm", "train/grad_norm", 2),
)


def final(values: np.ndarray, metric: str) -> np.ndarray:
  """Returns one number a seed from `[seeds, time]`: the last evaluation, or the mean of the last tenth of training.

  >>> print(final(np.arange(20.0)[None], "train/loss"), final(np.arange(20.0)[None], "evaluation/reward"))
  [18.5] [19.]
  """
  if metric.startswith("evaluation/"):
    return values[:, -1]
  return values[:, -max(values.shape[1] // 10, 1) :].mean(axis=1)


def cell(values: np.ndarray, digits: int) -> str:
  """Formats the interquartile mean of one number a seed, with its interval.

  >>> cell(np.array([1.0, 1.0, 1.0, 1.0]), 2)
  '1.00 (1.00 to 1.00)'
  """
  low, high = bootstrap_interval(values)
  return f"{interquartile_mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(results: Results) -> str:
  """Returns a Markdown table, a variant a row.

  >>> print(table({"grpo": {"evaluation/reward": np.ones((4, 2))}}))
  | variant | reward |
  |---|---|
  | grpo | 1.000 (1.000 to 1.000) |
  """
  columns = [column for column in COLUMNS if any(column[1] in metrics for metrics in results.values())]
  rows = [["variant", *(title for title, _, _ in columns)], ["---"] * (1 + len(columns))]
  for name, metrics in results.items():
    found = [(metrics.get(metric), metric, digits) for _, metric, digits in columns]
    rows.append([name, *("" if values is None else cell(final(values, m), d) for values, m, d in found)])
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  return "\n".join([lines[0], lines[1].replace(" ", ""), *lines[2:]])


def improvements(results: Results, metric: str = "evaluation/reward") -> str:
  """Returns a Markdown table of the probabilities that a row's run ends with a higher value than a column's.

  >>> runs = {"a": {"evaluation/reward": np.array([[2.0], [3.0]])}, "b": {"evaluation/reward": np.zeros((2, 1))}}
  >>> print(improvements(runs))
  | P(row > column) in evaluation/reward | a | b |
  |---|---|---|
  | a | | 1.00 (1.00 to 1.00) |
  | b | 0.00 (0.00 to 0.00) | |
  """
  return _pairs(
    f"P(row > column) in {metric}",
    {name: final(metrics[metric], metric) for name, metrics in results.items()},
    lambda x, y: "{:.2f} ({:.2f} to {:.2f})".format(*probability_of_improvement(x, y)),
  )


def differences(results: Results, metric: str = "evaluation/reward") -> str:
  """Returns a Markdown table of how much higher a row's runs end than a column's, seed by seed.

  Runs of one seed start from the same parameters, so their difference is free of what the start contributes.

  >>> reward = np.array([[2.0], [3.0]])
  >>> print(differences({"a": {"evaluation/reward": reward}, "b": {"evaluation/reward": reward - 1}}))
  | row - column in evaluation/reward, paired by seed | a | b |
  |---|---|---|
  | a | | 1.000 (1.000 to 1.000) |
  | b | -1.000 (-1.000 to -1.000) | |
  """
  return _pairs(
    f"row - column in {metric}, paired by seed",
    {name: final(metrics[metric], metric) for name, metrics in results.items()},
    lambda x, y: cell(x - y, 3),
  )


def _pairs(title: str, ends: Mapping[str, np.ndarray], compare: Callable[[np.ndarray, np.ndarray], str]) -> str:
  """A Markdown table of each variant against each other one."""
  lines = [f"| {title} | " + " | ".join(ends) + " |", "|" + "---|" * (1 + len(ends))]
  for name, x in ends.items():
    cells = ["" if other == name else " " + compare(x, y) for other, y in ends.items()]
    lines.append(f"| {name} |" + " |".join(cells) + " |")
  return "\n".join(lines)


def draw(results: Results, path: Path, *, steps: int, title: str = "") -> None:
  """Draws curves over rollouts: interquartile means, and the intervals as bands.

  Args:
    results: Results of each variant.
    path: Path of the PNG.
    steps: Rollouts of a run.
    title: Title above all panels, such as what `describe` says.

  Raises:
    ValueError: If matplotlib is not installed.
  """
  plt = pyplot()
  panels = [column for column in COLUMNS if any(column[1] in metrics for metrics in results.values())]
  height = -(-len(panels) // 2)
  figure, axes = plt.subplots(height, 2, figsize=(12, 3.2 * height), squeeze=False)
  for axis, (name_of_panel, metric, _) in zip(axes.flat, panels, strict=False):
    for name, metrics in results.items():
      values = metrics.get(metric)
      if values is None:
        continue
      values = values if metric.startswith("evaluation/") else _smoothed(values)
      time = np.linspace(0 if metric.startswith("evaluation/") else steps / values.shape[1], steps, values.shape[1])
      low, high = bootstrap_interval(values.T, resamples=500)
      (line,) = axis.plot(time, interquartile_mean(values.T), label=name, linewidth=1.5)
      axis.fill_between(time, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.set_title(name_of_panel, fontsize=10)
    axis.set_xlabel("rollouts", fontsize=8)
    axis.grid(alpha=0.3)
  for axis in list(axes.flat)[len(panels) :]:
    axis.set_visible(False)
  handles, labels = axes.flat[0].get_legend_handles_labels()
  figure.suptitle(title, fontsize=10)
  figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.975), ncols=min(len(labels), 6), fontsize=9)
  figure.tight_layout(rect=(0, 0, 1, 0.95))
  figure.savefig(path, dpi=110)
  plt.close(figure)


def _smoothed(values: np.ndarray, points: int = 40) -> np.ndarray:
  """Means over equal stretches of time, at most `points` of them."""
  width = max(values.shape[1] // points, 1)
  return values[:, : values.shape[1] // width * width].reshape(values.shape[0], -1, width).mean(axis=2)


def describe(config: Mapping[str, Any], seeds: int, steps: int) -> str:
  """Returns in a line what is compared, and what its numbers are.

  >>> describe({"task": "addition", "task_options": ["digits=3"]}, 8, 400)
  'addition digits=3, 8 seeds, 400 rollouts: interquartile means over seeds (95 % bootstrap intervals)'
  """
  task = " ".join([str(config.get("task", "")), *config.get("task_options", ())]).strip()
  sizes = ", ".join(filter(None, [task, f"{seeds} seeds", f"{steps} rollouts"]))
  return f"{sizes}: interquartile means over seeds (95 % bootstrap intervals)"


def show(folder: Path) -> None:
  """Writes `comparison.md` and `curves.png` into a folder of results, and prints the first.

  Raises:
    ValueError: If there are no results.
  """
  results = variants.load(folder)
  seeds, steps = next(iter(results.values()))["train/reward"].shape
  title = describe(read_config(folder), seeds, steps)
  last = "Of the reward of the last evaluation"
  text = (
    f"{title}. Clipping and gradient norms are means over the last tenth of training, all else is of the last "
    f"evaluation.\n\n{table(results)}\n\n{last}:\n\n{improvements(results)}\n\n{differences(results)}\n"
  )
  (folder / "comparison.md").write_text(text, encoding="utf-8")
  print(text)
  draw(results, folder / "curves.png", steps=steps, title=title)
  print(f"{folder / 'comparison.md'}\n{folder / 'curves.png'}")


if __name__ == "__main__":
  if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python -m rl_jax.analysis.comparison DIR")
  try:
    show(Path(sys.argv[1]))
  except ValueError as error:
    sys.exit(f"error: {error}")
