"""Returns and generalized advantage estimation over time, right to left.

Both forms of GAE solve the same linear recurrence `x_t = a_t x_{t+1} + b_t`: `gae` by a sequential scan, which reads
like the paper, `gae_associative` in parallel over time.
"""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.ops.masking import as_bool, masked_count, masked_variance, zero_masked

Holes = Literal["carry", "zero"]
_BLOCK = 64


def _check(rewards: Array, values: Array, mask: Array, holes: str) -> None:
  if holes not in ("carry", "zero"):
    raise ValueError(f"holes must be 'carry' or 'zero', got {holes!r}")
  chex.assert_equal_shape([rewards, values, mask])


def _same_type(*arrays: Array) -> tuple[Array, ...]:
  return tuple(x.astype(jnp.result_type(*arrays)) for x in arrays)


def _stepped(mask: Array, holes: Holes) -> Array:
  """Where the recursion takes a step: at real tokens only ("carry"), or at every slot up to the last one."""
  if holes == "carry":
    return as_bool(mask)
  place, last = _places(mask)
  return place <= last


def _places(mask: Array) -> tuple[Array, Array]:
  """The number of each slot, and of each row's last real one, `[..., 1]`; -1 in a row without any."""
  place = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1)
  return place, jnp.max(jnp.where(as_bool(mask), place, -1), axis=-1, keepdims=True, initial=-1)


def discounted_returns(
  rewards: Float[Array, "*batch T"], mask: Array, *, gamma: float | Array = 1.0, holes: Holes = "carry"
) -> Float[Array, "*batch T"]:
  """The discounted reward-to-go, `G_t = R_t + gamma G_{t+1}`.

  Args:
    rewards: `[..., T]`, the reward that follows the token chosen at t.
    mask: 1 where a token was chosen.
    gamma: Discount a token, a scalar or `[...]`.
    holes: As for `gae`.

  Returns:
    `[..., T]`, 0 where the mask is 0.

  Reference: R. J. Williams, "Simple Statistical Gradient-Following Algorithms" (1992).

  >>> print(discounted_returns(jnp.array([0.0, 0.0, 1.0]), jnp.ones(3), gamma=0.5))
  [0.25 0.5  1.  ]
  """
  return gae(rewards, jnp.zeros_like(rewards), mask, gamma=gamma, lam=1.0, holes=holes)[0]


def td_errors(
  rewards: Float[Array, "*batch T"],
  values: Float[Array, "*batch T"],
  mask: Array,
  *,
  gamma: float | Array = 1.0,
  last_value: float | Array = 0.0,
  holes: Holes = "carry",
) -> Float[Array, "*batch T"]:
  """The temporal-difference errors, `d_t = R_t + gamma V_{t+1} - V_t`. Arguments as `gae`.

  >>> print(td_errors(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.25]), jnp.ones(2)))
  [-0.25  0.75]
  """
  return gae(rewards, values, mask, gamma=gamma, lam=0.0, last_value=last_value, holes=holes)[0]


def explained_variance(
  values: Float[Array, "*batch T"], returns: Float[Array, "*batch T"], mask: Array
) -> Float[Array, ""]:
  """`1 - var(R - V) / var(R)` over all tokens: 1 for a perfect critic, 0 for a constant one, below for a worse one.

  Args:
    values: `[..., T]`, the critic's.
    returns: `[..., T]`, what they should be.
    mask: 1 where a token was chosen.

  Returns:
    A scalar; 0 where all returns are equal.

  >>> returns = jnp.array([0.0, 1.0, 2.0])
  >>> [float(explained_variance(values, returns, jnp.ones(3))) for values in (returns, jnp.zeros(3))]
  [1.0, 0.0]
  """
  left = masked_variance(zero_masked(returns, mask) - zero_masked(values, mask), mask)
  total = masked_variance(returns, mask)
  return jnp.where(total > 0, 1 - left / jnp.where(total > 0, total, 1), 0)


def length_adaptive_lambda(mask: Array, *, alpha: float | Array = 0.05) -> Float[Array, "*batch"]:
  """VAPO's lambda for the policy, `1 - 1 / max(alpha n, 1)` for a sequence of n tokens, to be passed to `gae` as `lam`.

  The longer the sequence, the farther the bootstrapping reaches: the sum of `lam^t` stays proportional to n. See
  `decoupled_gae`.

  Args:
    mask: `[..., T]`, 1 where a token was chosen.
    alpha: Share of the sequence.

  Returns:
    `[...]`, in [0, 1).

  Reference: Y. Yue et al., "VAPO", arXiv:2504.05118 (eq. 10).

  >>> print(length_adaptive_lambda(jnp.ones((1, 40))))
  [0.5]
  """
  return 1 - 1 / jnp.maximum(alpha * masked_count(mask, axis=-1), 1)


