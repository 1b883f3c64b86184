"""Dynamic sampling: draw prompts until the batch is full of groups that teach something (DAPO, arXiv:2503.14476)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from rl_jax.ops.advantages import keep_groups
from rl_jax.tasks.rewards import Scored
from rl_jax.train import text


class Drawn(NamedTuple):
  """Prompts with their completions, rewards and readable samples, all as NumPy arrays and lists.

  Attributes:
    prompts: P of them.
    completions: From `sampling.generate`, `[P, G, ...]`.
    scored: Of all `P * G` completions.
    samples: One a completion.
  """

  prompts: text.PromptBatch
  completions: Any
  scored: Scored
  samples: list[dict[str, Any]]


def informative(drawn: Drawn) -> Bool[np.ndarray, " P"]:
  """Which groups have rewards that differ; completions without a reward do not count."""
  rewards = drawn.scored.total.reshape(drawn.completions.stopped.shape)
  known = ~np.isnan(rewards)
  return np.asarray(keep_groups(jnp.asarray(np.where(known, rewards, 0)), jnp.asarray(known)))


def fill(draw: Callable[[int], Drawn], position: int, count: int, *, max_draws: int) -> tuple[Drawn, int]:
  """Draws until `count` groups are informative, or `max_draws` times; the rest is filled up with other groups.

  Args:
    draw: `position in the data -> Drawn`, of `count` prompts.
    position: Where to begin.
    count: P, the groups wanted.
    max_draws: The most calls of `draw`.

  Returns:
    `count` groups, informative ones first, and the number of draws. Informative groups beyond `count` are dropped.
  """
  kept, others = [], []
  while len(kept) < max_draws and sum(len(part.prompts.rows) for part in kept) < count:
    drawn = draw(position)
    position, keep = drawn.prompts.position, informative(drawn)
    kept.append(_select(drawn, np.flatnonzero(keep)))
    others.append(_select(drawn, np.flatnonzero(~keep)))
  joined = _join([*kept, *others])
  skipped = sum(part.prompts.skipped for part in kept)
  joined = joined._replace(prompts=joined.prompts._replace(position=position, skipped=skipped))
  return _select(joined, np.arange(count)), len(kept)


def _select(drawn: Drawn, groups: np.ndarray) -> Drawn:
  size = drawn.completions.stopped.shape[1]
  rows = (groups[:, None] * size + np.arange(size)).reshape(-1)
  prompts = drawn.prompts._replace(
    rows=[drawn.prompts.rows[group] for group in groups],
    tokens=drawn.prompts.tokens[groups],
    mask=drawn.prompts.mask[groups],
  )
  return Drawn(
    prompts,
    jax.tree.map(lambda x: x[groups], drawn.completions),
    Scored(drawn.scored.total[rows], {name: part[rows] for name, part in drawn.scored.parts.items()}),
    [drawn.samples[row] for row in rows],
  )


def _join(draws: Sequence[Drawn]) -> Drawn:
  longest = max(draw.prompts.tokens.shape[1] for draw in draws)

  def padded(x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, longest - x.shape[1])))

  prompts = draws[0].prompts._replace(
    rows=[row for draw in draws for row in draw.prompts.rows],
    tokens=np.concatenate([padded(draw.prompts.tokens) for draw in draws]),
    mask=np.concatenate([padded(draw.prompts.mask) for draw in draws]),
  )
  names = draws[0].scored.parts
  scored = Scored(
    np.concatenate([draw.scored.total for draw in draws]),
    {name: np.concatenate([draw.scored.parts[name] for draw in draws]) for name in names},
  )
  completions = jax.tree.map(lambda *xs: np.concatenate(xs), *(draw.completions for draw in draws))
  return Drawn(prompts, completions, scored, [sample for draw in draws for sample in draw.samples])
