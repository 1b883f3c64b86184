"""Learning from the best of a policy's own samples: imitate them, or prefer them to the worst."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rl_jax.ops.masking import zero_masked
from rl_jax.ops.selection import best_and_worst, best_of
from rl_jax.rollouts.collect import Collect, Collected
from rl_jax.state import RLState, Sequences


def imitate(collect: Collect, *, n: int = 1, above: float = -np.inf) -> Collect:
  """Returns a `collect` whose batches train on each group's n best completions alone, with rewards above a floor.

  With `objectives.sft` this is rejection sampling (best-of-n), and in rounds expert iteration. The metric `kept` is the
  share of the completions that are learned.

  Args:
    collect: What `rollouts.collect.make_collect` returns.
    n: Completions a group.
    above: Completions must have a higher reward than this.

  Raises:
    ValueError: If n is below 1.
  """
  if n < 1:
    raise ValueError(f"n must be at least 1, got {n}")

  def collect_best(state: RLState) -> Collected:
    collected = collect(state)
    rewards, known = _rewards(collected)
    keep = best_of(rewards, known, n=n) & known & (rewards > above)
    mask = (collected.batch.inputs.mask != 0) & keep[..., None]
    batch = collected.batch._replace(inputs=collected.batch.inputs._replace(mask=mask))
    return collected._replace(batch=batch, metrics=collected.metrics | {"kept": float(keep.mean())})

  return collect_best


def prefer(collect: Collect, reference: Callable[[RLState, Sequences], jax.Array]) -> Collect:
  """Returns a `collect` whose batches are pairs `[P, 2, T]`, each group's best completion before its worst: online DPO.

  Groups whose rewards are all equal have an empty mask, and are left out of the loss. The metric `kept` is the share of
  the groups that give a pair.

  Args:
    collect: A function from `rollouts.collect.make_collect`, for an objective that needs no reference, such as
      `objectives.sft`.
    reference: `(state, sequences) -> log-probs`, which runs on the pairs alone.
  """

  def collect_pairs(state: RLState) -> Collected:
    collected = collect(state)
    rewards, known = _rewards(collected)
    places, differ = best_and_worst(rewards, known)

    def select(leaf: jax.Array) -> jax.Array:
      return jnp.take_along_axis(leaf, places[..., None], axis=1)

    sequences, inputs = collected.batch
    sequences = sequences._replace(
      completions=select(sequences.completions), completion_mask=select(sequences.completion_mask)
    )
    inputs = jax.tree.map(select, inputs)
    inputs = inputs._replace(
      mask=(inputs.mask != 0) & differ[:, None, None], ref_logp=reference(collected.state, sequences)
    )
    batch = collected.batch._replace(sequences=sequences, inputs=inputs)
    return collected._replace(batch=batch, metrics=collected.metrics | {"kept": float(differ.mean())})

  return collect_pairs


def _rewards(collected: Collected) -> tuple[jax.Array, jax.Array]:
  """Rewards `[P, G]`, 0 where none applied, and where one did."""
  if collected.rewards is None:
    raise ValueError("the batch has no rewards to select by")
  known = ~jnp.isnan(collected.rewards)
  return zero_masked(collected.rewards, known), known
