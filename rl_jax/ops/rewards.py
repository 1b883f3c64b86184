"""Shaping of rewards, composed before the advantage: penalties on completions, and where on the tokens a reward sits.

A reward of a completion is `[...]`, rewards of tokens are `[..., T]`: the one at t follows the token chosen at t.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rl_jax.ops import kl
from rl_jax.ops.kl import Estimator
from rl_jax.ops.masking import as_bool, zero_masked


def _is_last(mask: Array) -> Bool[Array, "*batch T"]:
  left = jnp.flip(jnp.cumsum(jnp.flip(as_bool(mask), -1), axis=-1), -1)
  return as_bool(mask) & (left == 1)


def terminal(rewards: Float[Array, "*batch"], mask: Array) -> Float[Array, "*batch T"]:
  """Puts a completion's reward on its last token. A completion without tokens loses it.

  Args:
    rewards: `[...]`.
    mask: `[..., T]`, 1 where a token was chosen.

  >>> print(terminal(jnp.array([2.0]), jnp.array([[1, 1, 0]])))
  [[0. 2. 0.]]
  """
  return jnp.where(_is_last(mask), jnp.broadcast_to(rewards[..., None], mask.shape), 0)


def spread(rewards: Float[Array, "*batch"], mask: Array, *, gamma: float | Array = 1.0) -> Float[Array, "*batch T"]:
  """Spreads a completion's reward over its tokens, from the end back: `R_t = s gamma^(tokens after t) / sum`.

  The rewards of a completion add up to `s`. With `gamma = 1` every token gets the same.

  Args:
    rewards: `[...]`.
    mask: `[..., T]`, 1 where a token was chosen.
    gamma: How fast the share falls going back, in (0, 1].

  >>> print(spread(jnp.array([3.0]), jnp.array([[1, 1, 0]]), gamma=0.5))
  [[1. 2. 0.]]
  """
  after = jnp.flip(jnp.cumsum(jnp.flip(as_bool(mask), -1), axis=-1), -1) - 1
  share = jnp.where(as_bool(mask), jnp.power(jnp.asarray(gamma, jnp.result_type(float)), jnp.maximum(after, 0)), 0)
  total = jnp.sum(share, axis=-1, keepdims=True)
  spread_out = share / jnp.where(total > 0, total, 1) * jnp.broadcast_to(rewards[..., None], mask.shape)
  return jnp.where(as_bool(mask), spread_out, 0)


def at_steps(
  step_rewards: Float[Array, "*batch S"], ends: Int[Array, "*batch S"], mask: Array
) -> Float[Array, "*batch T"]:
  """Puts the rewards of a process reward model at the ends of their steps.

  Args:
    step_rewards: `[..., S]`.
    ends: `[..., S]`, the slot of each step's last token; a negative one marks a step that does not exist. Rewards of
      steps that end in the same slot add up; that of a step that ends where the mask is 0 is dropped.
    mask: `[..., T]`, 1 where a token was chosen.

  >>> print(at_steps(jnp.array([[1.0, 2.0, 9.0]]), jnp.array([[0, 2, -1]]), jnp.ones((1, 3))))
  [[1. 0. 2.]]
  """
  slots = jnp.arange(mask.shape[-1])
  hit = ends[..., :, None] == jnp.broadcast_to(slots, (*ends.shape, slots.size))
  placed = jnp.sum(jnp.where(hit, jnp.where(ends >= 0, step_rewards, 0)[..., None], 0), axis=-2)
  return zero_masked(placed, mask)


def with_kl(
  token_rewards: Float[Array, "*batch T"],
  old_logp: Array,
  ref_logp: Array,
  mask: Array,
  *,
  coef: float | Array,
  estimator: Estimator = kl.k1,
) -> Float[Array, "*batch T"]:
  """`R_t - coef KL_t(policy || reference)`: the KL in the reward, where it belongs to the return of earlier tokens too.

  Use this *or* `objectives.base.kl_penalty`, not both.

  Args:
    token_rewards: `[..., T]`, such as from `terminal`.
    old_logp: The sampling policy's log-probs.
    ref_logp: The reference's, at the same temperature.
    mask: 1 where a token was chosen.
    coef: Weight of the KL.
    estimator: An estimator from `ops.kl`; k1 is unbiased and, in a reward, has the right gradient.

  Reference: D. M. Ziegler et al., "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593.

  >>> print(with_kl(jnp.array([0.0, 1.0]), jnp.array([-1.0, -1.0]), jnp.array([-2.0, -1.0]), jnp.ones(2), coef=0.1))
  [-0.1  1. ]
  """
  divergence = estimator(zero_masked(old_logp, mask), zero_masked(ref_logp, mask))
  return zero_masked(token_rewards, mask) - coef * divergence


def overlong_penalty(
  lengths: Array, *, max_length: int, buffer: int, factor: float | Array = 1.0, capped: bool = True
) -> Float[Array, "*batch"]:
  """The soft punishment of overlong completions: 0 up to `max_length - buffer`, then falling linearly to `-factor`.

  Args:
    lengths: Tokens of each completion.
    max_length: The longest completion wanted.
    buffer: Tokens over which the penalty grows.
    factor: The largest penalty within `max_length`.
    capped: Whether it stays at `-factor` beyond `max_length` (the paper); verl lets it grow on.

  Returns:
    To be added to the rewards, at most 0.

  Raises:
    ValueError: If the buffer is not between 1 and `max_length`.

  Reference: Q. Yu et al., "DAPO", arXiv:2503.14476 (eq. 13).

  >>> print(overlong_penalty(jnp.array([10, 15, 30]), max_length=20, buffer=10))
  [ 0.  -0.5 -1. ]
  """
  if isinstance(buffer, int) and isinstance(max_length, int) and not 1 <= buffer <= max_length:
    raise ValueError(f"buffer must be between 1 and max_length={max_length}, got {buffer}")
  over = jnp.maximum((lengths - (max_length - buffer)) / buffer, 0)
  return -factor * (jnp.minimum(over, 1) if capped else over) + 0.0


def missing_eos_penalty(
  rewards: Float[Array, "*batch"], terminated: Bool[Array, "*batch"], *, penalty: float | Array, replace: bool = False
) -> Float[Array, "*batch"]:
  """Takes `penalty` from completions that were truncated.

  Args:
    rewards: `[...]`.
    terminated: Whether an end-of-sequence token ended the completion.
    penalty: What is taken, a positive number.
    replace: Whether `-penalty` takes the reward's place (InstructGPT's summaries, `non_eos_penalty`).

  >>> print(missing_eos_penalty(jnp.array([1.0, 1.0]), jnp.array([True, False]), penalty=1.0))
  [1. 0.]
  """
  return jnp.where(terminated, rewards, -jnp.asarray(penalty) + (0 if replace else rewards))


def mask_truncated(mask: Array, terminated: Bool[Array, "*batch"]) -> Array:
  """Leaves completions that were truncated out of the loss (DAPO's overlong filtering).

  >>> print(mask_truncated(jnp.ones((2, 2)), jnp.array([True, False])))
  [[1. 1.]
   [0. 0.]]
  """
  return jnp.where(jnp.broadcast_to(terminated[..., None], mask.shape), mask, jnp.zeros_like(mask))


def length_penalty(
  rewards: Float[Array, "*batch G"], lengths: Array, correct: Bool[Array, "*batch G"], mask: Array | None = None
) -> Float[Array, "*batch G"]:
  """Adds a reward for being short within the group: `l = 1/2 - (n - min n) / (max n - min n)`, at most 0 if wrong.

  Args:
    rewards: `[..., G]`, groups on the last axis.
    lengths: Tokens of each completion.
    correct: Whether the completion is right; a wrong one gets `min(l, 0)`.
    mask: Which entries exist; all by default.

  Returns:
    `[..., G]`; unchanged in groups of equal lengths, 0 where the mask is 0.

  Reference: Kimi Team, "Kimi k1.5: Scaling Reinforcement Learning with LLMs", arXiv:2501.12599 (section 2.3.3).

  >>> print(length_penalty(jnp.array([1.0, 1.0, 0.0]), jnp.array([10, 20, 10]), jnp.array([True, True, False])))
  [1.5 0.5 0. ]
  """
  mask = jnp.ones_like(rewards) if mask is None else mask
  lengths = lengths.astype(jnp.result_type(float))
  shortest = jnp.min(jnp.where(as_bool(mask), lengths, jnp.inf), axis=-1, keepdims=True)
  longest = jnp.max(jnp.where(as_bool(mask), lengths, -jnp.inf), axis=-1, keepdims=True)
  differ = longest > shortest
  term = 0.5 - (lengths - shortest) / jnp.where(differ, longest - shortest, 1)
  term = jnp.where(correct, term, jnp.minimum(term, 0))
  return zero_masked(rewards, mask) + jnp.where(as_bool(mask) & differ, term, 0)
