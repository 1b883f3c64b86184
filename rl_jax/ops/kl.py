"""Per-token estimators of KL(policy || reference) from log-probs of the sampled tokens.

With `d = log ref(a) - log policy(a)` and `a` drawn from the policy, each estimates the same divergence:

  k1 = -d               unbiased, signed, high variance
  k2 = d^2 / 2          biased, and as a loss its gradient is an unbiased one of the KL
  k3 = expm1(d) - d     unbiased and never negative

As *loss terms* they differ: the gradient of k1 is the score function, whose mean is zero, so it pulls nowhere.

Reference: J. Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html;
"Rethinking KL regularization in RLHF", arXiv:2506.09477.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.ops.masking import upcast


def _log_ratio(logp: Array, ref_logp: Array, max_log_ratio: float | None) -> Array:
  chex.assert_equal_shape([logp, ref_logp])
  d = upcast(ref_logp) - upcast(logp)
  return d if max_log_ratio is None else jnp.clip(d, -max_log_ratio, max_log_ratio)


def k1(
  logp: Float[Array, "*batch T"], ref_logp: Float[Array, "*batch T"], *, max_log_ratio: float | None = None
) -> Float[Array, "*batch T"]:
  """Returns `log policy - log reference`.

  Args:
    logp: Learner's log-probs `[..., T]`, in nats.
    ref_logp: The reference's log-probs of the same tokens.
    max_log_ratio: If given, the difference is clamped to +-this first (gradient 0 beyond it).

  Returns:
    `[..., T]`, in nats; of either sign.

  >>> print(k1(jnp.array([-1.0]), jnp.array([-1.5])))
  [0.5]
  """
  return -_log_ratio(logp, ref_logp, max_log_ratio)


def k2(
  logp: Float[Array, "*batch T"], ref_logp: Float[Array, "*batch T"], *, max_log_ratio: float | None = None
) -> Float[Array, "*batch T"]:
  """Returns `(log policy - log reference)^2 / 2`, `[..., T]`, at least 0. Arguments as `k1`.

  >>> print(k2(jnp.array([-1.0]), jnp.array([-1.5])))
  [0.125]
  """
  return 0.5 * jnp.square(_log_ratio(logp, ref_logp, max_log_ratio))


def k3(
  logp: Float[Array, "*batch T"], ref_logp: Float[Array, "*batch T"], *, max_log_ratio: float | None = None
) -> Float[Array, "*batch T"]:
  """Returns `expm1(d) - d` with `d = log reference - log policy`, `[..., T]`, at least 0.

  Arguments as `k1`. Its gradient in `logp` is `-expm1(d)`. Without `max_log_ratio`, float32 overflows to inf at
  `d > 88`; verl clamps `d` to +-20 (and the estimate to +-10), TRL does not clamp.

  >>> print(k3(jnp.array([-1.0]), jnp.array([-1.5])).round(4))
  [0.1065]
  """
  d = _log_ratio(logp, ref_logp, max_log_ratio)
  return jnp.expm1(d) - d
