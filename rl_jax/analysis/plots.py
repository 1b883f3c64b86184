"""Curves of a run from its metrics.jsonl: `python -m rl_jax.analysis.plots RUN_DIR`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_jax.analysis.figures import pyplot
from rl_jax.runs.directory import read_lines

# (title, metrics drawn in one panel)
PANELS = (
  ("negative log-likelihood [nats]", ("nll",)),
  ("accuracy on pairs", ("accuracy",)),
  ("margin", ("margin",)),
  ("reward", ("reward",)),
  ("solved", ("solved",)),
  ("reward std", ("reward_std",)),
  ("groups without variance", ("zero_variance",)),
  ("length", ("length",)),
  ("entropy [nats]", ("entropy",)),
  ("KL to the reference [nats a token]", ("kl_ref", "kl_reward")),
  ("KL of the updates [nats a token]", ("approx_kl", "kl_old", "kl_update")),
  ("weights that are controlled", ("kl_coef", "beta", "entropy_coef")),
  ("explained variance", ("explained_variance",)),
  ("clipped tokens", ("clip_low", "clip_high")),
  ("sampler against learner [nats]", ("mismatch_mean", "mismatch_kl")),
  ("effective sample size", ("ess",)),
  ("gradient norm", ("grad_norm",)),
  ("seconds a step", ("seconds", "seconds/rollout")),
)


def draw(folder: str | Path) -> Path:
  """Draws `curves.png` into a run's folder and returns its path.

  Raises:
    ValueError: If matplotlib is not installed, or the run has no metrics yet.

  >>> draw("no-such-folder")
  Traceback (most recent call last):
  ...
  ValueError: 'no-such-folder' holds no metrics.jsonl with steps
  """
  plt = pyplot()
  rows = read_lines(folder, "metrics.jsonl")
  if not rows:
    raise ValueError(f"{str(folder)!r} holds no metrics.jsonl with steps")
  panels = [(title, names) for title, names in PANELS if any(_values(rows, name)[1] for name in names)]
  columns = 3
  height = -(-len(panels) // columns)
  figure, axes = plt.subplots(height, columns, figsize=(4 * columns, 2.6 * height), squeeze=False)
  for axis, (title, names) in zip(axes.flat, panels, strict=False):
    found = [name for name in names if _values(rows, name)[1]]
    for name in found:
      axis.plot(*_values(rows, name), label=name)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.grid(alpha=0.3)
    if len(names) > 1:  # a panel of one metric says in its title which
      axis.legend(fontsize=8)
  for axis in list(axes.flat)[len(panels) :]:
    axis.set_visible(False)
  figure.suptitle(Path(folder).name)
  figure.tight_layout()
  target = Path(folder) / "curves.png"
  figure.savefig(target, dpi=120)
  plt.close(figure)
  return target


def _values(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
  points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
  return [step for step, _ in points], [value for _, value in points]


if __name__ == "__main__":
  if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python -m rl_jax.analysis.plots RUN_DIR")
  try:
    print(draw(sys.argv[1]))
  except ValueError as error:
    sys.exit(f"error: {error}")
