"""Exponentials that stay finite."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_MARGIN = 24.0  # in nats: room for factors of exp(24), such as importance weights and sums over a batch


def largest_exponent(x: Array) -> float:
  """Returns the clamp of exponents of `x`'s type: 64.7 in float32 (which overflows at 88.7), 685.7 in float64.

  In float16 it is half the largest one, 5.5: there is no more room.

  >>> round(largest_exponent(jnp.zeros(1)), 1)
  64.7
  """
  overflow = float(np.log(float(jnp.finfo(x.dtype).max)))
  return overflow - min(_MARGIN, overflow / 2)


def safe_exp(x: Array, limit: float | Array | None = None) -> Array:
  """Returns `exp(min(x, limit))`, whose gradient is 0 beyond the limit.

  Args:
    x: Exponents, in float32 at least.
    limit: `largest_exponent` by default, below which the result is exact.

  >>> print(safe_exp(jnp.array([0.0, 90.0])) < jnp.inf)
  [ True  True]
  """
  return jnp.exp(jnp.minimum(x, largest_exponent(x) if limit is None else limit))
