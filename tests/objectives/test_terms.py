"""Terms that no named objective uses by default: Huber, sequence-wise entropy, k2 to the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ppo_configs
from rl_jax.objectives import grpo
from rl_jax.objectives.base import Inputs, add, entropy_bonus, kl_penalty, scale, value_regression
from rl_jax.ops import aggregation, kl, ratios


def value_and_slope(objective, inputs, **learner):
  (name, at), *_ = learner.items()
  weights = objective.weight(inputs)
  return jax.value_and_grad(lambda x: objective.loss(inputs._replace(**{name: x}), weights)[0])(jnp.asarray(at))


def test_huber_counts_large_errors_linearly():
  objective = value_regression(aggregation.token_sum(), clip=None, huber=1.0)
  inputs = Inputs(jnp.array([1, 1, 1, 0]), returns=jnp.array([0.0, 0.0, 0.0, jnp.nan]))
  value, slope = value_and_slope(objective, inputs, values=[0.5, 3.0, -4.0, jnp.nan])
  np.testing.assert_allclose(value, 0.125 + 2.5 + 3.5, rtol=1e-6)
  np.testing.assert_allclose(slope, [0.5, 1.0, -1.0, 0.0])


def test_kl_with_importance_weights_against_the_sampler():
  term = kl_penalty(kl.k2, aggregation.token_mean(), ratio=ratios.token(), ratio_to="behavior_logp")
  assert term.needs == {"logp", "ref_logp", "behavior_logp"}
  inputs = Inputs(jnp.ones(1), ref_logp=jnp.log(jnp.array([0.5])), behavior_logp=jnp.log(jnp.array([0.2])))
  value, slope = value_and_slope(term, inputs, logp=np.log([0.4]).astype(np.float32))
  d = np.log(0.4 / 0.5)
  np.testing.assert_allclose(value, 2 * d**2 / 2, rtol=1e-5)
  np.testing.assert_allclose(slope, [2 * (d**2 / 2 + d)], rtol=1e-5)


def test_bias_corrected_k3_has_the_gradient_of_the_kl_on_policy():
  logp, ref = jnp.array([-1.0, -0.3]), jnp.array([-0.5, -2.0])
  term = kl_penalty(kl.k3, aggregation.token_sum(), ratio=ratios.token())
  _, slope = value_and_slope(term, Inputs(jnp.ones(2), old_logp=logp, ref_logp=ref), logp=logp)
  np.testing.assert_allclose(slope, logp - ref, rtol=1e-5)


def test_terms_keep_their_own_denominators():
  # Two rows of 3 and 1 tokens: the bonus by sequence, the penalty by token.
  mask = jnp.array([[1, 1, 1], [1, 0, 0]])
  both = add(
    entropy=scale(0.1, entropy_bonus(aggregation.sequence_mean())), kl=kl_penalty(kl.k1, aggregation.token_mean())
  )
  inputs = Inputs(mask, ref_logp=jnp.zeros((2, 3)), entropy=jnp.array([[3.0, 3.0, 3.0], [1.0, 9.0, 9.0]]))
  value, _ = value_and_slope(both, inputs, logp=[[-1.0, -1.0, -1.0], [-5.0, 0.0, 0.0]])
  np.testing.assert_allclose(value, -0.1 * (3 + 1) / 2 + (-3 - 5) / 4, rtol=1e-6)


@pytest.mark.parametrize("logp", [-41.0, -61.0])
def test_weighted_kl_is_exact_where_the_product_is_small(logp):
  """old = ref: r k3 = e^d (e^-d - 1 + d) = 1 - (1 - d) e^d, with gradient d e^d, for d = logp + 1 far below 0."""
  objective = kl_penalty(kl.k3, aggregation.token_mean(), ratio=ratios.token())
  given = Inputs(jnp.ones(1), old_logp=-jnp.ones(1), ref_logp=-jnp.ones(1))

  def loss(x):
    return objective.loss(given._replace(logp=x[None]), objective.weight(given))[0]

  value, gradient = jax.value_and_grad(loss)(jnp.float32(logp))
  np.testing.assert_allclose(value, 1.0, rtol=1e-5)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_weighted_kl_is_clamped_after_the_weighting():
  """r = e^2, k3 to a reference 2 nats above: 7.389 (e^2 - 3) = 32.4, clamped to 10."""
  objective = kl_penalty(kl.k3, aggregation.token_mean(), ratio=ratios.token(), max_value=10.0)
  inputs = Inputs(jnp.ones(1), logp=-jnp.ones(1), old_logp=jnp.array([-3.0]), ref_logp=jnp.array([1.0]))
  assert float(objective.loss(inputs, objective.weight(inputs))[0]) == 10.0


def test_grpos_corrected_kl_is_exact_on_tokens_of_an_older_policy():
  """Every token of a vocabulary of three as a row, weighed by how often the old policy draws it."""
  old, ref = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.2, 0.2, 0.6]))
  logits = jnp.array([-1.0, 0.5, 0.3])

  def loss(logits, **settings):
    objective = grpo.objective(kl_coef=1.0, **settings)
    column = lambda x: x[:, None]  # noqa: E731
    inputs = Inputs(jnp.ones((3, 1)), jnp.zeros((3, 1)), old_logp=column(old), ref_logp=column(ref))
    weights = {name: column(jnp.exp(old)) for name in objective.weight(inputs)}
    return objective.loss(inputs._replace(logp=column(jax.nn.log_softmax(logits))), weights)[0]

  def exact(logits):
    return kl.categorical(logits, ref)

  np.testing.assert_allclose(loss(logits, kl_correction=True), exact(logits), rtol=1e-5)
  slope = jax.grad(lambda x: loss(x, kl_correction=True))(logits)
  np.testing.assert_allclose(slope, jax.grad(exact)(logits), rtol=1e-4)
  assert abs(loss(logits) - exact(logits)) > 0.05 * exact(logits)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("old", [[0.7, 0.2, 0.1], None], ids=["older", "on-policy"])
def test_ppos_corrected_kl_has_the_gradient_of_the_kl_with_every_estimator(estimator, old):
  ref, logits = jnp.log(jnp.array([0.2, 0.2, 0.6])), jnp.array([-1.0, 0.5, 0.3])
  old = jax.nn.log_softmax(logits) if old is None else jnp.log(jnp.array(old))
  settings = dict(kl_place="loss", kl_estimator=estimator, kl_correction=True, kl_coef=1.0)
  config = ppo_configs.Config(**settings)
  config.check()
  objective = config.kl_term()

  def loss(logits):
    inputs = Inputs(jnp.ones((3, 1)), old_logp=old[:, None], ref_logp=ref[:, None])
    return objective.loss(inputs._replace(logp=jax.nn.log_softmax(logits)[:, None]), jnp.exp(old)[:, None])[0]

  slope = jax.grad(lambda x: kl.categorical(x, ref))(logits)
  np.testing.assert_allclose(jax.grad(loss)(logits), slope, rtol=1e-4, atol=1e-6)
