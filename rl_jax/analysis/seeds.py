"""Runs that differ in their seed alone, as one row of a table: `python -m rl_jax.analysis.seeds RUN_DIR ...`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl_jax.analysis.comparison import cell
from rl_jax.runs.directory import read_config, read_lines

OWN = ("seed", "run_dir", "resume", "checkpoint_every")  # settings in which runs of a row may differ


def table(folders: Sequence[str | Path], *, metrics: Sequence[str] = ()) -> str:
  """Returns a Markdown table of last evaluations: interquartile means over seeds, with 95 % intervals.

  Args:
    folders: Run directories; those with equal settings but for the seed are a row, named by what rows differ in.
    metrics: Which numbers to show; all that every evaluation has by default.

  Raises:
    ValueError: If a folder holds no run, an unfinished one, one that is evaluated by answers to prompts, or a seed that
      another run with the same settings has too.

  >>> table(["no-such-folder"])
  Traceback (most recent call last):
  ...
  ValueError: 'no-such-folder' holds no run that was evaluated
  """
  groups: dict[str, dict[Any, dict[str, float]]] = {}
  for folder in folders:
    rows = read_lines(folder, "evaluation.jsonl")
    if not rows:
      raise ValueError(f"{str(folder)!r} holds no run that was evaluated")
    if "values" not in rows[-1]:
      raise ValueError(f"{str(folder)!r} holds no evaluation with numbers of its own")
    config = read_config(folder)
    if rows[-1]["step"] < config.get("steps", 0):
      raise ValueError(f"{str(folder)!r} was not finished: its last evaluation is that of step {rows[-1]['step']}")
    settings = {name: value for name, value in config.items() if name not in OWN}
    found = groups.setdefault(json.dumps(settings, sort_keys=True), {})
    if config.get("seed") in found:
      raise ValueError(f"{str(folder)!r} has the seed {config.get('seed')}, as another run with the same settings")
    found[config.get("seed")] = rows[-1]["values"]
  names = _names([json.loads(key) for key in groups])
  shared = set.intersection(*(set(values) for found in groups.values() for values in found.values()))
  shown = [name for name in metrics or sorted(shared) if name in shared]
  lines = [["runs", "seeds", *shown], ["---"] * (2 + len(shown))]
  for name, found in zip(names, groups.values(), strict=True):
    cells = [_cell([values[metric] for values in found.values()]) for metric in shown]
    lines.append([name, str(len(found)), *cells])
  return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else f"|{'|'.join(line)}|" for line in lines)


def _cell(values: list[float]) -> str:
  return cell(np.array(values), 2) if len(values) > 1 else f"{values[0]:.2f}"


def _names(settings: list[dict[str, Any]]) -> list[str]:
  """What tells each from the others: the settings that differ."""
  differing = [key for key in settings[0] if len({json.dumps(each.get(key)) for each in settings}) > 1]
  return [", ".join(f"{key}={each.get(key)}" for key in differing) or "all" for each in settings]


if __name__ == "__main__":
  if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python -m rl_jax.analysis.seeds RUN_DIR ...")
  try:
    print(table(sys.argv[1:]))
  except ValueError as error:
    sys.exit(f"error: {error}")
