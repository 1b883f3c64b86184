"""Advantages from one reward a completion, groups on the last axis: `[..., G] -> [..., G]`.

They are finished before the update, on the global batch. Uneven groups come either padded with a mask, or flat with
explicit ids through `by_group_ids`: never by a reshape that assumes equal sizes. Advantages of tokens are in
`ops.token_advantages`.
"""

from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from rl_jax.ops.masking import as_bool, is_constant, masked_count, masked_mean, masked_sum, masked_variance, zero_masked


def _group_mean(rewards: Array, mask: Array) -> Array:
  return masked_sum(rewards, mask, axis=-1)[..., None] / jnp.maximum(masked_count(mask, axis=-1), 1)[..., None]


def _is_constant(rewards: Array, mask: Array) -> Array:
  """Whether the rewards of each group are equal, `[..., 1]`."""
  return is_constant(rewards, mask, axis=-1)[..., None]


def _variance(rewards: Array, mask: Array, ddof: int) -> Array:
  """Variance of each group, `[..., 1]`; exactly 0 where all its rewards are equal."""
  deviation = zero_masked(rewards - _group_mean(rewards, mask), as_bool(mask) & ~_is_constant(rewards, mask))
  degrees = jnp.maximum(masked_count(mask, axis=-1) - ddof, 1)[..., None]
  return jnp.sum(jnp.square(deviation), axis=-1, keepdims=True) / degrees


def group_normalized(
  rewards: Float[Array, "*batch G"],
  mask: Array | None = None,
  *,
  scale: Literal["group", "batch", "none"] = "group",
  ddof: int = 1,
  eps: float | Array = 1e-6,
  leave_self_out: bool | Literal["mean"] = False,
) -> Float[Array, "*batch G"]:
  """`A_i = (s_i - mean_G(s)) / (std_G(s) + eps)`.

  Groups with equal rewards, groups of one and empty groups get exactly 0, in value and in gradient.

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: Which entries exist (uneven groups) or have a reward; all by default.
    scale: Divide by the standard deviation of the `"group"`, of the whole `"batch"` (TRL's option), or by
      nothing, `"none"` (Dr. GRPO, arXiv:2503.20783, whose authors show that the division favors prompts that are
      almost always or almost never solved).
    ddof: 1 for the unbiased standard deviation (verl, TRL, AReaL), 0 for the population's (EasyDeL, MaxText).
    eps: Added to the standard deviation. TRL uses 1e-4, verl 1e-6.
    leave_self_out: Whether mean and standard deviation of the group are those of the other completions (an option of
      NeMo-RL), or only the mean is, `"mean"`: the deviation is then the root mean square of the distances from those
      means (an option of AReaL). Where the others are equal, as around the one success of a group, True divides by
      nothing.

  Returns:
    `[..., G]`, 0 where the mask is 0; positive for completions that are better than their group.

  Raises:
    ValueError: For another `scale` or `leave_self_out`.

  Reference: Z. Shao et al., "DeepSeekMath" (GRPO), arXiv:2402.03300.

  >>> print(group_normalized(jnp.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).round(2))
  [[-1.  0.  1.]
   [ 0.  0.  0.]]
  """
  if leave_self_out not in (True, False, "mean"):
    raise ValueError(f"leave_self_out must be True, False or 'mean', got {leave_self_out!r}")
  if scale not in ("group", "batch", "none"):
    raise ValueError(f"scale must be 'group', 'batch' or 'none', got {scale!r}")
  mask = jnp.ones_like(rewards) if mask is None else mask
  rewards = zero_masked(rewards, mask)
  live = as_bool(mask) & ~_is_constant(rewards, mask)
  centered = leave_one_out(rewards, mask) if leave_self_out else zero_masked(rewards - _group_mean(rewards, mask), live)
  if scale == "none":
    return centered
  if scale == "batch":
    variance = masked_variance(rewards, mask, ddof=ddof)
  elif leave_self_out is True:
    shape = (*rewards.shape, rewards.shape[-1])  # for each member, the group without it
    itself = jnp.broadcast_to(jnp.eye(shape[-1], dtype=bool), shape)
    others = jnp.broadcast_to(as_bool(mask)[..., None, :], shape) & ~itself
    variance = _variance(jnp.broadcast_to(rewards[..., None, :], shape), others, ddof)[..., 0]
  elif leave_self_out == "mean":
    degrees = jnp.maximum(masked_count(mask, axis=-1) - ddof, 1)[..., None]
    variance = jnp.sum(jnp.square(centered), axis=-1, keepdims=True) / degrees
  else:
    variance = _variance(rewards, mask, ddof)
  # The gradient of a root at 0 is infinite.
  std = jnp.sqrt(jnp.where(variance > 0, variance, 1))
  return centered / jnp.where(variance > 0, std + eps, 1)