def gae(
  rewards: Float[Array, "*batch T"],
  values: Float[Array, "*batch T"],
  mask: Array,
  *,
  gamma: float | Array = 1.0,
  lam: float | Array = 0.95,
  last_value: float | Array = 0.0,
  holes: Holes = "carry",
) -> tuple[Float[Array, "*batch T"], Float[Array, "*batch T"]]:
  """Generalized advantage estimation.

    d_t = R_t + gamma V_{t+1} - V_t
    A_t = d_t + gamma lam A_{t+1}
    returns_t = A_t + V_t

  Args:
    rewards: `[..., T]`, the reward that follows the token chosen at t.
    values: `[..., T]`, the value estimate *before* that token.
    mask: 1 where a token was chosen. Slots after the last one are padding and never leak.
    gamma: Discount a token, a scalar or `[...]`.
    lam: 1 gives Monte Carlo advantages, 0 one-step TD errors; a scalar or `[...]`.
    last_value: `V` after the last token, a scalar or `[...]`: 0 for a finished sequence, a value to bootstrap a
      truncated one.
    holes: Interior slots with mask 0 (tool output): `"carry"` skips them, so that the token before a hole sees the
      value and advantage of the token after it (verl); `"zero"` steps through them with reward and value 0
      (OpenRLHF), so each costs a factor `gamma lam`.

  Returns:
    Advantages and returns `[..., T]`, 0 where the mask is 0.

  Raises:
    ValueError: For another convention on holes.

  Reference: J. Schulman et al., "High-Dimensional Continuous Control Using GAE", arXiv:1506.02438.

  >>> advantages, returns = gae(
  ...     jnp.array([0.0, 0.0, 1.0]), jnp.array([0.5, 0.5, 0.5]), jnp.ones(3), gamma=1.0, lam=1.0)
  >>> print(advantages, returns)
  [0.5 0.5 0.5] [1. 1. 1.]
  """
  _check(rewards, values, mask, holes)
  rewards, values = _same_type(zero_masked(rewards, mask), zero_masked(values, mask))
  stepped = _stepped(mask, holes)
  gamma, lam = (jnp.broadcast_to(jnp.asarray(x, values.dtype), values.shape[:-1]) for x in (gamma, lam))

  def step(carry: tuple[Array, Array], slot: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
    next_value, next_advantage = carry
    reward, value, taken = slot
    advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
    advantage = jnp.where(taken, advantage, next_advantage)
    return (jnp.where(taken, value, next_value), advantage), advantage

  bootstrap = jnp.broadcast_to(jnp.asarray(last_value, values.dtype), values.shape[:-1])
  bootstrap = jnp.where(jnp.any(as_bool(mask), axis=-1), bootstrap, 0)
  slots = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (rewards, values, stepped))
  _, advantages = jax.lax.scan(step, (bootstrap, jnp.zeros_like(bootstrap)), slots, reverse=True)
  advantages = jnp.moveaxis(advantages, 0, -1)
  return zero_masked(advantages, mask), zero_masked(advantages + values, mask)


def decoupled_gae(
  rewards: Float[Array, "*batch T"],
  values: Float[Array, "*batch T"],
  mask: Array,
  *,
  gamma: float | Array = 1.0,
  alpha: float | Array = 0.05,
  value_lam: float | Array = 1.0,
  last_value: float | Array = 0.0,
  holes: Holes = "carry",
) -> tuple[Float[Array, "*batch T"], Float[Array, "*batch T"]]:
  """VAPO's estimates: advantages with `length_adaptive_lambda`, and the critic's returns with another lambda.

  Args:
    rewards: As for `gae`.
    values: As for `gae`.
    mask: As for `gae`.
    gamma: As for `gae`.
    alpha: As for `length_adaptive_lambda`.
    value_lam: Lambda of the returns.
    last_value: As for `gae`.
    holes: As for `gae`.

  Returns:
    Advantages and returns `[..., T]`, 0 where the mask is 0.

  Reference: Y. Yue et al., "VAPO", arXiv:2504.05118 (sections 4.2 and 4.3).

  >>> advantages, returns = decoupled_gae(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.25]), jnp.ones(2))
  >>> print(advantages, returns)
  [-0.25  0.75] [1. 1.]
  """
  options: Any = dict(gamma=gamma, last_value=last_value, holes=holes)
  advantages, _ = gae(rewards, values, mask, lam=length_adaptive_lambda(mask, alpha=alpha), **options)
  _, returns = gae(rewards, values, mask, lam=value_lam, **options)
  return advantages, returns


