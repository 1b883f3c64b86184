"""What is picked, under masks, ties, empty batches and traced fractions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import selection

RNG = np.random.default_rng(5)
MASK = RNG.random((4, 25)) < 0.7
VALUES = np.where(MASK, RNG.normal(size=(4, 25)), np.nan)


def largest(values, count):
  order = np.argsort(np.where(np.isnan(values), -np.inf, values), axis=None)[::-1][:count]
  picked = np.zeros(values.size, bool)
  picked[order] = True
  return picked.reshape(values.shape)


@pytest.mark.parametrize("fraction", [1e-3, 0.1, 0.5, 1.0])
def test_top_fraction_is_the_largest(fraction):
  count = max(int(fraction * MASK.sum()), 1)
  expected = largest(VALUES, count)
  np.testing.assert_array_equal(selection.top_fraction(jnp.asarray(VALUES), MASK, fraction=fraction), expected)
  traced = jax.jit(lambda f: selection.top_fraction(jnp.asarray(VALUES), MASK, fraction=f))(fraction)
  np.testing.assert_array_equal(traced, expected)


def test_nothing_is_picked_from_nothing():
  nothing = jnp.zeros((4, 25), bool)
  assert not selection.top_fraction(jnp.asarray(VALUES), nothing, fraction=0.5).any()
  assert not selection.random_fraction(jnp.asarray(VALUES), nothing, MASK, fraction=0.5).any()
  assert not selection.top_entropy(jnp.asarray(VALUES), nothing).any()


def test_random_picks_are_candidates_and_as_many_as_asked_for():
  noise, candidates = RNG.random((4, 25)), MASK & (RNG.random((4, 25)) < 0.4)
  picked = np.asarray(selection.random_fraction(jnp.asarray(noise), candidates, MASK, fraction=0.1))
  assert picked.sum() == int(0.1 * MASK.sum()) and not picked[~candidates].any()
  assert noise[picked].max() <= noise[candidates & ~picked].min()


def test_top_entropy_is_numpys_quantile():
  entropy = np.where(MASK, RNG.random((4, 25)), np.nan)
  for fraction in (0.05, 0.2, 0.8):
    threshold = np.quantile(entropy[MASK].astype(np.float32), 1 - fraction)
    picked = np.asarray(selection.top_entropy(jnp.asarray(entropy), MASK, fraction=fraction))
    clear = MASK & (np.abs(entropy - threshold) > 1e-6)
    np.testing.assert_array_equal(picked[clear], (entropy >= threshold)[clear])
    assert not picked[~MASK].any()


def test_covariance_sums_to_that_of_the_batch():
  logp, advantages = RNG.normal(size=(2, 4, 25))
  parts = selection.covariance(*(jnp.asarray(np.where(MASK, x, np.inf)) for x in (logp, advantages)), MASK)
  np.testing.assert_allclose(parts.sum() / MASK.sum(), np.cov(logp[MASK], advantages[MASK], ddof=0)[0, 1], rtol=1e-4)


def test_best_completions_of_uneven_groups():
  rewards = jnp.array([[1.0, 3.0, jnp.nan], [2.0, 2.0, 0.0], [jnp.nan, 5.0, jnp.nan]])
  mask = jnp.array([[1, 1, 0], [1, 1, 1], [0, 1, 0]])
  np.testing.assert_array_equal(selection.best_of(rewards, mask), [[0, 1, 0], [1, 0, 0], [0, 1, 0]])
  np.testing.assert_array_equal(selection.best_of(rewards, mask, n=2), [[1, 1, 0], [1, 1, 0], [0, 1, 0]])
  places, informative = selection.best_and_worst(rewards, mask)
  np.testing.assert_array_equal(places, [[1, 0], [0, 2], [1, 1]])
  np.testing.assert_array_equal(informative, [True, True, False])
  with pytest.raises(ValueError, match="n must be at least 1"):
    selection.best_of(rewards, n=0)