def leave_one_out(rewards: Float[Array, "*batch G"], mask: Array | None = None) -> Float[Array, "*batch G"]:
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
  return zero_masked((rewards - _group_mean(rewards, mask)) * (count / jnp.maximum(count - 1, 1)), live)


def baseline(
  rewards: Float[Array, "*batch"], mask: Array | None = None, *, value: float | Array | None = None
) -> Float[Array, "*batch"]:
  """`A_i = s_i - b` with the batch's mean reward as the baseline b, or a given one (REINFORCE with a baseline).

  Args:
    rewards: One scalar a completion.
    mask: Which entries exist; all by default.
    value: The baseline, such as a running mean (`running_mean`); a scalar or of the rewards' shape.

  Returns:
    An array of the rewards' shape, 0 where the mask is 0.

  Reference: R. J. Williams, "Simple Statistical Gradient-Following Algorithms" (1992).

  >>> print(baseline(jnp.array([0.0, 1.0])), baseline(jnp.array([0.0, 1.0]), value=1.0))
  [-0.5  0.5] [-1.  0.]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  rewards = zero_masked(rewards, mask)
  if value is not None:
    return zero_masked(rewards - value, mask)
  differ = ~is_constant(rewards, mask)
  return zero_masked(rewards - masked_mean(rewards, mask), as_bool(mask) & jnp.broadcast_to(differ, mask.shape))


def running_mean(
  previous: Float[Array, ""], rewards: Float[Array, "*batch"], mask: Array | None = None, *, decay: float | Array = 0.95
) -> Float[Array, ""]:
  """`b' = decay b + (1 - decay) mean(s)`: a baseline that outlives the batch, to be kept in the training state.

  It also serves self-play, where each role keeps its own (role-conditioned advantages). An empty batch changes nothing.

  Reference: B. Liu et al., "SPIRAL: Self-Play on Zero-Sum Games Incentivizes Reasoning", arXiv:2506.24119.

  >>> f"{running_mean(jnp.array(1.0), jnp.array([0.0, 0.0])):.2f}"
  '0.95'
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  updated = decay * previous + (1 - decay) * masked_mean(rewards, mask)
  return jnp.where(jnp.any(as_bool(mask)), updated, previous)


def remax(
  rewards: Float[Array, "*batch G"], greedy_rewards: Float[Array, "*batch"], mask: Array | None = None
) -> Float[Array, "*batch G"]:
  """`A_i = s_i - s(greedy completion of the same prompt)` (ReMax).

  Args:
    rewards: One scalar a completion, groups on the last axis.
    greedy_rewards: `[...]`, one a prompt.
    mask: Which entries exist; all by default.

  Reference: Z. Li et al., "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large
  Language Models", arXiv:2310.10505.

  >>> print(remax(jnp.array([[1.0, 0.0]]), jnp.array([0.5])))
  [[ 0.5 -0.5]]
  """
  return baseline(rewards, mask, value=greedy_rewards[..., None])


