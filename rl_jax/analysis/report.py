"""A run in a few lines and a picture: `python -m rl_jax.analysis.report RUN_DIR`."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_jax.analysis import plots
from rl_jax.runs.directory import read_lines
from rl_jax.runs.results import from_row


def show(folder: str | Path, *, samples: int = 5, console: Console | None = None) -> None:
  """Prints the evaluation before and after, some completions, and where everything is; draws the curves.

  Raises:
    ValueError: If the folder holds no run that was evaluated.

  >>> show("no-such-folder")
  Traceback (most recent call last):
  ...
  ValueError: 'no-such-folder' holds no evaluation.jsonl: no finished run
  """
  console = console or Console()
  results = read_lines(folder, "evaluation.jsonl")
  if not results:
    raise ValueError(f"{str(folder)!r} holds no evaluation.jsonl: no finished run")
  first, last = results[0], results[-1]
  steps = read_lines(folder, "metrics.jsonl")
  evaluated = [("before", first)] + ([(f"after {last['step']} steps", last)] if last is not first else [])
  for title, result in evaluated:
    console.print(f"{title}: {from_row(result).describe()}", highlight=False, soft_wrap=True)
  if last is first and steps:
    console.print(f"stopped after {len(steps)} steps, before its last evaluation", highlight=False)
  elif (table := _samples(folder, first["step"], last["step"], samples)).row_count:
    console.print(table)
  if steps:
    minutes, peak = sum(row["seconds"] for row in steps) / 60, max(row["peak_gib"] for row in steps)
    console.print(f"{len(steps)} steps took {minutes:.1f} minutes; peak memory {peak:.1f} GiB", highlight=False)
  try:
    console.print(f"curves: {plots.draw(folder)}", highlight=False, soft_wrap=True)
  except ValueError as error:
    console.print(f"no curves: {error}", highlight=False)
  console.print(f"metrics, samples and checkpoints: {folder}", highlight=False, soft_wrap=True)
  if (Path(folder) / "model").is_dir():
    console.print(f"the model, which transformers loads: {Path(folder) / 'model'}", highlight=False, soft_wrap=True)


def _samples(folder: str | Path, first: int, last: int, count: int) -> Table:
  rows = read_lines(folder, "evaluation_samples.jsonl")
  before = [row for row in rows if row["step"] == first][:count]
  after = [row for row in rows if row["step"] == last][:count]
  table = Table("prompt (its end)", "before", "reward", "after", "reward", title="held-out problems, greedy")
  for old, new in zip(before, after, strict=False):
    prompt = old["prompt"] if isinstance(old["prompt"], str) else old["prompt"][-1]["content"]
    table.add_row(_cell(prompt[-40:].split("\n")[-1]), *_answer(old), *_answer(new))
  return table


def _answer(row: dict[str, Any]) -> tuple[Text, str]:
  return _cell(row["completion"][:60]), "-" if row["reward"] is None else f"{row['reward']:.2f}"


def _cell(content: str) -> Text:
  """Shows text as it is: what looks like console markup in it is the model's own."""
  return Text(repr(content))


if __name__ == "__main__":
  if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python -m rl_jax.analysis.report RUN_DIR")
  try:
    show(sys.argv[1])
  except ValueError as error:
    sys.exit(f"error: {error}")
