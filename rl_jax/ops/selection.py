"""Which tokens of a batch, or completions of a group, are picked. Parameter-free: compute them once, globally."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_jax.ops.masking import as_bool, masked_count, masked_mean, zero_masked


def covariance(logp: Array, advantages: Array, mask: Array) -> Float[Array, "*batch T"]:
  """Each token's part in the batch's covariance, `(A_t - mean A)(logp_t - mean logp)`, 0 where the mask is 0.

  Under the policy gradient it is, to first order, minus the token's part in the change of the entropy.

  Reference: G. Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
  arXiv:2505.22617.

  >>> print(covariance(jnp.array([-1.0, -3.0]), jnp.array([1.0, -1.0]), jnp.ones(2)))
  [1. 1.]
  """
  logp, advantages = (zero_masked(x - masked_mean(x, mask), mask) for x in (logp, advantages))
  return jax.lax.stop_gradient(logp * advantages)


def _highest(values: Array, eligible: Array, mask: Array, fraction: float | Array) -> Bool[Array, "*batch T"]:
  """The eligible entries with the highest values, as many as a fraction of the mask's; ties go to the earlier one.

  With a Python number for a fraction the most that can be picked is known, and nothing else is sorted.
  """
  count = jnp.maximum(jnp.floor(fraction * masked_count(mask) + 1e-4), 1)  # 0.1 * 30 may come out below 3
  most = values.size if isinstance(fraction, Array) else min(max(int(fraction * values.size) + 1, 1), values.size)
  found, places = jax.lax.top_k(jnp.where(eligible, values, -jnp.inf).reshape(-1), most)
  picked = jnp.zeros(values.size, bool).at[places].set((jnp.arange(most) < count) & (found > -jnp.inf))
  return picked.reshape(values.shape)


def top_fraction(values: Array, mask: Array, *, fraction: float | Array) -> Bool[Array, "*batch T"]:
  """The selected tokens with the largest values: a fraction of the batch's tokens, and at least one.

  Args:
    values: `[..., T]`.
    mask: 1 where a token is selected.
    fraction: Share of the selected tokens, rounded down. A Python number is faster than a traced one, which sorts all.

  >>> print(top_fraction(jnp.array([1.0, 3.0, 2.0, 9.0]), jnp.array([1, 1, 1, 0]), fraction=0.67))
  [False  True  True False]
  """
  return _highest(zero_masked(values, mask), as_bool(mask), mask, fraction)


def random_fraction(
  noise: Array, candidates: Array, mask: Array, *, fraction: float | Array
) -> Bool[Array, "*batch T"]:
  """Draws candidates at random: up to a fraction of the batch's tokens, and at least one if there is any.

  Args:
    noise: `[..., T]`, one uniform random number a token; the lowest are drawn.
    candidates: `[..., T]` booleans.
    mask: 1 where a token is selected.
    fraction: Share of the selected tokens, rounded down.

  >>> print(random_fraction(jnp.array([0.2, 0.1, 0.9]), jnp.array([True, False, True]), jnp.ones(3), fraction=0.4))
  [ True False False]
  """
  return _highest(-noise, as_bool(candidates) & as_bool(mask), mask, fraction)


def top_entropy(entropy: Array, mask: Array, *, fraction: float | Array = 0.2) -> Bool[Array, "*batch T"]:
  """The selected tokens whose entropy is at least the batch's `1 - fraction` quantile (the forking tokens of "80/20").

  The quantile interpolates linearly between tokens, as in TRL.

  Args:
    entropy: `[..., T]`, in nats; the learner's at this update as `batch_entropy`, or an earlier one.
    mask: 1 where a token is selected.
    fraction: Rough share of the tokens that are kept.

  Reference: S. Wang et al., "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement
  Learning for LLM Reasoning", arXiv:2506.01939.

  >>> print(top_entropy(jnp.array([0.1, 2.0, 0.2, 0.3, 0.1]), jnp.ones(5)))
  [False  True False False False]
  """
  selected = as_bool(mask)
  ordered = jnp.sort(jnp.where(selected, entropy, jnp.inf), axis=None)
  last = jnp.maximum(masked_count(mask) - 1, 0)
  place = (1 - jnp.asarray(fraction)) * last
  below, above = (ordered[x.astype(jnp.int32)] for x in (jnp.floor(place), jnp.ceil(place)))
  threshold = below + jnp.where(above > below, above - below, 0) * (place - jnp.floor(place))
  return selected & (entropy >= threshold)


def best_of(rewards: Float[Array, "*batch G"], mask: Array | None = None, *, n: int = 1) -> Bool[Array, "*batch G"]:
  """The n best completions of each group, to be imitated: rejection sampling, best-of-n, expert iteration (RAFT).

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: Which entries exist; all by default.
    n: How many a group; fewer where fewer exist. Ties go to the earlier one.

  Raises:
    ValueError: If n is below 1.

  Reference: H. Dong et al., "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment",
  arXiv:2304.06767.

  >>> print(best_of(jnp.array([0.0, 2.0, 1.0])))
  [False  True False]
  """
  if n < 1:
    raise ValueError(f"n must be at least 1, got {n}")
  mask = jnp.ones_like(rewards) if mask is None else mask
  order = jnp.argsort(-jnp.where(as_bool(mask), rewards, -jnp.inf), axis=-1, stable=True)
  return (jnp.argsort(order, axis=-1, stable=True) < n) & as_bool(mask)


def best_and_worst(
  rewards: Float[Array, "*batch G"], mask: Array | None = None
) -> tuple[Int[Array, "*batch 2"], Bool[Array, "*batch"]]:
  """The places of a group's best and worst completion, a preference pair for online DPO.

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: Which entries exist; all by default.

  Returns:
    Places `[..., 2]`, chosen first, to take completions with; and whether the two rewards differ, without which the
    pair says nothing.

  Reference: S. Guo et al., "Direct Language Model Alignment from Online AI Feedback", arXiv:2402.04792.

  >>> places, informative = best_and_worst(jnp.array([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]]))
  >>> print(places, informative)
  [[1 0]
   [0 0]] [ True False]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  highest = jnp.where(as_bool(mask), rewards, -jnp.inf)
  lowest = jnp.where(as_bool(mask), rewards, jnp.inf)
  places = jnp.stack([jnp.argmax(highest, axis=-1), jnp.argmin(lowest, axis=-1)], axis=-1)
  return places, jnp.max(highest, axis=-1) > jnp.min(lowest, axis=-1)