def opo(rewards: Float[Array, "*batch G"], lengths: Array, mask: Array | None = None) -> Float[Array, "*batch G"]:
  """`A_i = s_i - sum(n s) / sum(n)` over the group: the optimal baseline if gradients grow with the length.

  Args:
    rewards: One scalar a completion, groups on the last axis.
    lengths: Tokens of each completion, of the rewards' shape.
    mask: Which entries exist; all by default.

  Returns:
    `[..., G]`; groups of one get 0 (verl gives them the reward itself).

  Reference: Y. Hao et al., "On-Policy RL with Optimal Reward Baseline" (OPO), arXiv:2505.23585.

  >>> print(opo(jnp.array([0.0, 1.0]), jnp.array([1, 3])))
  [-0.75  0.25]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  rewards, lengths = zero_masked(rewards, mask), zero_masked(lengths.astype(jnp.result_type(float)), mask)
  total = jnp.sum(lengths, axis=-1, keepdims=True)
  optimal = jnp.sum(lengths * rewards, axis=-1, keepdims=True) / jnp.where(total > 0, total, 1)
  return zero_masked(rewards - optimal, as_bool(mask) & ~_is_constant(rewards, mask))


def gpg(
  rewards: Float[Array, "*batch G"], mask: Array | None = None, *, f_norm: float | Array = 1.0
) -> Float[Array, "*batch G"]:
  """`A_i = alpha (s_i - mean_G(s)) / f_norm` with `alpha = B / (number of nonzero rewards in the batch)`.

  alpha makes up for samples that teach nothing. It is a statistic of the batch.

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: Which entries exist; all by default.
    f_norm: A constant, or the group's standard deviation.

  Reference: X. Chu et al., "GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning",
  arXiv:2504.02546; alpha as in verl, which counts nonzero rewards.

  >>> print(gpg(jnp.array([[0.0, 1.0], [0.0, 0.0]])))
  [[-2.  2.]
   [ 0.  0.]]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  alpha = masked_count(mask) / jnp.maximum(masked_count(zero_masked(rewards, mask)), 1)
  f_norm = jnp.asarray(f_norm)  # 0 where it is the deviation of equal rewards, whose advantages are 0 anyway
  return alpha * group_normalized(rewards, mask, scale="none") / jnp.where(f_norm == 0, 1, f_norm)


def pass_at_k(
  rewards: Float[Array, "*batch G"], mask: Array | None = None, *, normalize: bool = False, eps: float | Array = 1e-6
) -> Float[Array, "*batch G"]:
  """Only the best of a group learns: `(max - second max) [/ (std_G + eps)]` for it, 0 for the others.

  An unbiased gradient of the expected best of G. Groups of one, and groups whose best two are equal, get 0.

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: Which entries exist; all by default.
    normalize: Whether to divide by the group's standard deviation (ddof 1), as verl does by default.
    eps: Added to the standard deviation.

  Reference: Y. Tang et al., "Optimizing Language Models for Inference Time Objectives using Reinforcement Learning",
  arXiv:2503.19595.

  >>> print(pass_at_k(jnp.array([0.0, 3.0, 1.0])))
  [0. 2. 0.]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  rewards = zero_masked(rewards, mask)
  ranked = jnp.where(as_bool(mask), rewards, -jnp.inf)
  best = jax.nn.one_hot(jnp.argmax(ranked, axis=-1), rewards.shape[-1], dtype=bool)
  highest = jnp.max(ranked, axis=-1, keepdims=True)
  second = jnp.max(jnp.where(best, -jnp.inf, ranked), axis=-1, keepdims=True)
  lead = jnp.where(best & (second > -jnp.inf), highest - jnp.where(second > -jnp.inf, second, 0), 0)
  if not normalize:
    return zero_masked(lead, mask)
  variance = _variance(rewards, mask, ddof=1)
  return zero_masked(lead / (jnp.sqrt(jnp.where(variance > 0, variance, 1)) + eps), mask)


def maxrl(rewards: Float[Array, "*batch G"], mask: Array | None = None) -> Float[Array, "*batch G"]:
  """`A_i = (s_i - mean_G(s)) / mean_G(s)`, and 0 for groups whose mean is not positive (MaxRL).

  With 0/1 rewards it approaches the gradient of the log-likelihood of success as G grows.

  Reference: "Maximum Likelihood Reinforcement Learning" (MaxRL), arXiv:2602.02710.

  >>> print(maxrl(jnp.array([[0.0, 1.0], [0.0, 0.0]])))
  [[-1.  1.]
   [ 0.  0.]]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  mean = _group_mean(zero_masked(rewards, mask), mask)
  return group_normalized(rewards, mask, scale="none") * jnp.where(mean > 0, 1 / jnp.where(mean > 0, mean, 1), 0)


