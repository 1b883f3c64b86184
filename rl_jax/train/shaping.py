"""From a completion's score to the rewards of its tokens: normalisation, where it sits, and the KL in it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_jax.ops import moments, rewards
from rl_jax.ops.kl import Estimator
from rl_jax.ops.moments import Moments


class Shaping(NamedTuple):
  """How scores become rewards of tokens.

  Attributes:
    spread: None puts a completion's score on its last token; a number in (0, 1] spreads it over all of them, with that
      discount a token going back from the end.
    kl: The estimator of the KL to the reference that each token pays, weighed by the state's `kl_coef`; None for none.
    missing_eos_penalty: Taken from completions that were cut off.
    clip: Scores are clipped to plus or minus this, after they were normalised; None for no limit.
  """

  spread: float | None = None
  kl: Estimator | None = None
  missing_eos_penalty: float = 0.0
  clip: float | None = None


PLAIN = Shaping()


def normalized(
  scores: Float[Array, "P G"], rewarded: Bool[Array, "P G"], seen: Moments | None
) -> tuple[Float[Array, "P G"], Moments | None]:
  """Returns `(scores - mean) / std` of all seen scores, these included, and the new moments; unchanged without any.

  >>> scores, seen = normalized(jnp.array([[1.0, 3.0]]), jnp.ones((1, 2), bool), Moments.zero())
  >>> print(scores, seen.count)
  [[-1.  1.]] 2.0
  """
  if seen is None:
    return scores, None
  seen = moments.update(seen, scores, rewarded)
  return standardized(scores, seen), seen


def standardized(scores: Float[Array, "*batch"], seen: Moments | None) -> Float[Array, "*batch"]:
  """Returns `(scores - mean) / std` by moments; scores as they are without.

  >>> print(standardized(jnp.array([3.0]), Moments(jnp.array(2.0), jnp.array(2.0), jnp.array(0.5))))
  [2.]
  """
  return scores if seen is None else (scores - seen.mean) / jnp.maximum(seen.std, 1e-6)


def shaped_scores(shaping: Shaping, scores: Float[Array, "*batch"], stopped: Bool[Array, "*batch"]) -> Array:
  """Returns scores of completions, clipped, less the penalty of those that were cut off.

  >>> print(shaped_scores(Shaping(clip=1.0, missing_eos_penalty=0.5), jnp.array([3.0, 0.0]), jnp.array([True, False])))
  [ 1.  -0.5]
  """
  limit = jnp.inf if shaping.clip is None else shaping.clip
  return jnp.clip(scores, -limit, limit) - jnp.where(stopped, 0, shaping.missing_eos_penalty)


def token_rewards(
  shaping: Shaping,
  scores: Float[Array, "*batch"],
  stopped: Bool[Array, "*batch"],
  mask: Array,
  *,
  old_logp: Array | None = None,
  ref_logp: Array | None = None,
  kl_coef: float | Array | None = None,
) -> Float[Array, "*batch T"]:
  """Returns what follows each token: `R_t = score_t - kl_coef KL_t`.

  Args:
    shaping: How.
    scores: Of completions `[...]`, or of tokens `[..., T]` where a process reward model gave them.
    stopped: `[...]`, whether a stop token ended the completion.
    mask: `[..., T]`, 1 where a token was chosen.
    old_logp: `[..., T]`, the sampling policy's, where there is a KL.
    ref_logp: `[..., T]`, the reference's, at the same temperature.
    kl_coef: Weight of the KL.

  Raises:
    ValueError: If scores of tokens are to be spread, or the KL lacks what it is computed from.

  >>> print(token_rewards(Shaping(), jnp.array([2.0]), jnp.array([True]), jnp.array([[1, 1, 0]])))
  [[0. 2. 0.]]
  """
  limit = jnp.inf if shaping.clip is None else shaping.clip
  if scores.ndim == mask.ndim:
    if shaping.spread is not None:
      raise ValueError("spread is for scores of completions; these are of tokens already")
    end = jnp.where(stopped, 0, -shaping.missing_eos_penalty)
    given = jnp.clip(jnp.where(mask != 0, scores, 0), -limit, limit) + rewards.terminal(end, mask)
  elif shaping.spread is None:
    given = rewards.terminal(shaped_scores(shaping, scores, stopped), mask)
  else:
    given = rewards.spread(shaped_scores(shaping, scores, stopped), mask, gamma=shaping.spread)
  if shaping.kl is None:
    return given
  if old_logp is None or ref_logp is None or kl_coef is None:
    raise ValueError("a KL in the reward needs old_logp, ref_logp and kl_coef")
  return rewards.with_kl(given, old_logp, ref_logp, mask, coef=kl_coef, estimator=shaping.kl)
