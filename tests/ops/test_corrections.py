"""Corrections against numpy, and what they must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.objectives import simpo
from rl_jax.objectives.base import Inputs, kl_penalty, likelihood, masked, policy_gradient, weighted
from rl_jax.ops import aggregation, corrections, kl, ratios, surrogates

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(3)
MASK = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)  # a hole, and an empty row
OLD, MU = -RNG.random((2, 3, 5)) * 3
RHO = np.exp(OLD - MU)
DIRTY = [np.where(MASK, x, np.nan) for x in (OLD, MU)]


def rows(x):
  return np.where(MASK, x, 0).sum(-1, keepdims=True)


def test_importance_weights_of_every_level():
  n = np.maximum(MASK.sum(-1, keepdims=True), 1)
  expected = {"token": RHO, "sequence": np.exp(rows(OLD - MU)), "geometric": np.exp(rows(OLD - MU) / n)}
  for level, weights in expected.items():
    actual = corrections.importance(*DIRTY, MASK, level=level)
    np.testing.assert_allclose(actual, np.where(MASK, weights, 0), rtol=1e-12)
  with pytest.raises(ValueError, match="level must be"):
    corrections.importance(*DIRTY, MASK, level="row")


def test_truncation_and_icepop():
  np.testing.assert_allclose(
    corrections.truncated(*DIRTY, MASK, low=0.5, high=1.5), np.where(MASK, RHO.clip(0.5, 1.5), 0), rtol=1e-12
  )
  inside = MASK & (RHO >= 0.5) & (RHO <= 1.5)
  np.testing.assert_allclose(corrections.icepop(*DIRTY, MASK, low=0.5, high=1.5), np.where(inside, RHO, 0), rtol=1e-12)


def test_normalized_weights_average_one():
  weights = corrections.truncated(*DIRTY, MASK)
  by_token = corrections.self_normalized(weights, MASK)
  np.testing.assert_allclose(by_token[MASK].mean(), 1, rtol=1e-12)
  by_row = np.asarray(corrections.self_normalized(weights, MASK, level="sequence"))
  np.testing.assert_allclose(np.mean([by_row[i][MASK[i]].mean() for i in (0, 1)]), 1, rtol=1e-12)
  assert not corrections.self_normalized(jnp.zeros((3, 5)), MASK).any()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("statistic", ["token", "sequence_sum", "sequence_mean", "sequence_max"])
def test_rejection(estimator, statistic):
  d = OLD - MU
  values = {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - 1 - d}[estimator]
  n = np.maximum(MASK.sum(-1, keepdims=True), 1)
  stat = {
    "token": values,
    "sequence_sum": rows(values),
    "sequence_mean": rows(values) / n,
    "sequence_max": np.where(MASK, values, -np.inf).max(-1, keepdims=True),
  }[statistic]
  kept = corrections.keep_close(*DIRTY, MASK, estimator=estimator, statistic=statistic, low=-0.3, high=0.4)
  np.testing.assert_array_equal(kept, MASK & (stat >= -0.3) & (stat <= 0.4))


def test_unknown_statistics_are_named():
  with pytest.raises(ValueError, match="estimator must be one of"):
    corrections.keep_close(*DIRTY, MASK, estimator="k4")
  with pytest.raises(ValueError, match="statistic must be"):
    corrections.keep_close(*DIRTY, MASK, statistic="median")


def test_one_outlier_rejects_its_sequence():
  old = OLD.copy()
  old[1, 2] = MU[1, 2] - 12
  kept = corrections.keep_without_outliers(jnp.asarray(np.where(MASK, old, np.nan)), DIRTY[1], MASK)
  np.testing.assert_array_equal(kept, MASK & [[True], [False], [True]])


def test_only_failures_that_are_off_policy_are_dropped():
  mean = rows(MU - OLD) / np.maximum(MASK.sum(-1, keepdims=True), 1)
  for sign in (1.0, -1.0):
    advantages = jnp.asarray(np.where(MASK, sign, np.nan))
    kept = corrections.keep_on_policy_failures(*DIRTY, advantages, MASK, delta=float(mean[0, 0]) - 1e-6)
    dropped = (sign < 0) & (mean > mean[0] - 1e-6)
    np.testing.assert_array_equal(kept, MASK & ~dropped)


def test_second_moment_drops_the_fewest_tokens():
  advantages = np.where(RNG.random((3, 5)) < 0.5, 1.0, -1.0)
  at_risk = MASK & ((OLD - MU) * advantages > 0)
  for limit in (0.01, 0.3, 0.6, 100.0):
    kept = np.asarray(corrections.keep_second_moment(*DIRTY, jnp.asarray(advantages), MASK, limit=limit))
    squared = (OLD - MU) ** 2
    # Greedy, as in the paper: drop the largest at risk until the mean of what stays is small enough.
    expected = MASK.copy()
    while squared[expected].mean() > limit and (expected & at_risk).any():
      worst = np.argmax(np.where(expected & at_risk, squared, -1))
      expected.flat[worst] = False
    np.testing.assert_array_equal(kept, expected)


def test_metrics():
  seen = corrections.mismatch(*DIRTY, MASK)
  d = (OLD - MU)[MASK]
  np.testing.assert_allclose(seen["mismatch_mean"].result(), np.abs(d).mean(), rtol=1e-12)
  np.testing.assert_allclose(seen["mismatch_max"].result(), np.abs(d).max(), rtol=1e-12)
  rho = np.exp(d)
  np.testing.assert_allclose(
    corrections.effective_sample_size(*DIRTY, MASK), rho.mean() ** 2 / (rho**2).mean(), rtol=1e-12
  )
  np.testing.assert_allclose(corrections.chi_squared(*DIRTY, MASK), (rho**2).mean() - 1, rtol=1e-12)
  assert np.isfinite(corrections.effective_sample_size(*DIRTY, jnp.zeros((3, 5))))


def test_no_gradient_flows_into_a_correction():
  gradient = jax.grad(lambda x: corrections.truncated(x, jnp.asarray(MU), MASK).sum())(jnp.asarray(OLD))
  assert not gradient.any()


def test_reweighing_keeps_the_denominators_and_restricting_counts_what_is_kept():
  term = policy_gradient(ratios.token(), surrogates.importance(), aggregation.token_mean())
  mask, keep = jnp.ones((1, 4)), jnp.array([[1.0, 1.0, 0.0, 0.0]])
  inputs = Inputs(mask, jnp.array([[1.0, 2.0, 5.0, 5.0]]), old_logp=-mask)
  losses = [
    float(narrowed.loss(inputs._replace(logp=-mask), narrowed.weight(inputs))[0])
    for narrowed in (weighted(term, lambda _: keep, needs=()), masked(term, lambda _: keep, needs=()))
  ]
  assert losses == [-3 / 4, -3 / 2]


def test_any_token_may_be_dropped_where_asked_for():
  logp, mu = jnp.array([-3.0, -1.0, -1.0]), -jnp.ones(3)
  arguments = logp, mu, jnp.ones(3), jnp.ones(3)  # A > 0 and rho < 1: no clip would stop it
  np.testing.assert_array_equal(corrections.keep_second_moment(*arguments), [True, True, True])
  dropped = corrections.keep_second_moment(*arguments, only_at_risk=False)
  np.testing.assert_array_equal(dropped, [False, True, True])


def test_restricting_narrows_labels_too_and_sequences_cannot_be_reweighed():
  term = likelihood(aggregation.token_mean(), on="target_mask")
  inputs = Inputs(jnp.zeros(2), target_mask=jnp.ones(2))
  narrowed = masked(term, lambda _: jnp.array([True, False]), needs=())
  np.testing.assert_array_equal(narrowed.weight(inputs), [1.0, 0.0])
  pairs = weighted(simpo.objective(), lambda inputs: inputs.mask, needs=())
  with pytest.raises(ValueError, match="weight per token"):
    pairs.weight(Inputs(jnp.ones((3, 2, 4))))


def test_importance_weighted_kl_stays_finite_in_float32():
  logp, old, ref = (jnp.full((1, 1), x, jnp.float32) for x in (-90.0, -180.0, 0.0))
  term = kl_penalty(kl.k3, aggregation.token_mean(), ratio=ratios.token())
  inputs = Inputs(jnp.ones((1, 1)), old_logp=old, ref_logp=ref)
  value, slope = jax.value_and_grad(lambda x: term.loss(inputs._replace(logp=x), term.weight(inputs))[0])(logp)
  assert np.isfinite(value) and np.isfinite(slope).all()


def test_clamps_of_log_ratios_are_arguments():
  """log-ratios 60 and -40: their mean is 10, beyond a bound of 1; clamped to +-20 first it is 0."""
  old, mu, mask = jnp.array([[60.0, -40.0]]), jnp.zeros((1, 2)), jnp.ones((1, 2))
  bounds = dict(statistic="sequence_mean", low=-1.0, high=1.0)
  assert corrections.keep_close(old, mu, mask, **bounds).all()
  assert not corrections.keep_close(old, mu, mask, max_log_ratio=None, **bounds).any()
  np.testing.assert_allclose(corrections.importance(old, mu, mask, level="geometric"), np.exp(10.0), rtol=1e-5)
  np.testing.assert_allclose(corrections.importance(old, mu, mask)[0, 0], np.exp(20.0), rtol=1e-5)
  np.testing.assert_allclose(corrections.importance(old, mu, mask, max_log_ratio=None)[0, 0], np.exp(60.0), rtol=1e-5)


def unknown(mu):
  """The second token of the first row has no recorded log-prob."""
  return jnp.asarray(mu).at[0, 1].set(jnp.nan)


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("weigh", [corrections.importance, corrections.truncated, corrections.icepop])
def test_a_token_without_a_log_prob_has_no_weight(weigh, level):
  found = weigh(OLD, unknown(MU), MASK, level=level)
  expected = np.array(weigh(OLD, MU, MASK, level=level))
  expected[(0, 1) if level == "token" else 0] = 0
  np.testing.assert_array_equal(found, expected)


def test_a_token_without_a_log_prob_is_kept_by_no_mask_and_stands_in_no_metric():
  whole_row = [0, slice(None)]
  advantages = jnp.ones_like(OLD)
  for keep, dropped in (
    (lambda mu: corrections.keep_close(OLD, mu, MASK), [0, 1]),
    (lambda mu: corrections.keep_close(OLD, mu, MASK, statistic="sequence_sum"), whole_row),
    (lambda mu: corrections.keep_close(OLD, mu, MASK, statistic="sequence_max"), whole_row),
    (lambda mu: corrections.keep_without_outliers(OLD, mu, MASK), whole_row),
    (lambda mu: corrections.keep_on_policy_failures(OLD, mu, advantages, MASK, delta=9.0), whole_row),
    (lambda mu: corrections.keep_second_moment(OLD, mu, advantages, MASK, limit=9.0), [0, 1]),
  ):
    expected = np.array(keep(MU))
    expected[tuple(dropped)] = False
    np.testing.assert_array_equal(keep(unknown(MU)), expected)
  left = MASK.copy()
  left[0, 1] = False
  for name, metric in corrections.mismatch(OLD, unknown(MU), MASK).items():
    np.testing.assert_allclose(metric.result(), corrections.mismatch(OLD, MU, left)[name].result(), rtol=1e-12)
  for measure in (corrections.effective_sample_size, corrections.chi_squared):
    np.testing.assert_allclose(measure(OLD, unknown(MU), MASK), measure(OLD, MU, left), rtol=1e-12)


def test_a_term_is_narrowed_once_and_before_it_is_weighed():
  term = policy_gradient(ratios.token(), surrogates.importance(), aggregation.token_mean())
  keep = lambda _: jnp.asarray(MASK) & (OLD > -1.5)  # noqa: E731
  inputs = Inputs(MASK, jnp.ones_like(OLD), logp=OLD, old_logp=OLD, behavior_logp=MU)

  def whole_ratio(seen):
    return corrections.importance(seen.old_logp, seen.behavior_logp, seen.mask, level="sequence")

  corrected = weighted(masked(term, keep, needs=()), whole_ratio, needs=("old_logp", "behavior_logp"))
  kept = np.asarray(keep(None))
  expected = kept / kept.sum() * np.exp(rows(OLD - MU))  # the ratio is of all tokens, those left out included
  np.testing.assert_allclose(corrected.weight(inputs), expected, rtol=1e-12)
  for changed in (corrected, masked(term, keep, needs=())):
    with pytest.raises(ValueError, match="narrow a term by one mask"):
      masked(changed, keep, needs=())


@pytest.mark.parametrize(
  "capped",
  [
    lambda limit: surrogates.clip(max_log_ratio=limit),
    lambda limit: surrogates.dual_clip(bound=1e9, max_log_ratio=limit),
    lambda limit: surrogates.importance(max_log_ratio=limit),
    lambda limit: surrogates.band(high=jnp.inf, max_log_ratio=limit),
    lambda limit: surrogates.probability_band(high=1.0, max_log_ratio=limit),
  ],
)
def test_every_ratio_has_a_clamp(capped):
  log_ratio, logp = jnp.array([5.0]), jnp.array([-0.1])
  np.testing.assert_allclose(capped(2.0)(log_ratio, jnp.array([-1.0]), logp=logp), np.exp(2.0), rtol=1e-6)
  for weigh in (corrections.importance, lambda *a, **k: corrections.truncated(*a, high=1e9, **k)):
    np.testing.assert_allclose(weigh(log_ratio, 0 * log_ratio, jnp.ones(1), max_log_ratio=2.0), np.exp(2.0), rtol=1e-6)


def test_a_ratio_of_the_policy_with_itself_needs_no_old_policy():
  penalty = kl_penalty(kl.k2, aggregation.token_mean(), ratio=ratios.on_policy())
  assert penalty.needs == {"logp", "ref_logp"}
  inputs = Inputs(jnp.ones(2), logp=jnp.array([-1.0, -2.0]), ref_logp=jnp.array([-2.0, -2.0]))
  np.testing.assert_allclose(penalty.loss(inputs, penalty.weight(inputs))[0], 0.25)
  policy = policy_gradient(ratios.on_policy(), surrogates.importance(), aggregation.token_mean())
  assert policy.needs == {"logp", "advantages"}
