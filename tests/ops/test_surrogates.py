import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import ratios, surrogates

RATIO = np.array([0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.5])


def reference(ratio, advantage, low, high):
  return -min(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0])
@pytest.mark.parametrize("low,high", [(0.2, 0.2), (0.2, 0.4), (0.4, 0.2)])
def test_clip_value_and_gradient(advantage, low, high, x64):
  surrogate = surrogates.clip(low=low, high=high)
  advantages = jnp.full(RATIO.shape, advantage)
  log_ratio = jnp.log(jnp.asarray(RATIO))
  np.testing.assert_allclose(
    surrogate(log_ratio, advantages), [reference(r, advantage, low, high) for r in RATIO], rtol=1e-12
  )
  gradient = jax.grad(lambda x: surrogate(x, advantages).sum())(log_ratio)
  # The gradient stops above 1 + high where A > 0 and below 1 - low where A < 0: never on the other side.
  outside = (RATIO > 1 + high) if advantage > 0 else (RATIO < 1 - low)
  np.testing.assert_allclose(gradient, np.where(outside, 0, -advantage * RATIO), rtol=1e-12, atol=1e-12)
  stopped = surrogates.is_stopped(surrogate, log_ratio, advantages)
  np.testing.assert_array_equal(stopped, outside & (advantage != 0))


def test_on_policy_gradient_is_not_scaled(x64):
  gradient = jax.grad(lambda x: surrogates.clip()(x, jnp.full(1, 3.0)).sum())(jnp.zeros(1))
  np.testing.assert_allclose(gradient, [-3.0])


def test_clip_range_may_be_traced():
  losses = jax.vmap(lambda high: surrogates.clip(high=high)(jnp.log(jnp.full(1, 2.0)), jnp.ones(1)))(
    jnp.array([0.2, 0.5])
  )
  np.testing.assert_allclose(losses[:, 0], [-1.2, -1.5], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_token_ratio_ignores_masked_slots(bad):
  mask = jnp.array([1, 0])
  logp, old = jnp.array([-1.0, bad]), jnp.array([-1.2, -bad])
  np.testing.assert_allclose(ratios.token()(logp, old, mask), [0.2, 0], rtol=1e-6)
  gradient = jax.grad(lambda x: jnp.exp(ratios.token()(x, old, mask)).sum())(logp)
  np.testing.assert_allclose(gradient, [np.exp(0.2), 0], rtol=1e-6)


def test_dual_clip_bounds_the_loss_of_negative_advantages_only(x64):
  ratio = np.array([0.5, 1.0, 2.9, 3.1, 10.0])
  log_ratio = jnp.log(jnp.asarray(ratio))
  plain, dual = surrogates.clip(), surrogates.dual_clip(bound=3.0)
  up, down = jnp.ones(5), -jnp.ones(5)
  np.testing.assert_array_equal(dual(log_ratio, up), plain(log_ratio, up))
  np.testing.assert_allclose(dual(log_ratio, down), np.minimum(np.maximum(ratio, 0.8), 3.0), rtol=1e-12)
  gradient = jax.grad(lambda x: dual(x, down).sum())(log_ratio)
  np.testing.assert_allclose(gradient, [0, 1.0, 2.9, 0, 0], rtol=1e-12)


@pytest.mark.parametrize("surrogate", [surrogates.clip(), surrogates.dual_clip()])
def test_huge_ratios_that_are_clipped_away_stay_finite(surrogate):
  advantages = jnp.array([1.0, 1.0, -1.0, 0.0, 0.0])
  log_ratio = jnp.array([90.0, -90.0, -90.0, -90.0, 80.0])
  value, gradient = jax.value_and_grad(lambda x: surrogate(x, advantages).sum())(log_ratio)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[jnp.array([0, 2, 3, 4])], 0)


def test_dual_clip_is_finite_where_clip_overflows():
  loss = surrogates.dual_clip(bound=3.0)(jnp.array([90.0]), jnp.array([-1.0]))
  np.testing.assert_allclose(loss, [3.0], rtol=1e-6)
