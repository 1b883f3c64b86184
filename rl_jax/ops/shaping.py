"""From what was said of completions to the rewards of their tokens: which scores count, where, and on what scale."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_jax.ops import moments as moments_lib
from rl_jax.ops import rewards as rewards_lib
from rl_jax.ops.kl import Estimator
from rl_jax.ops.masking import masked_sum
from rl_jax.ops.moments import Moments


class Rewards(NamedTuple):
  """What is learned from.

  Attributes:
    completions: `[...]`, the weighted sum of the scores of completions, 0 where none applies.
    tokens: `[..., T]`, that of the scores of tokens; None where there are none.
    rewarded: `[...]`, where at least one of them applies.
  """

  completions: Float[Array, "*batch"]
  tokens: Float[Array, "*batch T"] | None
  rewarded: Bool[Array, "*batch"]

  @property
  def total(self) -> Float[Array, "*batch"]:
    """The reward of each completion; 0 where none applies."""
    return self.completions if self.tokens is None else self.completions + jnp.sum(self.tokens, axis=-1)

  @property
  def known(self) -> Float[Array, "*batch"]:
    """The reward of each completion; NaN where none applies."""
    return jnp.where(self.rewarded, self.total, jnp.nan)


def combine(scores: Mapping[str, Array], weights: Mapping[str, float | Array], mask: Array) -> Rewards:
  """Returns the weighted sum of scores, and where there is a reward: where one of them applies.

  One that does not apply counts as 0 beside others that do.

  Args:
    scores: `[...]`, or `[..., T]` for those of tokens; NaN where one does not apply. One of weight 0 has no place here.
    weights: Weight of each score, by name.
    mask: `[..., T]`, 1 for real tokens.

  >>> scores = {"exact": jnp.array([1.0, jnp.nan, jnp.nan]), "length": jnp.array([0.3, 0.3, jnp.nan])}
  >>> rewards = combine(scores, {"exact": 1.0, "length": 0.5}, jnp.ones((3, 3)))
  >>> print(rewards.total, rewards.rewarded)
  [1.15 0.15 0.  ] [ True  True False]
  """
  shape = mask.shape[:-1]
  completions, rewarded, tokens = jnp.zeros(shape), jnp.zeros(shape, bool), None
  for name, score in scores.items():
    weight, applies = weights[name], ~jnp.isnan(score)
    if score.ndim == mask.ndim:
      applies &= mask != 0
      counted = jnp.where(applies, weight * score, 0)
      tokens = counted if tokens is None else tokens + counted
      rewarded |= jnp.any(applies, axis=-1)
    else:
      completions += jnp.where(applies, weight * score, 0)
      rewarded |= applies
  return Rewards(completions, tokens, rewarded)


def of_completion(score: Array, mask: Array) -> Float[Array, "*batch"]:
  """Returns a score of completions `[...]` as it is, and one of tokens `[..., T]` as its sum.

  The sum is over the tokens where the score applies, and NaN where it applies to none.

  >>> print(of_completion(jnp.array([[1.0, 2.0, jnp.nan], [jnp.nan, 5.0, 0.0]]), jnp.array([[1, 1, 1], [1, 0, 0]])))
  [ 3. nan]
  """
  if score.ndim < mask.ndim:
    return score
  applies = ~jnp.isnan(score) & (mask != 0)
  return jnp.where(jnp.any(applies, axis=-1), masked_sum(score, applies, axis=-1), jnp.nan)


class Shaping(NamedTuple):
  """How rewards of completions become rewards of tokens.

  Attributes:
    spread: None puts a completion's reward on its last token; a number in (0, 1] spreads it over all of them, with that
      discount a token going back from the end.
    kl: The estimator of the KL to the reference that each token pays, weighed by the coefficient `kl_coef`; None for
      none.
    missing_eos_penalty: What is taken from completions that were truncated.
    clip: Rewards are clipped to plus or minus this, after they were standardized; None for no limit.
  """

  spread: float | None = None
  kl: Estimator | None = None
  missing_eos_penalty: float = 0.0
  clip: float | None = None


PLAIN = Shaping()


def standardized(rewards: Float[Array, "*batch"], moments: Moments | None) -> Float[Array, "*batch"]:
  """Returns `(s - mean) / std` by running moments; rewards as they are without.

  A deviation that rounding alone can make, of a few units in the mean's last place, divides by no less than that.

  >>> print(standardized(jnp.array([3.0]), Moments(jnp.array(2.0), jnp.array(2.0), jnp.array(0.5))))
  [2.]
  """
  if moments is None:
    return rewards
  rounding = 8 * jnp.finfo(moments.mean.dtype).eps * jnp.abs(moments.mean)
  return (rewards - moments.mean) / jnp.maximum(moments.std, jnp.maximum(rounding, 1e-6))


def updated(moments: Moments | None, rewards: Rewards) -> Moments | None:
  """Adds a batch's rewards to the running moments, where there are any.

  >>> rewards = Rewards(jnp.array([1.0, 3.0]), None, jnp.array([True, True]))
  >>> print(updated(Moments.zero(), rewards).mean)
  2.0
  """
  return None if moments is None else moments_lib.update(moments, rewards.total, rewards.rewarded)


def token_rewards(
  shaping: Shaping, rewards: Rewards, terminated: Array, mask: Array, *, moments: Moments | None = None
) -> Float[Array, "*batch T"]:
  """Returns the reward that follows each token, without a KL (`ops.rewards.with_kl`).

  Args:
    shaping: How rewards of completions become rewards of tokens.
    rewards: What `combine` returns.
    terminated: `[...]`, whether a stop token ended the completion.
    mask: `[..., T]`, 1 for the real tokens of completions that have a reward.
    moments: Running moments by which rewards of completions are standardized.

  Raises:
    ValueError: If rewards of tokens are to be spread or standardized.

  >>> rewards = Rewards(jnp.array([2.0]), None, jnp.array([True]))
  >>> print(token_rewards(Shaping(), rewards, jnp.array([True]), jnp.array([[1, 1, 0]])))
  [[0. 2. 0.]]
  """
  limit = jnp.inf if shaping.clip is None else shaping.clip
  penalty = jnp.where(terminated, 0, -shaping.missing_eos_penalty)
  if rewards.tokens is not None:
    if shaping.spread is not None:
      raise ValueError("spread is for rewards of completions; some of these are of tokens already")
    if moments is not None:
      raise ValueError("rewards of tokens do not go with the running moments of completions' rewards")
    at_tokens = rewards.tokens + rewards_lib.terminal(rewards.completions, mask)
    return jnp.clip(jnp.where(mask != 0, at_tokens, 0), -limit, limit) + rewards_lib.terminal(penalty, mask)
  scores = jnp.clip(standardized(rewards.completions, moments), -limit, limit) + penalty
  if shaping.spread is None:
    return rewards_lib.terminal(scores, mask)
  return rewards_lib.spread(scores, mask, gamma=shaping.spread)
