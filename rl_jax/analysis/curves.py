"""What is drawn of a run: which curves share a panel, smoothed, and what evaluations measured beside them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rl_jax.analysis.run import RunData, column
from rl_jax.ops.statistics import wilson_interval
from rl_jax.runs.results import EvaluationResult

# (title, metrics drawn in one panel, numbers of evaluations beside them)
PANELS = (
  ("negative log-likelihood [nats]", ("nll",), ("nll",)),
  ("accuracy on pairs", ("accuracy",), ("accuracy",)),
  ("margin", ("margin",), ("margin",)),
  ("rewards of chosen and rejected", ("reward_chosen", "reward_rejected"), ()),
  ("reward", ("reward",), ("reward", "return")),
  ("solved", ("solved",), ("solved",)),
  ("standard deviation of rewards", ("reward_std",), ()),
  ("groups without variance", ("zero_variance",), ()),
  ("length", ("length", "wrong_length"), ("length",)),
  ("ended before the limit", ("terminated",), ("terminated",)),
  ("entropy [nats]", ("entropy",), ()),
  ("KL to the reference [nats a token]", ("kl_ref", "kl_reward"), ()),
  ("KL of the updates [nats a token]", ("approx_kl", "kl_old", "kl_update"), ()),
  ("controlled weights", ("kl_coef", "beta", "entropy_coef"), ()),
  ("explained variance", ("explained_variance",), ()),
  ("clipped tokens", ("clip_low", "clip_high"), ()),
  ("sampler against learner [nats]", ("mismatch_mean", "mismatch_kl"), ()),
  ("effective sample size", ("ess",), ()),
  ("gradient norm", ("grad_norm",), ()),
  ("simulations that broke down", ("simulations_failed",), ()),
  ("actions clipped", ("actions_clipped",), ()),
  ("seconds a step", ("seconds", "seconds/rollout"), ()),
  ("peak memory [GiB]", ("peak_gib",), ()),
)
MOST = 12  # rewards with a panel of their own


class Curve(NamedTuple):
  """A metric over steps; `smooth` is its moving mean."""

  name: str
  steps: Sequence[float]
  values: Sequence[float]
  smooth: Sequence[float] = ()


class Point(NamedTuple):
  """What an evaluation measured, with its 95 % interval where there is one."""

  step: float
  value: float
  low: float = math.nan
  high: float = math.nan


class Panel(NamedTuple):
  """Curves with one axis.

  Attributes:
    title: What they are, with the unit.
    curves: One or more.
    points: Of evaluations.
  """

  title: str
  curves: tuple[Curve, ...]
  points: tuple[Point, ...] = ()


def panels(run: RunData) -> list[Panel]:
  """Returns what there is to draw; metrics that never change are left out, `constants` has them."""
  found = []
  for title, names, evaluated in PANELS:
    curves = tuple(curve for name in names if (curve := _curve(run, name)) is not None)
    points = next((points for name in evaluated if (points := points_of(run, name))), ())
    if curves or len(points) > 1:
      found.append(Panel(title, curves, points))
    if title == "reward":
      found += _parts(run)
  return found + _further(run, found)


def constants(run: RunData) -> dict[str, float]:
  """Returns the metrics of panels that are the same at every step, by name."""
  names = [name for _, metrics, _ in PANELS for name in metrics]
  values = {name: column(run.metrics, name)[1] for name in names}
  return {name: each[0] for name, each in values.items() if _is_constant(each)}


def _is_constant(values: Sequence[float]) -> bool:
  """Whether a metric of several steps never changes, but for rounding."""
  return len(values) > 1 and float(np.ptp(values)) <= 1e-6 * float(np.max(np.abs(values)))


def _curve(run: RunData, name: str) -> Curve | None:
  steps, values = column(run.metrics, name)
  return None if not values or _is_constant(values) else Curve(name, steps, values, smoothed(values))


def _parts(run: RunData) -> list[Panel]:
  """A panel for each of several rewards: they have units of their own."""
  names = sorted({name for row in run.metrics for name in row if name.startswith("reward/")})
  curves = [curve for name in names if (curve := _curve(run, name)) is not None]
  return [
    Panel(f"reward: {own}", (curve,), points_of(run, curve.name) or points_of(run, own))
    for curve in curves[:MOST]
    for own in (curve.name.removeprefix("reward/"),)
  ]


def _further(run: RunData, found: Sequence[Panel]) -> list[Panel]:
  """What evaluations measured and no panel has, such as a perplexity."""
  drawn = {name for _, _, evaluated in PANELS for name in evaluated} | {panel.title[8:] for panel in found}
  names = dict.fromkeys(name for _, result in run.evaluated for name in result.numbers())
  left = [name for name in names if name not in drawn and "@" not in name and not name.startswith("reward/")]
  panels = [Panel(f"evaluation: {name}", (), points_of(run, name)) for name in left]
  return [panel for panel in panels if len({point.value for point in panel.points}) > 1][:MOST]


def smoothed(values: Sequence[float]) -> list[float]:
  """Returns means over a window of a twelfth of the curve around each place, at most 51 steps; cut off at its ends.

  >>> smoothed([0.0, 3.0, 6.0]), smoothed([1.0] * 60) == [1.0] * 60
  ([0.0, 3.0, 6.0], True)
  """
  half = min(len(values) // 24, 25)
  return [float(np.mean(values[max(i - half, 0) : i + half + 1])) for i in range(len(values))]


def points_of(run: RunData, name: str) -> tuple[Point, ...]:
  """Returns a number of every evaluation that has it: `solved` with Wilson's interval, `reward` with a normal one."""
  points = []
  for step, result in run.evaluated:
    if (value := result.numbers().get(name)) is None:
      continue
    interval: tuple[float, float] = (math.nan, math.nan)
    if isinstance(result, EvaluationResult) and name == "solved" and result.solved is not None:
      interval = wilson_interval(result.solved, result.count)
    elif name == "reward":
      interval = _normal_interval([row["reward"] for row in run.answers_at(step) if row.get("reward") is not None])
    points.append(Point(step, value, *interval))
  return tuple(points)


def _normal_interval(values: Sequence[Any]) -> tuple[float, float]:
  if len(values) < 2:
    return math.nan, math.nan
  mean, error = float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
  return mean - error, mean + error
