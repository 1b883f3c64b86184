"""Intervals over runs against plain numpy, scipy and hand-worked numbers."""

import numpy as np
import pytest
from scipy import stats

from rl_jax.ops.statistics import bootstrap_interval, interquartile_mean, probability_of_improvement


def test_interquartile_mean_is_that_of_the_middle_half():
  values = np.random.default_rng(0).normal(size=(3, 8))
  np.testing.assert_allclose(interquartile_mean(values), np.sort(values)[:, 2:6].mean(1))
  np.testing.assert_allclose(interquartile_mean(values.T, axis=0), np.sort(values)[:, 2:6].mean(1))


def test_bootstrap_interval_agrees_with_scipy():
  values = np.random.default_rng(1).normal(size=20)
  low, high = bootstrap_interval(values, resamples=20_000)
  statistic = lambda x, axis: stats.trim_mean(x, 0.25, axis=axis)  # noqa: E731
  expected = stats.bootstrap((values,), statistic, n_resamples=20_000, method="percentile", rng=0).confidence_interval
  np.testing.assert_allclose((low, high), expected, atol=0.02)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
  """Of 300 samples of 16 normal numbers the 95 % interval holds the true mean in most: small samples fall short."""
  samples = np.random.default_rng(2).normal(size=(300, 16))
  low, high = bootstrap_interval(samples, resamples=500)
  assert 0.85 < np.mean((low <= 0) & (high >= 0)) < 0.99


def test_more_runs_narrow_the_interval_and_one_has_none():
  rng = np.random.default_rng(3)
  widths = [np.subtract(*bootstrap_interval(rng.normal(size=n))[::-1]) for n in (8, 128)]
  assert widths[1] < widths[0] / 2
  with pytest.raises(ValueError, match="at least 2 runs, got 1"):
    bootstrap_interval(np.ones(1))


def test_probability_of_improvement_by_hand():
  """Of the six pairs of (1, 3) and (0, 1, 2): 1 > 0, 1 = 1, 1 < 2, and 3 above all three."""
  chance, low, high = probability_of_improvement(np.array([1.0, 3.0]), np.array([0.0, 1.0, 2.0]))
  assert chance == pytest.approx(4.5 / 6)
  assert 0 <= low < chance < high <= 1
  assert probability_of_improvement(np.ones(4), np.ones(4)) == (0.5, 0.5, 0.5)
