"""Log importance ratios. Each factory returns `(logp, old_logp, mask) -> log-ratio [..., T]`."""

from collections.abc import Callable

import chex
from jaxtyping import Array

from rl_jax.ops.masking import zero_masked

Ratio = Callable[[Array, Array, Array], Array]


def token() -> Ratio:
  """One ratio per token: `log r_t = log pi(a_t) - log pi_old(a_t)`.

  Returns:
    `(logp, old_logp, mask) -> [..., T]`, 0 where the mask is 0.

  Reference: J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347.

  >>> import jax.numpy as jnp
  >>> print(token()(jnp.array([-1.0, jnp.nan]), jnp.array([-1.5, 0.0]), jnp.array([1, 0])))
  [0.5 0. ]
  """

  def log_ratio(logp: Array, old_logp: Array, mask: Array) -> Array:
    chex.assert_equal_shape([logp, old_logp, mask])
    return zero_masked(logp, mask) - zero_masked(old_logp, mask)

  return log_ratio
