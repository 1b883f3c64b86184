"""Masked reductions. Values are zeroed under the mask *before* any arithmetic, so NaN or inf there is inert.

Writing `sum(x * mask)` instead lets a NaN in a padded slot through (`NaN * 0 = NaN`), in the value and, where an
exp or log follows, in the gradient.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def as_bool(mask: Array) -> Bool[Array, "..."]:
  """Returns `mask != 0` as booleans; accepts float, integer or boolean masks.

  >>> print(as_bool(jnp.array([1.0, 0.0])))
  [ True False]
  """
  return mask if mask.dtype == jnp.bool_ else mask != 0


def upcast(x: Array) -> Array:
  """Returns `x` in float32 at least: bfloat16 and float16 are widened, float64 stays.

  >>> upcast(jnp.ones(2, jnp.bfloat16)).dtype
  dtype('float32')
  """
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def zero_masked(x: Shaped[Array, "*shape"], mask: Array) -> Float[Array, "*shape"]:
  """Returns `x` where the mask is set and 0 elsewhere, in float32 at least.

  Args:
    x: Values `[..., T]`; anything, NaN and inf included, may stand where the mask is 0.
    mask: Float or bool, of `x`'s shape.

  Returns:
    `[..., T]`; its gradient with respect to a masked `x` is exactly 0.

  >>> print(zero_masked(jnp.array([1.0, jnp.nan]), jnp.array([1, 0])))
  [1. 0.]
  """
  chex.assert_equal_shape([x, mask])
  return jnp.where(as_bool(mask), upcast(x), 0)


def masked_sum(x: Array, mask: Array, *, axis: int | tuple[int, ...] | None = None) -> Array:
  """Returns `sum_t m_t x_t` over `axis` (all axes by default).

  Args:
    x: Values `[..., T]`; anything may stand where the mask is 0.
    mask: Float or bool, of `x`'s shape.
    axis: The axes to sum over, or None for a scalar.

  >>> float(masked_sum(jnp.array([1.0, 2.0, jnp.inf]), jnp.array([1, 1, 0])))
  3.0
  """
  return jnp.sum(zero_masked(x, mask), axis=axis)


def masked_count(mask: Array, *, axis: int | None = None) -> Array:
  """Returns the number of set mask entries in jax's default float type (float32, or float64 where that is on).

  >>> float(masked_count(jnp.array([1, 1, 0])))
  2.0
  """
  return jnp.sum(as_bool(mask), axis=axis, dtype=jnp.result_type(float))


def masked_mean(x: Array, mask: Array, *, axis: int | None = None) -> Array:
  """Returns `sum_t m_t x_t / sum_t m_t`, and 0 where nothing is selected. Arguments as `masked_sum`.

  >>> float(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])))
  2.0
  """
  return masked_sum(x, mask, axis=axis) / jnp.maximum(masked_count(mask, axis=axis), 1)


def masked_variance(x: Array, mask: Array, *, ddof: int = 0) -> Array:
  """Returns the variance of the selected entries over all axes, `sum m (x - mean)^2 / max(n - ddof, 1)`.

  It is exactly 0 where they are all equal.

  Args:
    x: Values `[..., T]`; anything may stand where the mask is 0.
    mask: Float or bool, of `x`'s shape.
    ddof: 1 for the unbiased variance, 0 for the population's.

  >>> float(masked_variance(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])))
  1.0
  """
  x = zero_masked(x, mask)
  centered = zero_masked(jnp.where(is_constant(x, mask), 0, x - masked_mean(x, mask)), mask)
  return jnp.sum(jnp.square(centered)) / jnp.maximum(masked_count(mask) - ddof, 1)


def is_constant(x: Array, mask: Array, *, axis: int | None = None) -> Bool[Array, "..."]:
  """Whether all selected entries are equal, but for a few units in the last place: sums of equals round differently.

  It is found by comparison: a mean of equal floats may round to another number.

  Arguments as `masked_sum`.

  >>> bool(is_constant(jnp.array([0.1, 0.1, jnp.nan]), jnp.array([1, 1, 0])))
  True
  """
  chosen = as_bool(mask)
  highest = jnp.max(jnp.where(chosen, x, -jnp.inf), axis=axis)
  lowest = jnp.min(jnp.where(chosen, x, jnp.inf), axis=axis)
  size = jnp.max(jnp.where(chosen, jnp.abs(x), 0), axis=axis)
  return highest <= lowest + 4 * jnp.finfo(upcast(x).dtype).eps * size


def masked_whiten(x: Array, mask: Array, *, shift_mean: bool = True, ddof: int = 1, eps: float | Array = 1e-8) -> Array:
  """Returns `(x - mean) / sqrt(var + eps)` over all selected entries, and 0 elsewhere and where they are all equal.

  It is a statistic of the batch: call it on the global batch, before the update, never inside a micro-batch.

  Args:
    x: Values `[..., T]`.
    mask: Float or bool, of `x`'s shape.
    shift_mean: If false, the mean is kept: `(x - mean) / sqrt(var + eps) + mean`.
    ddof: 1 for the unbiased variance (verl), 0 for the population's.
    eps: Added to the variance.

  >>> print(masked_whiten(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0]), ddof=0).round(3))
  [-1.  1.  0.]
  """
  x = zero_masked(x, mask)
  mean = masked_mean(x, mask)
  centered = jnp.where(is_constant(x, mask), 0, x - mean)
  whitened = centered * jax.lax.rsqrt(masked_variance(x, mask, ddof=ddof) + eps)
  return zero_masked(whitened if shift_mean else whitened + mean, mask)
