"""Intervals over runs, chances of k answers and calibration against plain numpy, scipy and hand-worked numbers."""

import collections
import itertools

import numpy as np
import pytest
from scipy import stats

from rl_jax.ops import statistics
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


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_pass_at_k_is_the_mean_over_all_subsets(k):
  solved = np.array([[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
  subsets = list(itertools.combinations(range(6), k))
  expected = np.mean([solved[:, list(subset)].max(axis=-1) for subset in subsets], axis=0)
  np.testing.assert_allclose(statistics.pass_at_k(solved, k), expected, atol=1e-12)


def test_pass_at_k_of_thousands_of_answers_stays_finite():
  solved = np.arange(5000) < 2
  np.testing.assert_allclose(statistics.pass_at_k(solved, 2500), 1 - 0.5 * 2499 / 4999, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_majority_at_k_by_hand_over_all_subsets(k):
  answers, solved = ["a", "b", "a", "c", "b"], [True, False, True, False, False]
  found = []
  for subset in itertools.combinations(range(5), k):
    votes = collections.Counter(answers[i] for i in subset)
    first = [answer for answer, count in votes.items() if count == max(votes.values())]
    found.append(("a" in first) / len(first))
  assert statistics.majority_at_k(answers, solved, k) == pytest.approx(np.mean(found))


def test_majority_at_k_over_random_subsets_is_close_and_the_same_every_time():
  answers = [i % 3 for i in range(12)] + [0, 0, 1]
  solved = [answer == 0 for answer in answers]
  exact = statistics.majority_at_k(answers, solved, 5, subsets=10**6)
  found = [statistics.majority_at_k(answers, solved, 5, subsets=2000) for _ in range(2)]
  assert found[0] == found[1] != exact and abs(found[0] - exact) < 4 * 0.5 / np.sqrt(2000)
  assert statistics.majority_at_k(["a", "a"], [True, False], 2) == 0.5


@pytest.mark.parametrize("k", [0, 4])
def test_more_answers_than_there_are_cannot_be_drawn(k):
  with pytest.raises(ValueError, match="k must be from 1 to the number of answers, 3"):
    statistics.pass_at_k(np.ones(3), k)
  with pytest.raises(ValueError, match="k must be from 1 to the number of answers, 3"):
    statistics.majority_at_k("abc", [True] * 3, k)


def test_reliability_by_hand():
  claimed, right = np.array([0.0, 0.05, 0.55, 1.0, 1.0]), np.array([0, 1, 1, 1, 0])
  found = statistics.reliability(claimed, right)
  np.testing.assert_allclose(found.claimed, [0.025, 0.55, 1.0])
  np.testing.assert_allclose(found.right, [0.5, 1, 0.5])
  assert found.count.tolist() == [2, 1, 2]
  assert found.error == pytest.approx((2 * 0.475 + 0.45 + 2 * 0.5) / 5)
  with pytest.raises(ValueError, match="no claims"):
    statistics.reliability(np.array([]), np.array([]))
