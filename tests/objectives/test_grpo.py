"""GRPO against a few lines of numpy, and against values worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.objectives import grpo
from rl_jax.objectives.base import Inputs
from rl_jax.ops import metrics

RNG = np.random.default_rng(0)
SHAPE = (2, 3, 5)
MASK = np.arange(5) < RNG.integers(1, 6, size=(2, 3, 1))
LOGP, OLD, REF = -RNG.random((3, *SHAPE)) * 2
ADVANTAGES = np.broadcast_to(RNG.normal(size=(2, 3, 1)), SHAPE)


def evaluate(objective, logp, **fields):
  inputs = Inputs(logp=logp, **{name: jnp.asarray(x) for name, x in fields.items()})
  return objective.loss(inputs, objective.weight(inputs._replace(logp=None)))


def test_loss_and_gradient_match_numpy(x64):
  low, high, beta = 0.1, 0.3, 0.04
  objective = grpo.objective(clip_low=low, clip_high=high, kl_coef=beta)
  fields = dict(mask=MASK, old_logp=OLD, ref_logp=REF, advantages=ADVANTAGES)
  loss, gradient = jax.value_and_grad(lambda x: evaluate(objective, x, **fields)[0])(jnp.asarray(LOGP))

  ratio, d = np.exp(LOGP - OLD), REF - LOGP
  surrogate = -np.minimum(ratio * ADVANTAGES, np.clip(ratio, 1 - low, 1 + high) * ADVANTAGES)
  per_token = surrogate + beta * (np.exp(d) - d - 1)
  lengths = MASK.sum(-1, keepdims=True)
  np.testing.assert_allclose(loss, ((per_token * MASK).sum(-1) / lengths[..., 0]).mean(), rtol=1e-12)

  clipped = ((ADVANTAGES > 0) & (ratio > 1 + high)) | ((ADVANTAGES < 0) & (ratio < 1 - low))
  slope = np.where(clipped, 0, -ADVANTAGES * ratio) + beta * (1 - np.exp(d))
  np.testing.assert_allclose(gradient, slope * MASK / lengths / 6, rtol=1e-10, atol=1e-15)


def test_value_by_hand(x64):
  # One prompt, two completions of 1 and 2 tokens; A = +1 and -1; ratios 1.5 | 0.5, 1; reference equal to the policy.
  #   row 1: max(-1.5, -1.2) = -1.2
  #   row 2: mean(max(0.5, 0.8), 1) = 0.9
  #   loss = (-1.2 + 0.9) / 2 = -0.15
  logp = jnp.log(jnp.array([[[1.5, 1.0], [0.5, 1.0]]]))
  fields = dict(
    mask=np.array([[[1, 0], [1, 1]]]),
    old_logp=np.zeros((1, 2, 2)),
    ref_logp=logp,
    advantages=np.array([[[1.0, 1.0], [-1.0, -1.0]]]),
  )
  loss, seen = evaluate(grpo.objective(), logp, **fields)
  np.testing.assert_allclose(loss, -0.15)
  results = metrics.results(seen)
  np.testing.assert_allclose(results["clip_high"], 1 / 3)
  np.testing.assert_allclose(results["clip_low"], 1 / 3)
  np.testing.assert_allclose(results["kl_ref"], 0)


def test_without_kl_no_reference_is_needed():
  objective = grpo.objective(kl_coef=0.0)
  assert "ref_logp" not in objective.needs
  fields = dict(mask=MASK, old_logp=OLD, advantages=ADVANTAGES)
  assert np.isfinite(evaluate(objective, jnp.asarray(LOGP), **fields)[0])


def test_missing_reference_is_named():
  with pytest.raises(ValueError, match="needs Inputs.ref_logp"):
    evaluate(grpo.objective(), jnp.asarray(LOGP), mask=MASK, old_logp=OLD, advantages=ADVANTAGES)


def test_hyperparameters_may_be_traced():
  fields = dict(mask=MASK, old_logp=OLD, ref_logp=REF, advantages=ADVANTAGES)

  def loss(high, beta):
    return evaluate(grpo.objective(clip_high=high, kl_coef=beta), jnp.asarray(LOGP), **fields)[0]

  highs, betas = jnp.array([0.1, 0.4]), jnp.array([0.0, 0.1])
  swept = jax.jit(jax.vmap(loss))(highs, betas)
  np.testing.assert_allclose(swept, [loss(0.1, 0.0), loss(0.4, 0.1)], rtol=1e-6)
