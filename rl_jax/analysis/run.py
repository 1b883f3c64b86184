"""What a run left in its folder, read once for everything that shows it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl_jax.runs import results
from rl_jax.runs.checks import Finding, diagnose
from rl_jax.runs.directory import read_config, read_provenance

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
    rows, damaged = whole_lines(folder / name)
    if damaged:
      missing.append(f"{name}: {damaged} damaged {'line was' if damaged == 1 else 'lines were'} left out")
    elif not rows:
      missing.append(f"{name}: no {what}")
    return rows

  config = _tolerantly(lambda: read_config(folder), "config.json cannot be read", missing) or {}
  provenance = read_provenance(folder)
  if not provenance:
    missing.append("provenance.json: nothing that says what the run was started with")
  data = RunData(
    folder,
    config,
    provenance,
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


def whole_lines(path: Path) -> tuple[Rows, int]:
  """Returns the rows of a JSONL file that can be read, and how many cannot: a killed run may have cut the last one."""
  if not path.is_file():
    return [], 0
  rows, damaged = [], 0
  for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
    try:
      row = json.loads(line) if line else None
    except json.JSONDecodeError:
      row = line
    if isinstance(row, dict) and "step" in row:
      rows.append(row)
    elif line:
      damaged += 1
  return rows, damaged


def _tolerantly(function: Callable[[], Any], sign: str, missing: list[str]) -> Any:
  try:
    return function()
  except (ValueError, OSError) as error:
    detail = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    missing.append(f"{sign} ({detail})")
    return None


def prompt_text(row: Mapping[str, Any]) -> str:
  """Returns a row's prompt to be read: text as it is, messages with their roles, and calls of tools as JSON.

  >>> prompt_text({"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]})
  'user: Hi\\nassistant: '
  """
  prompt = row.get("prompt") or ""
  if isinstance(prompt, str):
    return prompt
  return "\n".join(f"{turn.get('role', '?')}: {_said(turn)}" for turn in prompt)


def _said(turn: Mapping[str, Any]) -> str:
  content = turn.get("content")
  if isinstance(content, list):
    content = "".join(part if isinstance(part, str) else str(part.get("text", part)) for part in content)
  calls = [json.dumps(call, ensure_ascii=False) for call in turn.get("tool_calls") or ()]
  return "\n".join([*filter(None, [content]), *calls])


def column(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
  """Returns steps and numbers of a metric, where there are any.

  >>> column([{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}, {"step": 3}], "loss")
  ([1], [0.5])
  """
  points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
  return [step for step, _ in points], [value for _, value in points]
