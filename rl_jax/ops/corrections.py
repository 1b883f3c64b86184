"""Corrections for tokens that another policy sampled than the one that is trained: weights, and what to keep.

The sampler's log-probs `mu` (behavior) differ from the learner's own at the start of the update, `old`, because the
sampler is another program, or older, or truncates. With `rho = exp(old - mu)`, importance weights multiply a token's
loss and rejection masks drop tokens; they are separate results, and whether the denominators count what was dropped is
decided by the objective: `objectives.base.weighted` keeps the original ones, `masked` counts what is kept.

All are parameter-free: computed once, on the global batch. To correct at every update rather than once a batch, pass
`batch_logp` for `old_logp`; to do without the `old` pass ("bypass"), pass the behavior's log-probs for `old`.
Log-ratios are clamped to +-`max_log_ratio` before exp, by default to the 20 of verl; NeMo-RL and AReaL do not clamp.

A token whose behavior log-prob is NaN has no known ratio: its weight is 0, it is kept by no mask, and it stands in no
metric; with ratios of sequences, so does its whole row.

Reference: F. Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025, TIS).
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_jax.ops import kl
from rl_jax.ops.masking import as_bool, masked_count, masked_mean, masked_sum, zero_masked
from rl_jax.ops.metrics import EffectiveSize, Max, Mean, Metrics
from rl_jax.ops.numerics import largest_exponent

Level = Literal["token", "sequence", "geometric"]


def log_ratio(old_logp: Array, behavior_logp: Array, mask: Array) -> Float[Array, "*batch T"]:
  """Returns `old - mu`, 0 where the mask is 0, without a gradient.

  >>> print(log_ratio(jnp.array([-1.0, 0.0]), jnp.array([-1.5, jnp.nan]), jnp.array([1, 0])))
  [0.5 0. ]
  """
  chex.assert_equal_shape([old_logp, behavior_logp, mask])
  return jax.lax.stop_gradient(zero_masked(old_logp, mask) - zero_masked(behavior_logp, mask))


def _known(ratio: Array, mask: Array) -> Bool[Array, "*batch T"]:
  return as_bool(mask) & ~jnp.isnan(ratio)


def _clamped(ratio: Array, limit: float | Array | None) -> Array:
  limit = largest_exponent(ratio) if limit is None else limit
  return jnp.clip(ratio, -jnp.asarray(limit), limit)


def importance(
  old_logp: Array,
  behavior_logp: Array,
  mask: Array,
  *,
  level: Level = "token",
  max_log_ratio: float | Array | None = 20.0,
) -> Float[Array, "*batch T"]:
  """Importance weights `rho`, of tokens or of sequences.

  Args:
    old_logp: Log-probs `[..., T]` of the policy at the start of the update.
    behavior_logp: Those of the distribution that was sampled from.
    mask: 1 for tokens that are trained on.
    level: "token": `exp(old_t - mu_t)`; "sequence": their product over the sequence, unbiased and of high variance;
      "geometric": their geometric mean.
    max_log_ratio: Clamp of the logarithm of the weight; None for that of `numerics.largest_exponent`.

  Returns:
    `[..., T]`, 0 where the mask is 0; the same at all tokens of a row unless `level` is "token".

  Raises:
    ValueError: For another level.

  >>> old, mu = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.5]))
  >>> print(importance(old, mu, jnp.ones(2)), importance(old, mu, jnp.ones(2), level="sequence"))
  [2. 1.] [2. 2.]
  """
  ratio = log_ratio(old_logp, behavior_logp, mask)
  if level == "sequence":
    ratio = jnp.broadcast_to(jnp.sum(ratio, axis=-1, keepdims=True), mask.shape)
  elif level == "geometric":
    ratio = jnp.broadcast_to(masked_mean(ratio, mask, axis=-1)[..., None], mask.shape)
  elif level != "token":
    raise ValueError(f"level must be 'token', 'sequence' or 'geometric', got {level!r}")
  return zero_masked(jnp.exp(_clamped(ratio, max_log_ratio)), _known(ratio, mask))


def truncated(
  old_logp: Array,
  behavior_logp: Array,
  mask: Array,
  *,
  level: Level = "token",
  low: float | Array = 0.0,
  high: float | Array = 2.0,
  max_log_ratio: float | Array | None = 20.0,
) -> Float[Array, "*batch T"]:
  """Truncated importance sampling (TIS): `clip(rho, low, high)`. Arguments as `importance`.

  Args:
    old_logp: As for `importance`.
    behavior_logp: As for `importance`.
    mask: As for `importance`.
    level: As for `importance`.
    low: The smallest weight; OpenRLHF also truncates from below.
    high: The largest weight.
    max_log_ratio: As for `importance`.

  >>> print(truncated(jnp.array([0.0, -1.0]), jnp.array([-5.0, -1.0]), jnp.ones(2)))
  [2. 1.]
  """
  weights = importance(old_logp, behavior_logp, mask, level=level, max_log_ratio=max_log_ratio)
  return zero_masked(jnp.clip(weights, low, high), weights > 0)


def icepop(
  old_logp: Array,
  behavior_logp: Array,
  mask: Array,
  *,
  level: Level = "token",
  low: float | Array = 0.5,
  high: float | Array = 5.0,
  max_log_ratio: float | Array | None = 20.0,
) -> Float[Array, "*batch T"]:
  """IcePop: `rho` inside `[low, high]` and 0 outside. Arguments as `importance`.

  Reference: Ling Team, "Every Step Evolves: Scaling Reinforcement Learning for Trillion-Scale Thinking Model",
  arXiv:2510.18855.

  >>> print(icepop(jnp.array([0.0, -1.0]), jnp.array([-5.0, -1.0]), jnp.ones(2)))
  [0. 1.]
  """
  weights = importance(old_logp, behavior_logp, mask, level=level, max_log_ratio=max_log_ratio)
  return jnp.where((weights >= low) & (weights <= high), weights, 0)


def self_normalized(weights: Array, mask: Array, *, level: Level = "token") -> Float[Array, "*batch T"]:
  """Divides weights by their mean over the batch, so that they average 1 (self-normalized importance sampling).

  Args:
    weights: `[..., T]`, from `truncated` and the like.
    mask: 1 for tokens that are trained on.
    level: The mean is over tokens, or over sequences of each one's mean.

  Returns:
    `[..., T]`; unchanged where the mean is 0.

  >>> print(self_normalized(jnp.array([1.0, 3.0]), jnp.ones(2)))
  [0.5 1.5]
  """
  if level == "token":
    mean = masked_mean(weights, mask)
  else:
    mean = masked_mean(masked_mean(weights, mask, axis=-1), jnp.any(as_bool(mask), axis=-1))
  return zero_masked(weights / jnp.where(mean > 1e-8, mean, 1), mask)


_ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}
Statistic = Literal["token", "sequence_sum", "sequence_mean", "sequence_max"]


def keep_close(
  old_logp: Array,
  behavior_logp: Array,
  mask: Array,
  *,
  estimator: Literal["k1", "k2", "k3"] = "k1",
  statistic: Statistic = "token",
  low: float | Array = -jnp.inf,
  high: float | Array = jnp.inf,
  max_log_ratio: float | Array | None = 20.0,
) -> Bool[Array, "*batch T"]:
  """Keeps tokens, or sequences, whose divergence `KL(mu || old)` lies in `[low, high]`; rejects the others.

  Args:
    old_logp: Log-probs `[..., T]` of the policy at the start of the update.
    behavior_logp: Those of the distribution that was sampled from.
    mask: 1 for tokens that are trained on.
    estimator: Estimator of the KL: `k1 = mu - old`, `k2 = k1^2 / 2`, `k3 = expm1(-k1) + k1`, in nats. verl gives its
      bounds on k1 as ratios `exp(k1)`: its "0.5_2.0" is `low=log(0.5), high=log(2)` here.
    statistic: Each token by itself, or the sum, mean (for k1: the log of the geometric mean ratio) or maximum over the
      sequence, which is then kept or rejected as a whole.
    low: Smallest value that is kept.
    high: Largest value that is kept.
    max_log_ratio: Clamp of each token's log-ratio; None for none but that of `numerics.largest_exponent`.

  Returns:
    `[..., T]` booleans, False where the mask is 0.

  Raises:
    ValueError: For another estimator or statistic.

  >>> old, mu = jnp.array([[-1.0, -1.0]]), jnp.array([[-1.0, -4.0]])
  >>> print(keep_close(old, mu, jnp.ones((1, 2)), low=-1.0, high=1.0))
  [[ True False]]
  >>> print(keep_close(old, mu, jnp.ones((1, 2)), statistic="sequence_mean", low=-1.0, high=1.0))
  [[False False]]
  """
  if estimator not in _ESTIMATORS:
    raise ValueError(f"estimator must be one of {sorted(_ESTIMATORS)}, got {estimator!r}")
  ratio = _clamped(log_ratio(old_logp, behavior_logp, mask), max_log_ratio)
  divergence = _ESTIMATORS[estimator](jnp.zeros_like(ratio), ratio)
  if statistic == "sequence_sum":
    divergence = masked_sum(divergence, mask, axis=-1)[..., None]
  elif statistic == "sequence_mean":
    divergence = masked_mean(divergence, mask, axis=-1)[..., None]
  elif statistic == "sequence_max":
    divergence = jnp.max(jnp.where(as_bool(mask), divergence, -jnp.inf), axis=-1, keepdims=True)
  elif statistic != "token":
    raise ValueError(f"statistic must be 'token', 'sequence_sum', 'sequence_mean' or 'sequence_max', got {statistic!r}")
  return jnp.broadcast_to((divergence >= low) & (divergence <= high), mask.shape) & as_bool(mask)


def keep_without_outliers(
  old_logp: Array, behavior_logp: Array, mask: Array, *, low: float | Array = 1e-4, high: float | Array = 1e4
) -> Bool[Array, "*batch T"]:
  """Rejects whole sequences that hold a token with `rho` outside `[low, high]` (a token veto).

  Args:
    old_logp: As for `keep_close`.
    behavior_logp: As for `keep_close`.
    mask: As for `keep_close`.
    low: Smallest token ratio.
    high: Largest token ratio.

  >>> print(keep_without_outliers(jnp.array([[-20.0, -1.0]]), jnp.array([[-1.0, -1.0]]), jnp.ones((1, 2))))
  [[False False]]
  """
  ratio = log_ratio(old_logp, behavior_logp, mask)
  inside = (ratio >= jnp.log(low)) & (ratio <= jnp.log(high)) | ~as_bool(mask)
  return jnp.all(inside, axis=-1, keepdims=True) & as_bool(mask)


def keep_on_policy_failures(
  logp: Array, behavior_logp: Array, advantages: Array, mask: Array, *, delta: float | Array
) -> Bool[Array, "*batch T"]:
  """Off-policy sequence masking: drops what has a negative advantage and a mean `mu - logp` above `delta`.

  A failure that the learner would hardly produce any more teaches it little.

  Args:
    logp: The learner's log-probs `[..., T]`, at the start of the update or, as `batch_logp`, at this one.
    behavior_logp: Those of the distribution that was sampled from.
    advantages: One a token.
    mask: 1 for tokens that are trained on.
    delta: Threshold in nats a token.

  Reference: DeepSeek-AI, "DeepSeek-V3.2", arXiv:2512.02556 (section on keeping RL stable); TRL's
  `off_policy_mask_threshold`.

  >>> logp, mu = jnp.array([[-3.0], [-3.0]]), jnp.array([[-1.0], [-1.0]])
  >>> print(keep_on_policy_failures(logp, mu, jnp.array([[1.0], [-1.0]]), jnp.ones((2, 1)), delta=0.5))
  [[ True]
   [False]]
  """
  gap = masked_mean(-log_ratio(logp, behavior_logp, mask), mask, axis=-1)[..., None]
  return ((zero_masked(advantages, mask) >= 0) | (gap <= delta)) & _known(jnp.broadcast_to(gap, mask.shape), mask)


def keep_second_moment(
  logp: Array,
  behavior_logp: Array,
  advantages: Array,
  mask: Array,
  *,
  limit: float | Array = 0.04,
  only_at_risk: bool = True,
) -> Bool[Array, "*batch T"]:
  """M2PO: drops the fewest tokens, largest `(log rho)^2` first, so that the mean of what stays is at most `limit`.

  The mean is over the global batch. Where only some tokens may be dropped it can stay above the limit.

  Args:
    logp: The learner's log-probs `[..., T]`, at the start of the update or, as `batch_logp`, at this one.
    behavior_logp: Those of the distribution that was sampled from.
    advantages: One a token.
    mask: 1 for tokens that are trained on.
    limit: Largest second moment, in nats squared.
    only_at_risk: Whether only tokens that a clip could stop are dropped: `A > 0` with `rho > 1`, `A < 0` with
      `rho < 1`. AReaL drops any.

  Reference: H. Zheng et al., "Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?"
  (M2PO), arXiv:2510.01161.

  >>> logp, mu = jnp.array([-1.0, -1.0, -1.0]), jnp.array([-1.0, -1.1, -3.0])
  >>> print(keep_second_moment(logp, mu, jnp.ones(3), jnp.ones(3)))
  [ True  True False]
  """
  ratio = log_ratio(logp, behavior_logp, mask)
  mask = _known(ratio, mask)
  ratio, at_risk = zero_masked(ratio, mask), mask
  if only_at_risk:
    at_risk = at_risk & (ratio * zero_masked(advantages, mask) > 0)
  # Candidates by their squared log-ratio, largest first; what may not be dropped counts as 0 here.
  squared = jnp.where(at_risk, jnp.square(ratio), 0)
  descending = -jnp.sort(-squared, axis=None)
  # Row k: the mean of what stays when the k largest are dropped, with what cannot be dropped counted in full.
  fixed = jnp.sum(jnp.where(mask & ~at_risk, jnp.square(ratio), 0))
  left = fixed + jnp.cumsum(descending[::-1])[::-1]
  mean = left / jnp.maximum(masked_count(mask) - jnp.arange(squared.size), 1)
  drop = jnp.argmax(jnp.concatenate([mean <= limit, jnp.ones(1, bool)]))  # the smallest k that is enough, or all
  drop = jnp.minimum(drop, jnp.sum(at_risk))
  # The rank of each token in that order; those of the first `drop` ranks go.
  order = jnp.argsort(-squared, axis=None, stable=True)
  rank = jnp.zeros(squared.size, drop.dtype).at[order].set(jnp.arange(squared.size, dtype=drop.dtype))
  return mask & ~(at_risk & (rank.reshape(mask.shape) < drop))


def mismatch(old_logp: Array, behavior_logp: Array, mask: Array) -> Metrics:
  """Metrics of how far the sampler is from the learner.

  `mismatch_mean` and `mismatch_max`: mean and largest `|old - mu|`, in nats; `mismatch_kl`: KL(mu || old) by k3, in
  nats; `ess`: the effective sample size `mean(rho)^2 / mean(rho^2)`.

  Args:
    old_logp: Log-probs `[..., T]` of the policy at the start of the update.
    behavior_logp: Those of the distribution that was sampled from.
    mask: 1 for tokens that are trained on.

  >>> from rl_jax.ops import metrics
  >>> seen = metrics.results(mismatch(jnp.array([-1.0, -1.0]), jnp.array([-1.0, -1.5]), jnp.ones(2)))
  >>> seen["mismatch_mean"], seen["mismatch_max"]
  (0.25, 0.5)
  """
  ratio = log_ratio(old_logp, behavior_logp, mask)
  mask = _known(ratio, mask)
  ratio = zero_masked(ratio, mask)
  rho = jnp.exp(_clamped(ratio, 20.0))
  return {
    "mismatch_mean": Mean.of(jnp.abs(ratio), mask),
    "mismatch_max": Max.of(jnp.abs(ratio), mask),
    "mismatch_kl": Mean.of(rho - 1 - ratio, mask),
    "ess": EffectiveSize.of(rho, mask),
  }


def effective_sample_size(old_logp: Array, behavior_logp: Array, mask: Array) -> Float[Array, ""]:
  """Returns `mean(rho)^2 / mean(rho^2)` over tokens, in (0, 1]: the fraction of them that the weights leave in effect.

  >>> float(effective_sample_size(jnp.array([-1.0, -1.0]), jnp.array([-1.0, -1.0]), jnp.ones(2)))
  1.0
  """
  rho = importance(old_logp, behavior_logp, mask)
  mask = rho > 0
  return jnp.square(masked_mean(rho, mask)) / jnp.maximum(masked_mean(jnp.square(rho), mask), 1e-30)


def chi_squared(
  old_logp: Array, behavior_logp: Array, mask: Array, *, level: Literal["token", "sequence"] = "token"
) -> Float[Array, ""]:
  """Returns the chi-squared divergence estimate `mean(rho^2) - 1`, over tokens or over sequences that have tokens.

  >>> float(chi_squared(jnp.array([-1.0, -1.0]), jnp.array([-1.0, -1.0]), jnp.ones(2)))
  0.0
  """
  rho = importance(old_logp, behavior_logp, mask, level=level)
  mask = rho > 0
  if level == "token":
    mean = masked_mean(jnp.square(rho), mask)
  else:
    mean = masked_mean(jnp.square(jnp.max(rho, axis=-1)), jnp.any(mask, axis=-1))
  return jnp.where(jnp.any(mask), mean - 1, 0)
