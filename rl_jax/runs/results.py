"""What an evaluation found, as a run keeps it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from rl_jax.ops.statistics import wilson_interval


class EvaluationResult(NamedTuple):
  """Results on `count` answers to held-out rows.

  Attributes:
    reward: Mean reward; NaN or None where none applied.
    solved: How many were solved exactly; None where the task cannot tell.
    count: Answers that were judged.
    skipped: Rows whose prompt was over the limit.
    scores: Mean of each reward by name, where there are several.
    samples: Prompts, completions and rewards.
    drawn: `pass@k` and `maj@k` of several answers to some of the rows; none where only greedy ones were asked for.
  """

  reward: float | None
  solved: int | None
  count: int
  skipped: int
  scores: Mapping[str, float | None] = {}
  samples: Sequence[Mapping[str, Any]] = ()
  drawn: Mapping[str, float] = {}

  def numbers(self) -> dict[str, float]:
    """Returns its numbers by name, those that there are.

    >>> EvaluationResult(0.5, 2, 4, 0, drawn={"pass@1": 0.25}).numbers()
    {'reward': 0.5, 'solved': 0.5, 'pass@1': 0.25}
    """
    scores = {f"reward/{name}": value for name, value in self.scores.items()}
    solved = None if self.solved is None else self.solved / self.count
    found = {"reward": self.reward, "solved": solved, **scores, **self.drawn}
    return {name: value for name, value in found.items() if _is_number(value)}

  def describe(self) -> str:
    """Returns one line: the solved fraction with its 95 % interval, or the mean reward; and each reward's mean.

    >>> EvaluationResult(0.5, None, 3, 0).describe()
    'mean reward 0.500 on 3 held-out problems'
    """
    problems = f"{self.count} held-out problems" + (f" ({self.skipped} too long)" if self.skipped else "")
    each = ", ".join(f"{name} {value:.3f}" for name, value in self.scores.items() if _is_number(value))
    if self.solved is not None:
      low, high = wilson_interval(self.solved, self.count)
      interval = f"95 % interval {low:.3f} to {high:.3f}"
      solved = f"{self.solved / self.count:.3f} solved, {interval}, {self.solved} of {problems}"
      most = list(self.drawn)[-1].partition("@")[2] if self.drawn else ""
      drawn = "".join(f"; {name} {value:.3f}" for name, value in self.drawn.items() if name.endswith(f"@{most}"))
      return f"{solved}; rewards: {each}{drawn}" if each else solved + drawn
    if _is_number(self.reward):
      return f"mean reward {self.reward:.3f}{f' ({each})' if each else ''} on {problems}"
    return f"no reward applied to any of {problems}"


class Measurements(NamedTuple):
  """Held-out numbers of a supervised model, in place of answers.

  Attributes:
    values: Numbers by name.
    samples: Whatever readers should see.
  """

  values: Mapping[str, float | None]
  samples: Sequence[Mapping[str, Any]] = ()

  def numbers(self) -> dict[str, float]:
    """Returns its numbers by name, those that there are."""
    return {name: value for name, value in self.values.items() if _is_number(value)}

  def describe(self) -> str:
    """Returns one line.

    >>> Measurements({"accuracy": 0.5, "pairs": 4}).describe()
    'accuracy 0.5, pairs 4'
    """
    values = {name: math.nan if value is None else value for name, value in self.values.items()}
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


Result = EvaluationResult | Measurements


def from_row(row: Mapping[str, Any]) -> Result:
  """Returns a line of evaluation.jsonl as what it was.

  >>> from_row({"step": 3, "values": {"loss": 0.5}})
  Measurements(values={'loss': 0.5}, samples=())
  """
  fields = {name: value for name, value in row.items() if name != "step"}
  return Measurements(**fields) if "values" in fields else EvaluationResult(**fields)


def _is_number(value: float | None) -> TypeGuard[float]:
  return value is not None and not math.isnan(value)