def normalize_then_sum(
  rewards: Float[Array, "K *batch G"],
  mask: Array | None = None,
  *,
  weights: Array | None = None,
  scale: Literal["group", "batch", "none"] = "group",
  ddof: int = 1,
  eps: float | Array = 1e-6,
  leave_self_out: bool | Literal["mean"] = False,
) -> Float[Array, "*batch G"]:
  """`A_i = sum_k w_k (s_ki - mean_G(s_k)) / (std_G(s_k) + eps)` of several rewards (GDPO), before whitening.

  Normalizing each reward by itself keeps one with a large spread from drowning the others. The result is whitened over
  the batch next: by samples (`whitened`: TRL, NeMo-RL) or by tokens (`masking.masked_whiten` after
  `broadcast_to_tokens`: verl). The other order, sum then normalize, is `group_normalized` of the weighted sum.

  Args:
    rewards: K rewards a completion, on the first axis.
    mask: Which completions exist, `[..., G]`, or which have each reward, `[K, ..., G]`; all by default.
    weights: `[K]`; all 1 by default.
    scale: As for `group_normalized`.
    ddof: As for `group_normalized`.
    eps: As for `group_normalized`.
    leave_self_out: As for `group_normalized`; NeMo-RL leaves it out by default.

  Reference: S. Liu et al., "GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL
  Optimization", arXiv:2601.05242.

  >>> both = normalize_then_sum(jnp.array([[0.0, 1.0], [0.0, 10.0]]), eps=0.0)
  >>> [f"{x:.3f}" for x in both]
  ['-1.414', '1.414']
  """
  weights = jnp.ones(rewards.shape[0]) if weights is None else weights
  masks = jnp.broadcast_to(jnp.ones(()) if mask is None else mask, rewards.shape)
  options: Any = dict(scale=scale, ddof=ddof, eps=eps, leave_self_out=leave_self_out)
  each = [group_normalized(*pair, **options) for pair in zip(rewards, masks, strict=True)]
  return sum((weight * part for weight, part in zip(weights, each, strict=True)), jnp.zeros(rewards.shape[1:]))


def whitened(
  advantages: Float[Array, "*batch"], mask: Array | None = None, *, ddof: int = 1, eps: float | Array = 1e-4
) -> Float[Array, "*batch"]:
  """`(A - mean) / (std + eps)` over all selected completions of the batch, 0 where they are all equal.

  Args:
    advantages: One scalar a completion.
    mask: Which entries exist; all by default.
    ddof: 1 for the unbiased standard deviation.
    eps: Added to the standard deviation; TRL's 1e-4.

  >>> print(whitened(jnp.array([0.0, 2.0]), ddof=0, eps=0.0))
  [-1.  1.]
  """
  mask = jnp.ones_like(advantages) if mask is None else mask
  flat = group_normalized(advantages.reshape(-1), mask.reshape(-1), ddof=ddof, eps=eps)
  return flat.reshape(advantages.shape)


