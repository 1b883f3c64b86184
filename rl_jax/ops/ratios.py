"""Log importance ratios. Each factory returns `(logp, old_logp, mask) -> log-ratio [..., T]`, 0 where the mask is 0."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.ops.masking import masked_mean, zero_masked

Ratio = Callable[[Array, Array | None, Array], Array]

# Ratios that compare the policy with itself: the old log-probs are not looked at.
OF_ITSELF = frozenset({"on_policy"})


def token() -> Ratio:
  """One ratio per token: `log r_t = log pi(a_t) - log pi_old(a_t)`.

  Returns:
    `(logp, old_logp, mask) -> [..., T]`, 0 where the mask is 0.

  Reference: J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347.

  >>> print(token()(jnp.array([-1.0, jnp.nan]), jnp.array([-1.5, 0.0]), jnp.array([1, 0])))
  [0.5 0. ]
  """

  def log_ratio(logp: Array, old_logp: Array | None, mask: Array) -> Array:
    return _difference(logp, old_logp, mask)

  return log_ratio


def on_policy() -> Ratio:
  """`log pi(a_t) - stop_gradient(log pi(a_t))`: the value 0 and the gradient of the log-prob.

  For batches that are used once, so that the old policy is the learner itself: `old_logp` is not looked at.

  Returns:
    `(logp, old_logp, mask) -> [..., T]`.

  >>> print(on_policy()(jnp.array([-1.0]), None, jnp.array([1])))
  [0.]
  """

  def log_ratio(logp: Array, old_logp: Array | None, mask: Array) -> Array:
    del old_logp
    return _difference(logp, jax.lax.stop_gradient(logp), mask)

  return log_ratio


def detached(ratio: Ratio) -> Ratio:
  """The same values without a gradient: a weight for estimates whose own gradient is the right one, such as k2's.

  >>> grad = jax.grad(lambda x: detached(token())(x, jnp.zeros(1), jnp.ones(1)).sum())
  >>> print(grad(jnp.array([-1.0])))
  [0.]
  """
  return lambda logp, old_logp, mask: jax.lax.stop_gradient(ratio(logp, old_logp, mask))


def sequence() -> Ratio:
  """One ratio a sequence, the geometric mean over its tokens: `log s = 1/n sum_t (logp_t - old_logp_t)`.

  Returns:
    `(logp, old_logp, mask) -> [..., T]`, the same at all tokens of a row; the gradient flows through the mean, so
    that a sequence-wise loss summed over n tokens with weights `1/n` has the gradient of the paper's.

  Reference: C. Zheng et al., "Group Sequence Policy Optimization" (GSPO), arXiv:2507.18071 (eq. 7).

  >>> print(sequence()(jnp.array([-1.0, -1.0, 9.0]), jnp.array([-2.0, -1.0, 0.0]), jnp.array([1, 1, 0])))
  [0.5 0.5 0. ]
  """

  def log_ratio(logp: Array, old_logp: Array | None, mask: Array) -> Array:
    mean = masked_mean(_difference(logp, old_logp, mask), mask, axis=-1)
    return zero_masked(jnp.broadcast_to(mean[..., None], mask.shape), mask)

  return log_ratio


def sequence_product() -> Ratio:
  """One ratio a sequence, the product over its tokens: `log s = sum_t (logp_t - old_logp_t)`.

  It is the importance ratio of the whole sequence, unbiased and of high variance (TRL's RLOO, an option of prime-rl).

  Returns:
    `(logp, old_logp, mask) -> [..., T]`, the same at all tokens of a row.

  Reference: A. Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization", arXiv:2402.14740.

  >>> print(sequence_product()(jnp.array([-1.0, -1.0, 9.0]), jnp.array([-1.5, -1.25, 0.0]), jnp.array([1, 1, 0])))
  [0.75 0.75 0.  ]
  """

  def log_ratio(logp: Array, old_logp: Array | None, mask: Array) -> Array:
    total = jnp.sum(_difference(logp, old_logp, mask), axis=-1, keepdims=True)
    return zero_masked(jnp.broadcast_to(total, mask.shape), mask)

  return log_ratio


def sequence_token() -> Ratio:
  """GSPO-token: the value of `sequence`, with each token's gradient its own: `sg(log s) + logp_t - sg(logp_t)`.

  Equal to `sequence` in value, and in gradient where the advantages of a row are all equal.

  Returns:
    `(logp, old_logp, mask) -> [..., T]`.

  Reference: C. Zheng et al., "Group Sequence Policy Optimization" (GSPO), arXiv:2507.18071 (eq. 14).

  >>> ratio = sequence_token()
  >>> print(jax.grad(lambda x: ratio(x, jnp.zeros(2), jnp.ones(2))[0])(jnp.array([-1.0, -1.0])))
  [1. 0.]
  """
  whole, own = sequence(), on_policy()

  def log_ratio(logp: Array, old_logp: Array | None, mask: Array) -> Array:
    return jax.lax.stop_gradient(whole(logp, old_logp, mask)) + own(logp, None, mask)

  return log_ratio


def _difference(logp: Array, old_logp: Array | None, mask: Array) -> Array:
  if old_logp is None:
    raise ValueError("this ratio needs old_logp; only ratios.on_policy does without")
  chex.assert_equal_shape([logp, old_logp, mask])
  return zero_masked(logp, mask) - zero_masked(old_logp, mask)
