"""What a run left in its folder, read once for everything that shows it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl_jax.runs import results
from rl_jax.runs.checks import Finding, diagnose
from rl_jax.runs.directory import read_config, read_lines, read_provenance

Rows = list[dict[str, Any]]


class RunData(NamedTuple):
  """A run, as far as its files can be read.

  Attributes:
    folder: Where it is.
    config: Its settings.
    provenance: What it was started with, once for each start.
    metrics: A row a step.
    evaluations: A row an evaluation, the first one of step 0.
    answers: The answers of all evaluations; `draw` 0 is the greedy one.
    samples: Completions or episodes of all steps.
    missing: What there is not, or cannot be read, a line each.
  """

  folder: Path
  config: dict[str, Any]
  provenance: Rows
  metrics: Rows
  evaluations: Rows
  answers: Rows
  samples: Rows
  missing: tuple[str, ...]

  @property
  def evaluated(self) -> list[tuple[int, results.Result]]:
    """Steps and results of the evaluations."""
    return [(row["step"], results.from_row(row)) for row in self.evaluations]

  @property
  def findings(self) -> list[Finding]:
    """What the checks find wrong."""
    return diagnose(self.metrics, self.config, self.samples)

  def answers_at(self, step: int, *, greedy: bool = True) -> Rows:
    """Returns the answers of one evaluation: the greedy ones, or the samples."""
    return [row for row in self.answers if row["step"] == step and (row.get("draw", 0) == 0) == greedy]


def read(folder: str | Path) -> RunData:
  """Reads a run's folder; files that are missing or broken are named in `missing`.

  Raises:
    ValueError: If the folder holds no run.

  >>> read("no-such-folder")
  Traceback (most recent call last):
  ...
  ValueError: 'no-such-folder' holds no run: it has none of config.json, metrics.jsonl and evaluation.jsonl
  """
  folder = Path(folder)
  names = ("config.json", "metrics.jsonl", "evaluation.jsonl")
  if not any((folder / name).exists() for name in names):
    raise ValueError(f"{str(folder)!r} holds no run: it has none of {', '.join(names[:-1])} and {names[-1]}")
  missing: list[str] = []

  def lines(name: str, what: str) -> Rows:
    rows = _tolerantly(lambda: read_lines(folder, name), f"{name} cannot be read", missing) or []
    if not rows and not any(line.startswith(name) for line in missing):
      missing.append(f"{name}: no {what}")
    return rows

  config = _tolerantly(lambda: read_config(folder), "config.json cannot be read", missing) or {}
  data = RunData(
    folder,
    config,
    read_provenance(folder),
    lines("metrics.jsonl", "steps"),
    lines("evaluation.jsonl", "evaluations"),
    lines("evaluation_samples.jsonl", "answers of evaluations"),
    lines("samples.jsonl", "completions or episodes"),
    (),
  )
  last = data.metrics[-1]["step"] if data.metrics else 0
  if last < (steps := config.get("steps", 0)):
    missing.append(f"the run has not finished: {last} of {steps} steps")
  if len(data.evaluations) == 1 and data.metrics:
    missing.append("there is no evaluation after the first one")
  return data._replace(missing=tuple(missing))


def _tolerantly(function: Callable[[], Any], sign: str, missing: list[str]) -> Any:
  try:
    return function()
  except (ValueError, OSError) as error:
    detail = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    missing.append(f"{sign} ({detail})")
    return None


def column(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
  """Returns steps and numbers of a metric, where there are any.

  >>> column([{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}, {"step": 3}], "loss")
  ([1], [0.5])
  """
  points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
  return [step for step, _ in points], [value for _, value in points]