def by_group_ids(
  estimator: Callable[..., Any], *, num_groups: int, max_group_size: int, exists: str | None = "mask"
) -> Callable[..., Any]:
  """Turns an estimator on `[groups, G]` into one on flat completions with a group id each.

  Args:
    estimator: `(rewards [groups, G], *others, mask=...) -> [groups, G]`, such as `group_normalized`, or `opo`, whose
      lengths come along as one of the others; or `-> [groups]`, such as `keep_groups`. Arrays of tokens
      `[groups, G, T]` serve too, as in `token_advantages`.
    num_groups: Ids run from 0 to `num_groups - 1`. Other ids, negative ones included, belong to no group and get NaN,
      or False.
    max_group_size: The largest number of completions that share an id; further ones likewise.
    exists: The argument of the estimator that says which completions exist, "group_mask" for
      `token_advantages.reinforce_plus_plus_baseline`; None for one that knows it by its mask of tokens, which comes as
      the last of the others (`optimal_token_baseline`).

  Returns:
    `(rewards [N, ...], group_ids [N], *others [N, ...]) -> [N, ...]`, or a tuple of such arrays.

  >>> rloo = by_group_ids(leave_one_out, num_groups=2, max_group_size=3)
  >>> print(rloo(jnp.array([0.0, 1.0, 0.0, 3.0, 5.0]), jnp.array([0, 1, 0, 0, 1])))
  [-1.5 -4.  -1.5  3.   4. ]
  """

  def estimate(rewards: Shaped[Array, "N ..."], group_ids: Int[Array, " N"], *others: Array) -> Any:
    chex.assert_equal_shape_prefix([rewards, group_ids, *others], 1)
    group_ids = jnp.where(group_ids < 0, num_groups, group_ids)  # a negative index would count from the end
    order = jnp.argsort(group_ids, stable=True)
    sorted_ids = group_ids[order]
    place_sorted = jnp.arange(group_ids.size) - jnp.searchsorted(sorted_ids, sorted_ids)
    place = jnp.zeros_like(place_sorted).at[order].set(place_sorted)
    shape = (num_groups, max_group_size)

    def in_groups(x: Array) -> Array:
      return jnp.zeros((*shape, *x.shape[1:]), x.dtype).at[group_ids, place].set(x, mode="drop")

    def flat(result: Array) -> Array:
      if result.ndim == 1:
        result = jnp.broadcast_to(result[:, None], shape)
      fill = False if result.dtype == jnp.bool_ else jnp.nan
      return result.at[group_ids, place].get(mode="fill", fill_value=fill)

    mask = {} if exists is None else {exists: in_groups(jnp.ones(group_ids.shape, bool))}
    return jax.tree.map(flat, estimator(*map(in_groups, (rewards, *others)), **mask))

  return estimate


def keep_groups(
  rewards: Float[Array, "*batch G"],
  mask: Array | None = None,
  *,
  low: float | Array | None = None,
  high: float | Array | None = None,
) -> Array:
  """Returns `[...]` booleans: the groups worth training on.

  Without bounds: those whose rewards are not all equal. With bounds: those with `low < mean < high`, such as a success
  rate strictly between 0 and 1. Judge by the *unshaped* reward: a length penalty makes every group look informative.
  Dynamic sampling draws prompts until enough groups are kept (DAPO).

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: Which entries exist; all by default.
    low: Groups with a mean at or below it are dropped.
    high: Groups with a mean at or above it are dropped.

  Reference: Q. Yu et al., "DAPO", arXiv:2503.14476.

  >>> print(keep_groups(jnp.array([[1.0, 1.0], [0.0, 1.0]])), keep_groups(jnp.array([[1.0, 1.0]]), low=0.0, high=1.1))
  [False  True] [ True]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  exists = jnp.any(as_bool(mask), axis=-1)
  if low is None and high is None:
    return exists & ~zero_variance(rewards, mask)
  mean = masked_mean(rewards, mask, axis=-1)
  above = True if low is None else mean > low
  below = True if high is None else mean < high
  return exists & above & below


def keep_top_k(advantages: Float[Array, "*batch G"], mask: Array | None = None, *, k: int) -> Array:
  """Returns `[..., G]` booleans: the k completions of each group whose advantages are largest in size.

  Training on those alone loses little of the gradient (down-sampling of rollouts). Ties go to the earlier one.

  Raises:
    ValueError: If `k` is below 1.

  >>> print(keep_top_k(jnp.array([0.1, -2.0, 1.0]), k=2))
  [False  True  True]
  """
  if k < 1:
    raise ValueError(f"k must be at least 1, got {k}")
  mask = jnp.ones_like(advantages) if mask is None else mask
  size = jnp.where(as_bool(mask), jnp.abs(zero_masked(advantages, mask)), -jnp.inf)
  order = jnp.argsort(-size, axis=-1, stable=True)
  rank = jnp.argsort(order, axis=-1, stable=True)
  return (rank < k) & as_bool(mask)


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
