"""Statistics over seeds, against plain numpy, and what a comparison leaves on disk."""

import numpy as np
import pytest
from scipy import stats

from rl_jax.analysis import comparison
from rl_jax.analysis.statistics import bootstrap_interval, interquartile_mean, probability_of_improvement


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


def results():
  rng = np.random.default_rng(0)

  def runs(shift):
    return {
      "evaluation/reward": rng.normal(shift, 0.1, size=(8, 5)),
      "train/reward": rng.normal(shift, 0.1, size=(8, 40)),
      "train/policy/clip_low": rng.random((8, 40)),
      "evaluation/kl": rng.random((8, 5)),
    }

  return {"a": runs(0.0), "b": runs(1.0)}


def test_tables_hold_the_numbers_of_the_runs():
  found = results()
  text = comparison.table(found)
  last = found["b"]["evaluation/reward"][:, -1]
  low, high = bootstrap_interval(last)
  assert f"| b | {interquartile_mean(last):.3f} ({low:.3f} to {high:.3f}) |" in text
  assert text.splitlines()[0] == "| variant | reward | KL to the start [nats] | clipped low |"
  assert "| b | 1.00 (1.00 to 1.00) | |" in comparison.improvements(found)


def test_a_composed_objective_s_metrics_are_found_by_their_ends():
  found = {"instruct_gpt": {"train/rl/policy/clip_low": np.full((2, 10), 0.25), "train/reward": np.ones((2, 10))}}
  assert "0.250 (0.250 to 0.250)" in comparison.table(found)


def test_curves_are_drawn_over_time(tmp_path):
  comparison.draw(results(), tmp_path / "curves.png", steps=40)
  assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_nothing_to_show_is_said(tmp_path):
  with pytest.raises(ValueError, match="holds no results"):
    comparison.show(tmp_path)
