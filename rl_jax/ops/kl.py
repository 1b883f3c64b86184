"""Per-token estimators of KL(policy || reference) from log-probs of the sampled tokens.

With `d = log ref(a) - log policy(a)` and `a` drawn from the policy, each estimates the same divergence:

  k1 = -d               unbiased, signed, high variance
  k2 = d^2 / 2          biased, and as a loss its gradient is an unbiased one of the KL
  k3 = expm1(d) - d     unbiased and never negative

As *loss terms* they differ: the gradient of k1 is the score function, whose mean is zero, so it pulls nowhere; that
of k2 is `-d` times the score function, whose mean is the gradient of the KL; that of k3 is `-expm1(d)` times the score
function, whose mean is the gradient of the *other* KL, KL(reference || policy). `straight_through` combines the value
of one with the gradient of k2.

Reference: J. Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html;
"Rethinking KL regularization in RLHF", arXiv:2506.09477.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.ops.masking import upcast
from rl_jax.ops.numerics import largest_exponent

Estimator = Callable[[Array, Array], Array]


def _log_ratio(logp: Array, ref_logp: Array, max_log_ratio: float | None) -> Array:
  chex.assert_equal_shape([logp, ref_logp])
  d = upcast(ref_logp) - upcast(logp)
  return d if max_log_ratio is None else jnp.clip(d, -max_log_ratio, max_log_ratio)


def _at_most(estimate: Array, max_value: float | None) -> Array:
  return estimate if max_value is None else jnp.minimum(estimate, max_value)


def k1(
  logp: Float[Array, "*batch T"],
  ref_logp: Float[Array, "*batch T"],
  *,
  max_log_ratio: float | None = None,
  max_value: float | None = None,
) -> Float[Array, "*batch T"]:
  """Returns `log policy - log reference`.

  Args:
    logp: Learner's log-probs `[..., T]`, in nats.
    ref_logp: The reference's log-probs of the same tokens.
    max_log_ratio: If given, the difference is clamped to +-this first (gradient 0 beyond it).
    max_value: If given, the estimate is clamped to this from above (gradient 0 beyond it).

  Returns:
    `[..., T]`, in nats; of either sign.

  >>> print(k1(jnp.array([-1.0]), jnp.array([-1.5])))
  [0.5]
  """
  return _at_most(-_log_ratio(logp, ref_logp, max_log_ratio), max_value)


def k2(
  logp: Float[Array, "*batch T"],
  ref_logp: Float[Array, "*batch T"],
  *,
  max_log_ratio: float | None = None,
  max_value: float | None = None,
) -> Float[Array, "*batch T"]:
  """Returns `(log policy - log reference)^2 / 2`, `[..., T]`, at least 0. Arguments as `k1`.

  >>> print(k2(jnp.array([-1.0]), jnp.array([-1.5])))
  [0.125]
  """
  return _at_most(0.5 * jnp.square(_log_ratio(logp, ref_logp, max_log_ratio)), max_value)


def absolute(
  logp: Float[Array, "*batch T"],
  ref_logp: Float[Array, "*batch T"],
  *,
  max_log_ratio: float | None = None,
  max_value: float | None = None,
) -> Float[Array, "*batch T"]:
  """Returns `|log policy - log reference|`, `[..., T]`, at least 0. Arguments as `k1`. The gradient at 0 is 0.

  >>> print(absolute(jnp.array([-2.0]), jnp.array([-1.5])))
  [0.5]
  """
  d = _log_ratio(logp, ref_logp, max_log_ratio)
  return _at_most(d * jax.lax.stop_gradient(jnp.sign(d)), max_value)  # the derivative of jnp.abs at 0 is 1


def k3(
  logp: Float[Array, "*batch T"],
  ref_logp: Float[Array, "*batch T"],
  *,
  max_log_ratio: float | None = None,
  max_value: float | None = None,
) -> Float[Array, "*batch T"]:
  """Returns `expm1(d) - d` with `d = log reference - log policy`, `[..., T]`, at least 0.

  Arguments as `k1`, but `d` is clamped just below overflow unless told otherwise (64.7 in float32). Its gradient in
  `logp` is `-expm1(d)`, and 0 beyond the clamps. verl: `max_log_ratio=20`, `max_value=10`; TRL does not clamp.

  >>> print(k3(jnp.array([-1.0]), jnp.array([-1.5])).round(4))
  [0.1065]
  """
  d = _log_ratio(logp, ref_logp, max_log_ratio)
  d = jnp.minimum(d, largest_exponent(d))
  return _at_most(jnp.expm1(d) - d, max_value)


def straight_through(estimator: Estimator) -> Estimator:
  """Returns an estimator with the value of `estimator` and the gradient of k2, which is unbiased as a loss term.

  verl writes it with a plus, as in `"k3+"`.

  Args:
    estimator: `(logp, ref_logp) -> [..., T]`, such as `k3`.

  >>> estimator = straight_through(k3)
  >>> logp, ref = jnp.array([-1.0]), jnp.array([-1.5])
  >>> print(estimator(logp, ref).round(4), jax.grad(lambda x: estimator(x, ref).sum())(logp))
  [0.1065] [0.5]
  """

  def estimate(logp: Array, ref_logp: Array) -> Array:
    smooth = k2(logp, ref_logp)
    return jax.lax.stop_gradient(estimator(logp, ref_logp)) + smooth - jax.lax.stop_gradient(smooth)

  return estimate


def reverse(estimator: Estimator) -> Estimator:
  """Returns the estimator of the other direction, KL(reference || policy), for tokens drawn from the reference.

  With the old policy as the reference this is PPO's `KL[old, new]`.

  >>> print(reverse(k1)(jnp.array([-1.0]), jnp.array([-1.5])))
  [-0.5]
  """
  return lambda logp, ref_logp: estimator(ref_logp, logp)


def categorical(
  logits: Float[Array, "*batch V"], ref_logits: Float[Array, "*batch V"], *, temperature: float | Array = 1.0
) -> Float[Array, "*batch"]:
  """Returns the exact `KL(policy || reference) = sum_v p_v (log p_v - log q_v)` of two next-token distributions.

  It is summed as `p_v (log p_v - log q_v) - p_v + q_v`, which is nowhere below 0.

  Args:
    logits: The policy's logits `[..., V]`. Tokens with a logit of -inf have no share.
    ref_logits: The reference's logits.
    temperature: Temperature of both distributions.

  Returns:
    `[...]`, in nats, at least 0.

  >>> f"{categorical(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))):.4f}"
  '0.1438'
  """
  chex.assert_equal_shape([logits, ref_logits])
  logp = jax.nn.log_softmax(upcast(logits) / temperature, axis=-1)
  ref_logp = jax.nn.log_softmax(upcast(ref_logits) / temperature, axis=-1)
  possible = logp > -jnp.inf
  gap = jnp.where(possible, logp, 0) - jnp.where(possible, ref_logp, 0)
  p, q, near = jnp.exp(logp), jnp.exp(ref_logp), jnp.abs(gap) < 1
  small = jnp.where(near, gap, 0)  # where q is near p the three terms would cancel
  terms = jnp.where(near, p * (small + jnp.expm1(-small)), p * gap - p + q)
  return jnp.sum(jnp.where(possible, terms, q), axis=-1)