def gae_associative(
  rewards: Float[Array, "*batch T"],
  values: Float[Array, "*batch T"],
  mask: Array,
  *,
  gamma: float | Array = 1.0,
  lam: float | Array = 0.95,
  last_value: float | Array = 0.0,
  holes: Holes = "carry",
) -> tuple[Float[Array, "*batch T"], Float[Array, "*batch T"]]:
  """The same as `gae`, in every argument, result and error, in parallel over time. All real tokens must be finite.

  Real tokens are moved together where a mask has interior holes to skip, so that the recurrence has one factor a row.
  Within blocks of time it is then a product with a triangular matrix; the blocks are joined by an associative scan.
  Moving tokens is a sort, slow on a CPU: `gae` is the faster one there for masks that do have such holes.

  Reference: G. Blelloch, "Prefix Sums and Their Applications", CMU-CS-90-190 (1990).

  >>> advantages, returns = gae_associative(
  ...     jnp.array([0.0, 0.0, 1.0]), jnp.array([0.5, 0.5, 0.5]), jnp.ones(3), gamma=1.0, lam=1.0)
  >>> print(advantages, returns)
  [0.5 0.5 0.5] [1. 1. 1.]
  """
  _check(rewards, values, mask, holes)

  # Each branch starts from the arguments and ends with the results: what crosses its border is written to memory.
  def contiguous(rewards: Array, values: Array, mask: Array) -> tuple[Array, Array]:
    rewards, values = _same_type(zero_masked(rewards, mask), zero_masked(values, mask))
    place, last = _places(mask)
    shifted = jnp.pad(values[..., 1:], [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    following = jnp.where(place == last, _per_row(last_value, values), shifted)
    errors = rewards + _per_row(gamma, values) * following - values
    decay = jnp.asarray(gamma, values.dtype) * jnp.asarray(lam, values.dtype)
    advantages = _geometric_recurrence(decay, jnp.where(place <= last, errors, 0))
    return zero_masked(advantages, mask), zero_masked(advantages + values, mask)

  def with_holes(rewards: Array, values: Array, mask: Array) -> tuple[Array, Array]:
    chosen = as_bool(mask)
    operands = (~chosen, rewards, values)
    hole, moved_rewards, moved_values = jax.lax.sort(operands, dimension=-1, is_stable=True, num_keys=1)
    place = jnp.maximum(jnp.cumsum(chosen, axis=-1) - 1, 0)
    advantages = jnp.take_along_axis(contiguous(moved_rewards, moved_values, ~hole)[0], place, axis=-1)
    return zero_masked(advantages, mask), zero_masked(advantages, mask) + zero_masked(values, mask)

  if holes == "zero":
    return contiguous(rewards, values, mask)
  whole = jnp.all(as_bool(mask) == _stepped(mask, "zero"))
  return jax.lax.cond(whole, contiguous, with_holes, rewards, values, mask)


def _per_row(x: float | Array, like: Array) -> Array:
  """Gives a scalar or one number a row the shape of `like [..., T]`, with a time axis of 1."""
  return jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape[:-1])[..., None]


def _geometric_recurrence(decay: Array, b: Array) -> Array:
  """Solves `x_t = decay x_{t+1} + b_t [..., T]` with `x_T = 0`; `decay` is a scalar or one number a row."""
  length = b.shape[-1]
  blocks = -(-length // _BLOCK)
  padded = jnp.pad(b, [(0, 0)] * (b.ndim - 1) + [(0, blocks * _BLOCK - length)])
  padded = padded.reshape(*b.shape[:-1], blocks, _BLOCK)
  place = jnp.arange(_BLOCK)
  ahead = place[:, None] - place[None, :]  # from column t to row s, for x_t = sum_{s >= t} decay^(s - t) b_s
  powers = jnp.where(ahead >= 0, _power(decay, jnp.maximum(ahead, 0)), 0)
  # Within a block the recurrence is a product with a triangle of powers.
  local = jnp.matmul(padded, powers, precision=jax.lax.Precision.HIGHEST)

  def join(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
    return later[0] * earlier[0], earlier[0] * later[1] + earlier[1]

  # Between blocks it is the same recurrence, of blocks' first values, with decay^64 for decay.
  starts = jnp.broadcast_to(_power(decay, jnp.array([_BLOCK])), local.shape[:-1]), local[..., 0]
  _, firsts = jax.lax.associative_scan(join, starts, reverse=True, axis=local.ndim - 2)
  # What comes after a block reaches each of its places, faded by the distance.
  after = jnp.concatenate([firsts[..., 1:], jnp.zeros_like(firsts[..., :1])], axis=-1)
  fading = _power(decay, _BLOCK - place)[..., None, :]
  total = local + after[..., None] * jnp.broadcast_to(fading, local.shape)
  return total.reshape(*b.shape[:-1], blocks * _BLOCK)[..., :length]


def _power(base: Array, exponents: Array) -> Array:
  """`base^n` for each of `base [...]` and each n, `[..., *exponents.shape]`."""
  exponents = exponents.reshape(*[1] * base.ndim, *exponents.shape)
  return jnp.power(base.reshape(*base.shape, *[1] * (exponents.ndim - base.ndim)), exponents)
