"""Advantages from the rewards of a group of completions of one prompt: `[..., G] -> [..., G]`.

They are finished before the update, on the global batch. Uneven groups come either padded with a mask, or flat with
explicit ids through `by_group_ids`: never by a reshape that assumes equal sizes.
"""

from collections.abc import Callable
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rl_jax.ops.masking import as_bool, masked_count, masked_sum, masked_variance, zero_masked

Estimator = Callable[[Array, Array | None], Array]


def _group_mean(rewards: Array, mask: Array) -> Array:
  return masked_sum(rewards, mask, axis=-1)[..., None] / jnp.maximum(masked_count(mask, axis=-1), 1)[..., None]


def _is_constant(rewards: Array, mask: Array) -> Array:
  """Whether all selected rewards of a group are equal, decided by comparison: sums of equal floats can differ."""
  highest = jnp.max(jnp.where(as_bool(mask), rewards, -jnp.inf), axis=-1, keepdims=True)
  lowest = jnp.min(jnp.where(as_bool(mask), rewards, jnp.inf), axis=-1, keepdims=True)
  return highest <= lowest


def group_normalized(
  rewards: Float[Array, "*batch G"],
  mask: Array | None = None,
  *,
  scale: Literal["group", "batch", "none"] = "group",
  ddof: int = 1,
  eps: float | Array = 1e-6,
) -> Float[Array, "*batch G"]:
  """`A_i = (s_i - mean_G(s)) / (std_G(s) + eps)`.

  Groups with equal rewards, groups of one and empty groups get exactly 0, in value and in gradient.

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: Which entries exist (uneven groups) or have a reward; all by default.
    scale: Divide by the standard deviation of the `"group"`, of the whole `"batch"` (TRL's option), or by
      nothing, `"none"` (Dr. GRPO, arXiv:2503.20783, whose authors show that the division favours prompts that are
      almost always or almost never solved).
    ddof: 1 for the unbiased standard deviation (verl, TRL, AReaL), 0 for the population's (EasyDeL, MaxText).
    eps: Added to the standard deviation. TRL uses 1e-4, verl 1e-6.

  Returns:
    `[..., G]`, 0 where the mask is 0; positive for completions that are better than their group.

  Raises:
    ValueError: For another `scale`.

  Reference: Z. Shao et al., "DeepSeekMath" (GRPO), arXiv:2402.03300.

  >>> print(group_normalized(jnp.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).round(2))
  [[-1.  0.  1.]
   [ 0.  0.  0.]]
  """
  if scale not in ("group", "batch", "none"):
    raise ValueError(f"scale must be 'group', 'batch' or 'none', got {scale!r}")
  mask = jnp.ones_like(rewards) if mask is None else mask
  rewards = zero_masked(rewards, mask)
  live = as_bool(mask) & ~_is_constant(rewards, mask)
  centred = zero_masked(rewards - _group_mean(rewards, mask), live)
  if scale == "none":
    return centred
  if scale == "batch":
    variance = masked_variance(rewards, mask, ddof=ddof)
  else:
    degrees = jnp.maximum(masked_count(mask, axis=-1) - ddof, 1)
    variance = (jnp.sum(jnp.square(centred), axis=-1) / degrees)[..., None]
  # Where the variance is 0 the advantage is 0 too; sqrt(1) there keeps its gradient finite.
  std = jnp.sqrt(jnp.where(variance > 0, variance, 1))
  return centred / (std + eps)


def leave_one_out(
  rewards: Float[Array, "*batch G"], mask: Array | None = None
) -> Float[Array, "*batch G"]:
  """`A_i = s_i - mean of the other G - 1 rewards of the group` (RLOO). Groups of one get 0.

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: Which entries exist; all by default.

  Returns:
    `[..., G]`, 0 where the mask is 0; positive for completions that are better than their group.

  Reference: A. Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization", arXiv:2402.14740.

  >>> print(leave_one_out(jnp.array([0.0, 0.0, 3.0])))
  [-1.5 -1.5  3. ]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  rewards = zero_masked(rewards, mask)
  live = as_bool(mask) & ~_is_constant(rewards, mask)
  count = masked_count(mask, axis=-1)[..., None]
  return zero_masked(
    (rewards - _group_mean(rewards, mask)) * (count / jnp.maximum(count - 1, 1)), live
  )


def by_group_ids(estimator: Estimator, *, num_groups: int, max_group_size: int) -> Callable[..., Array]:
  """Turns an estimator on `[groups, G]` into one on flat rewards with a group id each.

  Args:
    estimator: `(rewards [groups, G], mask) -> [groups, G]`, such as `group_normalized`.
    num_groups: Ids run from 0 to `num_groups - 1`.
    max_group_size: The largest number of rewards that share an id; further ones would get NaN.

  Returns:
    `(rewards [N], group_ids [N]) -> [N]`.

  >>> rloo = by_group_ids(leave_one_out, num_groups=2, max_group_size=3)
  >>> print(rloo(jnp.array([0.0, 1.0, 0.0, 3.0, 5.0]), jnp.array([0, 1, 0, 0, 1])))
  [-1.5 -4.  -1.5  3.   4. ]
  """

  def estimate(rewards: Float[Array, " N"], group_ids: Int[Array, " N"]) -> Float[Array, " N"]:
    chex.assert_equal_shape([rewards, group_ids])
    order = jnp.argsort(group_ids, stable=True)
    sorted_ids = group_ids[order]
    place_sorted = jnp.arange(rewards.size) - jnp.searchsorted(sorted_ids, sorted_ids)
    place = jnp.zeros_like(place_sorted).at[order].set(place_sorted)
    shape = (num_groups, max_group_size)
    padded = jnp.zeros(shape, rewards.dtype).at[group_ids, place].set(rewards, mode="drop")
    mask = jnp.zeros(shape, bool).at[group_ids, place].set(True, mode="drop")
    return estimator(padded, mask).at[group_ids, place].get(mode="fill", fill_value=jnp.nan)

  return estimate


def zero_variance(rewards: Float[Array, "*batch G"], mask: Array | None = None) -> Array:
  """Returns `[...]` booleans: the groups whose rewards are all equal, which teach nothing.

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: Which entries exist; all by default.

  >>> print(zero_variance(jnp.array([[1.0, 1.0], [0.0, 1.0]])))
  [ True False]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  return jax.lax.stop_gradient(_is_constant(rewards, mask)[..., 0])
