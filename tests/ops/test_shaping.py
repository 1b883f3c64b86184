"""Shaping of rewards and the controllers, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import advantages, controllers, kl, masking, returns, rewards, shaping
from rl_jax.ops import moments as moments_lib
from rl_jax.ops.moments import Moments

MASK = jnp.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_where_a_reward_sits():
  np.testing.assert_array_equal(
    rewards.terminal(jnp.array([2.0, 3.0, 9.0]), MASK), [[0, 0, 0, 2], [3, 0, 0, 0], [0, 0, 0, 0]]
  )
  spread = rewards.spread(jnp.array([7.0, 3.0, 9.0]), MASK, gamma=0.5)
  np.testing.assert_allclose(spread, [[1, 2, 0, 4], [3, 0, 0, 0], [0, 0, 0, 0]])
  even = rewards.spread(jnp.array([6.0, 3.0, jnp.nan]), MASK)
  np.testing.assert_allclose(even, [[2, 2, 0, 2], [3, 0, 0, 0], [0, 0, 0, 0]])
  steps = rewards.at_steps(jnp.array([[1.0, 5.0, jnp.nan]]), jnp.array([[1, 3, -1]]), MASK[:1])
  np.testing.assert_array_equal(steps, [[0, 1, 0, 5]])


def test_kl_in_the_reward():
  old, ref = jnp.array([[-1.0, -2.0, jnp.nan, -1.0]]), jnp.array([[-1.5, -1.0, jnp.nan, -1.0]])
  base = jnp.array([[0.0, 0.0, jnp.nan, 1.0]])
  np.testing.assert_allclose(rewards.with_kl(base, old, ref, MASK[:1], coef=0.1), [[-0.05, 0.1, 0, 1]], rtol=1e-6)
  squared = rewards.with_kl(base, old, ref, MASK[:1], coef=0.1, estimator=kl.k2)
  np.testing.assert_allclose(squared, [[-0.0125, -0.05, 0, 1]], rtol=1e-6)


def test_overlong_penalty_is_daps():
  lengths = jnp.array([1, 16, 18, 20, 24])
  np.testing.assert_allclose(rewards.overlong_penalty(lengths, max_length=20, buffer=4), [0, 0, -0.5, -1, -1])
  uncapped = rewards.overlong_penalty(lengths, max_length=20, buffer=4, factor=2.0, capped=False)
  np.testing.assert_allclose(uncapped, [0, 0, -1, -2, -4])
  with pytest.raises(ValueError, match="buffer must be between"):
    rewards.overlong_penalty(lengths, max_length=20, buffer=21)


def test_truncated_completions():
  terminated = jnp.array([True, False])
  np.testing.assert_array_equal(rewards.missing_eos_penalty(jnp.array([1.0, 1.0]), terminated, penalty=2.0), [1, -1])
  replaced = rewards.missing_eos_penalty(jnp.array([1.0, 1.0]), terminated, penalty=2.0, replace=True)
  np.testing.assert_array_equal(replaced, [1, -2])
  np.testing.assert_array_equal(rewards.mask_truncated(MASK[:2], terminated), [[1, 1, 0, 1], [0, 0, 0, 0]])


def test_length_penalty_of_a_group():
  lengths, right = jnp.array([[4, 8, 6, 99]]), jnp.array([[True, True, False, True]])
  mask = jnp.array([[1, 1, 1, 0]])
  shaped = rewards.length_penalty(jnp.array([[1.0, 1.0, 0.0, jnp.nan]]), lengths, right, mask)
  np.testing.assert_allclose(shaped, [[1.5, 0.5, 0, 0]])
  same = rewards.length_penalty(jnp.array([[1.0, 0.0]]), jnp.array([[5, 5]]), jnp.array([[True, False]]))
  np.testing.assert_allclose(same, [[1, 0]])


def test_whitened_rewards():
  values = np.array([1.0, 2.0, 6.0])
  masked = jnp.array([1.0, 2.0, jnp.nan, 6.0])
  actual = masking.masked_whiten(masked, jnp.array([1, 1, 0, 1]), ddof=0, eps=0.0)
  np.testing.assert_allclose(np.delete(actual, 2), (values - 3) / values.std(), rtol=1e-6)
  kept = masking.masked_whiten(masked, jnp.array([1, 1, 0, 1]), shift_mean=False, ddof=0, eps=0.0)
  np.testing.assert_allclose(np.delete(kept, 2), (values - 3) / values.std() + 3, rtol=1e-6)


def test_controllers():
  up = controllers.adaptive_kl(jnp.array(0.2), jnp.array(60.0), target=6.0, horizon=10_000.0, samples=256)
  np.testing.assert_allclose(up, 0.2 * (1 + 0.2 * 256 / 10_000), rtol=1e-6)  # the error is clipped at 0.2
  down = controllers.adaptive_kl(jnp.array(0.2), jnp.array(5.4), target=6.0, horizon=10_000.0, samples=256)
  np.testing.assert_allclose(down, 0.2 * (1 - 0.1 * 256 / 10_000), rtol=1e-6)
  kept, applied = controllers.adaptive_entropy(jnp.array(0.01), jnp.array(0.5), target=0.2)
  np.testing.assert_allclose([kept, applied], [0.005, 0.0], rtol=1e-5)


def test_length_adaptive_lambda_and_explained_variance():
  mask = jnp.asarray(np.arange(100) < np.array([[100], [10], [0]]))
  lam = returns.length_adaptive_lambda(mask, alpha=0.05)
  np.testing.assert_allclose(lam, [0.8, 0.0, 0.0], rtol=1e-6)
  values = jnp.zeros((3, 100))
  by_row, _ = returns.gae(jnp.ones((3, 100)), values, mask, lam=lam)
  np.testing.assert_allclose(by_row[0, :5], [(1 - 0.8**n) / 0.2 for n in range(100, 95, -1)], rtol=1e-5)
  np.testing.assert_allclose(by_row[1, :10], np.ones(10), rtol=1e-6)
  parallel, _ = returns.gae_associative(jnp.ones((3, 100)), values, mask, lam=lam)
  np.testing.assert_allclose(parallel, by_row, rtol=1e-5)
  targets = jnp.array([[0.0, 1.0, 2.0, 9.0]])
  half = returns.explained_variance(targets / 2, targets, jnp.array([[1, 1, 1, 0]]))
  np.testing.assert_allclose(half, 0.75, rtol=1e-6)
  assert returns.explained_variance(targets, jnp.full((1, 4), 0.1), jnp.ones((1, 4))) == 0
  assert returns.explained_variance(jnp.arange(1000.0), jnp.full(1000, 0.1), jnp.ones(1000)) == 0


@pytest.mark.parametrize("value", [100.3, 0.1, -7.7, 1e6 + 0.1])
@pytest.mark.parametrize("count", [3, 64, 1000])
def test_equal_rewards_have_no_deviation(value, count):
  rewards, mask = jnp.full(count, value), jnp.ones(count)
  moments = Moments.zero()
  for _ in range(3):
    moments = moments_lib.update(moments, rewards, mask)
    np.testing.assert_array_equal(shaping.standardized(rewards, moments), 0)
  assert moments.mean == rewards[0] and moments.std == 0
  assert not masking.masked_whiten(rewards, mask).any() and masking.masked_variance(rewards, mask) == 0
  for scale in ("group", "batch"):
    assert not advantages.group_normalized(rewards[None], scale=scale).any()
  assert not advantages.whitened(rewards).any() and not advantages.baseline(rewards).any()
  assert returns.explained_variance(jnp.zeros(count), rewards, mask) == 0


def test_moments_of_a_stream_are_those_of_all_of_it():
  batches = np.float32(100.3 + 1e-3 * np.random.default_rng(0).normal(size=(5, 64)))
  moments = Moments.zero()
  for batch in batches:
    moments = moments_lib.update(moments, jnp.asarray(batch), jnp.ones(64))
  np.testing.assert_allclose(moments.mean, batches.astype(np.float64).mean(), rtol=1e-7)
  np.testing.assert_allclose(moments.std, batches.astype(np.float64).std(), rtol=1e-2)


def test_a_deviation_that_rounding_makes_does_not_blow_up():
  rewards = jnp.full(64, 100.3).at[5].set(jnp.nextafter(jnp.float32(100.3), jnp.float32(200)))
  moments = moments_lib.update(Moments.zero(), rewards, jnp.ones(64))
  assert jnp.abs(shaping.standardized(rewards, moments)).max() < 0.2
