import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import masking

X = np.array([[1.0, 2.0, 4.0], [3.0, 5.0, 7.0]])
MASK = np.array([[1, 1, 0], [1, 0, 0]])
CHOSEN = X[MASK == 1]


@pytest.mark.parametrize("dtype", [np.float32, bool, np.int32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_junk_under_the_mask_changes_nothing(dtype, bad):
  mask = jnp.asarray(MASK.astype(dtype))
  dirty = jnp.asarray(np.where(MASK == 1, X, bad))
  np.testing.assert_allclose(masking.masked_mean(dirty, mask), CHOSEN.mean(), rtol=1e-6)
  np.testing.assert_allclose(masking.masked_sum(dirty, mask), CHOSEN.sum(), rtol=1e-6)
  np.testing.assert_allclose(masking.masked_variance(dirty, mask, ddof=1), CHOSEN.var(ddof=1), rtol=1e-6)
  gradient = jax.grad(lambda x: masking.masked_whiten(x, mask)[0, 0])(dirty)
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[MASK == 0], 0)


def test_whiten_matches_numpy(x64):
  whitened = masking.masked_whiten(jnp.asarray(X), jnp.asarray(MASK), ddof=1, eps=1e-8)
  expected = (CHOSEN - CHOSEN.mean()) / np.sqrt(CHOSEN.var(ddof=1) + 1e-8)
  np.testing.assert_allclose(whitened[MASK == 1], expected, rtol=1e-12)
  kept = masking.masked_whiten(jnp.asarray(X), jnp.asarray(MASK), shift_mean=False)
  np.testing.assert_allclose(kept[MASK == 1], expected + CHOSEN.mean(), rtol=1e-12)


def test_nothing_selected_gives_zeros():
  nothing = jnp.zeros((2, 3))
  dirty = jnp.full((2, 3), jnp.nan)
  assert masking.masked_mean(dirty, nothing) == 0
  assert masking.masked_variance(dirty, nothing, ddof=1) == 0
  np.testing.assert_array_equal(masking.masked_whiten(dirty, nothing), 0)
  np.testing.assert_array_equal(jax.grad(lambda x: masking.masked_mean(x, nothing))(dirty), 0)


def test_mean_along_an_axis_has_empty_rows_at_zero():
  mask = jnp.array([[1, 1, 0], [0, 0, 0]])
  np.testing.assert_allclose(masking.masked_mean(jnp.asarray(X), mask, axis=-1), [1.5, 0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_widened_before_sums(dtype):
  ones = jnp.ones(4096, dtype)  # 4096 ones add up to 256 in bfloat16, to 2048 in float16
  assert masking.masked_sum(ones, ones) == 4096


def test_shapes_must_agree():
  with pytest.raises(AssertionError):
    masking.zero_masked(jnp.ones((2, 3)), jnp.ones(3))
