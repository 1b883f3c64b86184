"""Per-token policy losses. Each factory returns `(log_ratio, advantages) -> loss [..., T]`, to be minimised."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

Surrogate = Callable[[Array, Array], Array]


def clip(*, low: float | Array = 0.2, high: float | Array = 0.2) -> Surrogate:
  """The clipped surrogate, `max(-A r, -A clip(r, 1 - low, 1 + high))` with `r = exp(log_ratio)`.

  The gradient is that of `-A r`, and 0 where `A > 0, r > 1 + high` or `A < 0, r < 1 - low`. Where `A < 0` it grows
  with r without bound, and float32 overflows at a log-ratio of 88: see `dual_clip`.

  Args:
    low: How far the ratio may fall below 1 before the gradient stops.
    high: How far it may rise above 1. `high > low` is DAPO's asymmetric clip ("clip-higher").

  Returns:
    `(log_ratio [..., T], advantages [..., T]) -> loss [..., T]`, minimised.

  Reference: J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347 (eq. 7).

  >>> loss = clip(low=0.2, high=0.2)
  >>> losses = loss(jnp.log(jnp.array([1.1, 1.5, 0.5, 1.5])), jnp.array([1.0, 1.0, -1.0, -1.0]))
  >>> [f"{x:.2f}" for x in losses]
  ['-1.10', '-1.20', '0.80', '1.50']
  """

  def surrogate(log_ratio: Array, advantages: Array) -> Array:
    # The pessimistic side of the clip, taken before exp: a ratio that is clipped away may then be as large as it likes.
    above = jnp.minimum(log_ratio, jnp.log1p(high))
    below = jnp.maximum(log_ratio, jnp.log(jnp.maximum(1 - jnp.asarray(low), 0)))
    return -advantages * jnp.exp(jnp.where(advantages > 0, above, below))

  return surrogate


def dual_clip(*, low: float | Array = 0.2, high: float | Array = 0.2, bound: float | Array = 3.0) -> Surrogate:
  """The clipped surrogate with a ceiling for negative advantages: where `A < 0`, `min(clip's loss, -A bound)`.

  Without it, a token that the policy has made much likelier (`r >> 1`) and whose advantage is negative has an unbounded
  loss. The gradient is 0 where `A < 0, r > bound`.

  Args:
    low: As for `clip`.
    high: As for `clip`.
    bound: The ratio at which the loss stops growing, above 1.

  Returns:
    `(log_ratio [..., T], advantages [..., T]) -> loss [..., T]`, minimised.

  Reference: D. Ye et al., "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning",
  arXiv:1912.09729. verl applies it by default, with 3.

  >>> [f"{x:.2f}" for x in dual_clip()(jnp.log(jnp.array([5.0, 5.0])), jnp.array([1.0, -1.0]))]
  ['-1.20', '3.00']
  """
  clipped = clip(low=low, high=high)

  def surrogate(log_ratio: Array, advantages: Array) -> Array:
    bounded = jnp.where(advantages < 0, jnp.minimum(log_ratio, jnp.log(bound)), log_ratio)
    return clipped(bounded, advantages)

  return surrogate


def is_stopped(surrogate: Surrogate, log_ratio: Array, advantages: Array) -> Array:
  """Returns where a surrogate passes no gradient although the advantage is not 0: the tokens that it clipped.

  Computed from the derivative in `log_ratio`, so it holds for any surrogate, one written tomorrow included.

  >>> print(is_stopped(clip(), jnp.log(jnp.array([1.5, 1.5])), jnp.array([1.0, -1.0])))
  [ True False]
  """
  _, slope = jax.jvp(lambda x: surrogate(x, advantages), (log_ratio,), (jnp.ones_like(log_ratio),))
  return jax.lax.stop_gradient((slope == 0) & (advantages != 0))
