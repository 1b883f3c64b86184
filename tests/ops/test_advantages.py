import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import advantages

REWARDS = np.random.default_rng(0).normal(size=(3, 4))


@pytest.mark.parametrize("ddof", [0, 1])
def test_group_normalized_matches_numpy(ddof, x64):
  expected = (REWARDS - REWARDS.mean(-1, keepdims=True)) / (REWARDS.std(-1, ddof=ddof, keepdims=True) + 1e-4)
  actual = advantages.group_normalized(jnp.asarray(REWARDS), ddof=ddof, eps=1e-4)
  np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_scales(x64):
  centered = REWARDS - REWARDS.mean(-1, keepdims=True)
  rewards = jnp.asarray(REWARDS)
  np.testing.assert_allclose(advantages.group_normalized(rewards, scale="none"), centered, rtol=1e-12)
  expected = centered / (REWARDS.std(ddof=1) + 1e-6)
  np.testing.assert_allclose(advantages.group_normalized(rewards, scale="batch"), expected, rtol=1e-12)
  with pytest.raises(ValueError, match="scale must be"):
    advantages.group_normalized(rewards, scale="groups")


def test_leave_one_out_matches_the_definition(x64):
  expected = [[s - np.delete(row, i).mean() for i, s in enumerate(row)] for row in REWARDS]
  np.testing.assert_allclose(advantages.leave_one_out(jnp.asarray(REWARDS)), expected, rtol=1e-12)


ESTIMATORS = [
  advantages.group_normalized,
  advantages.leave_one_out,
  lambda r, m=None: advantages.group_normalized(r, m, scale="batch"),
  lambda r, m=None: advantages.group_normalized(r, m, scale="none"),
]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_equal_rewards_give_exactly_zero_and_a_finite_gradient(estimator, value):
  equal = jnp.full((2, 7), value)  # seven times 0.1 does not add up to 0.7 in float32
  np.testing.assert_array_equal(estimator(equal), 0)
  assert np.isfinite(jax.grad(lambda r: estimator(r).sum())(equal)).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_groups_of_one_and_empty_groups_are_zero(estimator):
  np.testing.assert_array_equal(estimator(jnp.array([[3.0], [5.0]])), 0)
  np.testing.assert_array_equal(estimator(jnp.full((1, 3), jnp.nan), jnp.zeros((1, 3))), 0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_masked_rewards_are_inert(estimator, bad):
  dirty = np.concatenate([REWARDS, np.full((3, 2), bad)], axis=1)
  mask = np.concatenate([np.ones((3, 4)), np.zeros((3, 2))], axis=1)
  actual = estimator(jnp.asarray(dirty), jnp.asarray(mask))
  np.testing.assert_allclose(actual[:, :4], estimator(jnp.asarray(REWARDS)), rtol=1e-5)
  np.testing.assert_array_equal(actual[:, 4:], 0)


@pytest.mark.parametrize("estimator", ESTIMATORS[:2])
def test_uneven_groups_by_id(estimator, x64):
  rewards = np.arange(7.0) ** 2
  ids = np.array([2, 0, 2, 0, 0, 1, 2])
  actual = advantages.by_group_ids(estimator, num_groups=3, max_group_size=3)(jnp.asarray(rewards), jnp.asarray(ids))
  for group in range(3):
    rows = ids == group
    np.testing.assert_allclose(actual[rows], estimator(jnp.asarray(rewards[rows])), rtol=1e-12)


def test_more_rewards_than_max_group_size_show_as_nan():
  estimate = advantages.by_group_ids(advantages.leave_one_out, num_groups=1, max_group_size=2)
  assert np.isnan(estimate(jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3, jnp.int32))[2])


def test_zero_variance():
  rewards = jnp.array([[0.1, 0.1, 0.1], [0.0, 0.1, 0.0]])
  np.testing.assert_array_equal(advantages.zero_variance(rewards), [True, False])
  np.testing.assert_array_equal(advantages.zero_variance(rewards, jnp.array([[1, 1, 1], [1, 0, 1]])), [True, True])


@pytest.mark.parametrize("level", [100.3, 1e4 + 0.3, -55.55])
def test_rewards_that_are_equal_but_for_rounding_have_no_advantage(level):
  """Sums of parts that come to the same reward differ in their last places."""
  parts = np.float32([0.1, 0.2, 0.3, 0.7])
  rewards = jnp.float32([np.float32(level - each) + each for each in parts])
  one_off = jnp.float32([level, np.nextafter(np.float32(level), np.float32(np.inf)), level, level])
  for each in (rewards, one_off):
    assert (
      not advantages.group_normalized(each).any() and not advantages.group_normalized(each, leave_self_out=True).any()
    )
    assert bool(advantages.zero_variance(each)) and not bool(advantages.keep_groups(each))
    assert not advantages.whitened(each).any()
  assert advantages.group_normalized(one_off.at[0].add(1e-3 * abs(level))).all()
