"""What a rollout is used for: the order of its rows, and which of its metrics are those of the first update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops.metrics import EffectiveSize, Max, Mean, results
from rl_jax.train import schedule
from rl_jax.train.schedule import Schedule, orders, over_updates


def test_every_epoch_is_a_permutation_in_an_order_of_its_own():
  found = np.asarray(orders(Schedule(3, 4), jax.random.key(0), 12))
  assert found.shape == (12, 3)
  epochs = found.reshape(3, 12)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(12))
  assert len({tuple(epoch) for epoch in epochs}) == 3 and tuple(range(12)) not in {tuple(epoch) for epoch in epochs}
  other = np.asarray(orders(Schedule(3, 4), jax.random.key(1), 12))
  assert (found != other).any()
  np.testing.assert_array_equal(found, orders(Schedule(3, 4), jax.random.key(0), 12))


def test_minibatches_have_equal_shares_of_both_kinds():
  """Twelve rows, of which the last four are of another kind: every quarter has two of one and one of the other."""
  found = np.asarray(orders(Schedule(2, 4), jax.random.key(0), 12, 4))
  assert found.shape == (8, 3)
  np.testing.assert_array_equal((found >= 8).sum(axis=1), np.ones(8))
  for epoch in found.reshape(2, 12):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(12))
  assert (found[:4] != found[4:]).any()


def test_the_same_order_inside_a_program():
  np.testing.assert_array_equal(
    jax.jit(lambda key: orders(Schedule(2, 2), key, 8))(jax.random.key(3)), orders(Schedule(2, 2), jax.random.key(3), 8)
  )


def test_metrics_are_over_all_updates_but_for_the_mismatch_of_the_first():
  values = jnp.array([[1.0, 2.0], [3.0, 6.0]])
  stacked = {
    "loss": Mean(jnp.array([1.0, 6.0]), jnp.array([1.0, 2.0])),
    "mismatch_mean": Mean(jnp.array([1.0, 5.0]), jnp.array([2.0, 2.0])),
    "mismatch_kl": Mean(jnp.array([0.5, 9.0]), jnp.array([1.0, 1.0])),
    "mismatch_max": Max(jnp.array([2.0, 7.0])),
    "ratio_max": Max(jnp.array([2.0, 7.0])),
    "ess": EffectiveSize(values.sum(1), jnp.square(values).sum(1), jnp.array([2.0, 2.0])),
  }
  found = results(over_updates(stacked))
  # (1 + 6) / (1 + 2) and the largest of all; of the first update 1 / 2, 0.5, 2, and 3^2 / (2 * 5) of 1 and 2.
  expected = dict(loss=7 / 3, mismatch_mean=0.5, mismatch_kl=0.5, mismatch_max=2.0, ratio_max=7.0, ess=0.9)
  assert found == pytest.approx(expected)


def test_schedules():
  assert Schedule(2, 3).updates == 6 and not Schedule(2, 3).on_policy and not Schedule(1, 2).on_policy
  assert Schedule().on_policy and schedule.check(Schedule(2, 3)) == (2, 3)
  with pytest.raises(ValueError, match="epochs and minibatches must be at least 1, got 2 and 0"):
    schedule.check(Schedule(2, 0))
