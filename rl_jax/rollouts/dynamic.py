"""Dynamic sampling: draw prompts until the batch is full of groups that teach something (DAPO, arXiv:2503.14476)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from rl_jax.ops.advantages import keep_groups
from rl_jax.rollouts.collect import Judge, Play, Played, Sample, Sampled
from rl_jax.rollouts.experience import rewards_of
from rl_jax.rollouts.rollout import Rollout
from rl_jax.state import Judgment, RLState


class Drawn(NamedTuple):
  """Prompts with their completions and what was said of them, all as NumPy arrays and lists.

  Attributes:
    problems: One problem a prompt.
    rollout: Rollout of P prompts.
    judgment: Judgment of the same prompts.
    records: One record a completion.
  """

  problems: Sequence[Any]
  rollout: Rollout
  judgment: Judgment
  records: Sequence[dict[str, Any]]


def play_until_full(
  sample: Sample, judge: Judge, *, max_draws: int, put: Callable[[Any], Any] = lambda tree: tree
) -> Play:
  """Returns a `play` that draws until all groups have rewards that differ, or `max_draws` times.

  The rest is filled up with other groups; informative ones beyond a batch are dropped. The metric `draws` counts.

  Args:
    sample: Samples one draw.
    judge: Judges one draw.
    max_draws: The most draws.
    put: Puts a pytree with prompts on the leading axis on the devices.

  Raises:
    ValueError: If `max_draws` is below 1.
  """
  if max_draws < 1:
    raise ValueError(f"max_draws must be at least 1, got {max_draws}")

  def play(state: RLState) -> Played:
    kept, others, skipped, draws, running, count = [], [], 0.0, 0, state.running, 0
    while draws < max_draws and (not draws or sum(len(part.problems) for part in kept) < count):
      sampled = sample(state._replace(running=running))
      running, draws, count = sampled.running, draws + 1, len(sampled.problems)
      skipped += sampled.metrics.get("prompts_skipped", 0.0)
      judgment, records = judge(sampled)
      drawn = Drawn(sampled.problems, jax.device_get(sampled.rollout), jax.device_get(judgment), records)
      keep = informative(drawn)
      kept.append(_select(drawn, np.flatnonzero(keep)))
      others.append(_select(drawn, np.flatnonzero(~keep)))
    full = _select(_join([*kept, *others]), np.arange(count))
    metrics = {"prompts_skipped": skipped, "draws": float(draws)}
    sampled = Sampled(full.problems, put(full.rollout), running, metrics)
    return Played(sampled, lambda: (full.judgment, full.records))

  return play


def informative(drawn: Drawn) -> Bool[np.ndarray, " P"]:
  """Which groups have rewards that differ; completions without a reward do not count."""
  rewards = rewards_of(drawn.judgment, drawn.rollout)
  return np.asarray(keep_groups(rewards.total, rewards.rewarded))


def _select(drawn: Drawn, groups: np.ndarray) -> Drawn:
  size = drawn.rollout.terminated.shape[1]
  rows = (groups[:, None] * size + np.arange(size)).reshape(-1).tolist()
  rollout, judgment = _over_rows(lambda leaf: leaf[groups], drawn)
  return Drawn(
    [drawn.problems[group] for group in groups.tolist()], rollout, judgment, [drawn.records[row] for row in rows]
  )


def _join(draws: Sequence[Drawn]) -> Drawn:
  """Puts draws under one another, padded to the longest prompt and completion."""
  rollout, judgment = _over_rows(_stack, *draws)
  problems = [problem for draw in draws for problem in draw.problems]
  return Drawn(problems, rollout, judgment, [record for draw in draws for record in draw.records])


def _over_rows(function: Callable[..., np.ndarray], *draws: Drawn) -> tuple[Rollout, Judgment]:
  """Maps a function over all arrays that have the prompts on their leading axis."""
  rollout, judgment = jax.tree.map(function, *((draw.rollout, draw.judgment._replace(weights={})) for draw in draws))
  return rollout, judgment._replace(weights=draws[0].judgment.weights)


def _stack(*leaves: np.ndarray) -> np.ndarray:
  if leaves[0].ndim < 2:
    return np.concatenate(leaves)
  longest = max(leaf.shape[-1] for leaf in leaves)
  widths = [[(0, 0)] * (leaf.ndim - 1) + [(0, longest - leaf.shape[-1])] for leaf in leaves]
  return np.concatenate([np.pad(leaf, width) for leaf, width in zip(leaves, widths, strict=True)])
