"""What went wrong in a run, and what to change: `python -m rl_jax.analysis.doctor RUN_DIR`."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_jax.analysis.run import whole_lines
from rl_jax.runs.checks import CHECKS, Finding, diagnose
from rl_jax.runs.directory import read_config


def examine(folder: str | Path) -> list[Finding]:
  """Returns what went wrong in a run, by its metrics and completions, in the order in which it was first seen.

  Raises:
    ValueError: If the folder holds no metrics of a run.

  >>> examine("no-such-folder")
  Traceback (most recent call last):
  ...
  ValueError: 'no-such-folder' holds no metrics.jsonl with steps
  """
  return _examined(folder)[0]


def _examined(folder: str | Path) -> tuple[list[Finding], int]:
  """The findings, and in how many steps."""
  rows = whole_lines(Path(folder) / "metrics.jsonl")[0]
  if not rows:
    raise ValueError(f"{str(folder)!r} holds no metrics.jsonl with steps")
  return diagnose(rows, read_config(folder), whole_lines(Path(folder) / "samples.jsonl")[0]), len(rows)


def show(folder: str | Path, *, console: Console | None = None) -> None:
  """Prints it, a table a finding.

  Raises:
    ValueError: If the folder holds no metrics of a run.
  """
  console = console or Console()
  found, steps = _examined(folder)
  for finding in found:
    table = Table(title=f"{finding.name}, from step {finding.step} on", title_justify="left", show_header=False)
    for name in ("sign", "cause", "remedy", "source"):
      if value := getattr(finding, name):
        table.add_row(name, Text(value))
    console.print(table)
  verdict = f"{len(found)} findings" if found else "nothing found"
  console.print(f"{verdict} in {steps} steps, by {len(CHECKS)} checks", highlight=False)


if __name__ == "__main__":
  if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python -m rl_jax.analysis.doctor RUN_DIR")
  try:
    show(sys.argv[1])
  except ValueError as error:
    sys.exit(f"error: {error}")
