import inspect

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


FACTORIES = {
  name: factory
  for name, factory in inspect.getmembers(surrogates, inspect.isfunction)
  if factory.__module__ == surrogates.__name__ and inspect.signature(factory).return_annotation is surrogates.Surrogate
}


def test_surrogates_that_never_stop_are_surrogates():
  assert surrogates.NEVER_STOP < FACTORIES.keys()
  assert {"clip", "gmpo", "dppo_kl", "probability_band"} <= FACTORIES.keys()


def stopped(name, span):
  """Where it stops on random log-ratios of rows of four, of -span to span, and advantages of both signs."""
  rng = np.random.default_rng(0)
  log_ratio, advantages = rng.uniform(-span, span, size=(64, 4)), rng.normal(size=(64, 4))
  # Log-probs of the learner, and those of the old policy, `logp - log_ratio`, are at most 0.
  logp = np.minimum(log_ratio, 0) - rng.exponential(size=(64, 4))
  mask = rng.random((64, 4)) < 0.8
  given = (jnp.asarray(x) for x in (log_ratio, advantages))
  found = surrogates.is_stopped(FACTORIES[name](), *given, logp=jnp.asarray(logp), mask=jnp.asarray(mask))
  assert not found[~mask].any()
  return np.asarray(found), np.where(mask, log_ratio, 0)


FADE = {"sapo", "vespo"}  # where the ratio, or that of the row, is far above 1 their slope is less than a float holds


@pytest.mark.parametrize("name", sorted(FACTORIES.keys() - FADE))
def test_a_surrogate_stops_tokens_unless_it_is_one_that_never_does(name, x64):
  assert stopped(name, span=8)[0].any() == (name not in surrogates.NEVER_STOP)


@pytest.mark.parametrize("name", sorted(FADE))
def test_a_surrogate_that_fades_stops_no_token(name, x64):
  assert name in surrogates.NEVER_STOP
  assert not stopped(name, span=1)[0].any()
  faded, log_ratio = stopped(name, span=8)
  sizes = log_ratio if name == "sapo" else np.broadcast_to(log_ratio.sum(-1, keepdims=True), log_ratio.shape)
  assert (sizes[faded] > 3.5).all() and not faded.all()
