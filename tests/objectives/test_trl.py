"""Agreement with TRL 1.16's own code: every loss of its GRPO trainer with its gradient, and its advantages."""

import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.objectives.base import Inputs, add, kl_penalty, policy_gradient, scale
from rl_jax.ops import advantages, aggregation, kl, ratios, surrogates
from tests import systems
from tests.systems import assert_agrees, value_and_gradient

pytestmark = pytest.mark.usefixtures("x64")
TRL = systems.DESCRIBED["trl"]
LENGTH = 11  # max_completion_length in the data
AGGREGATES = {
  "grpo": aggregation.sequence_mean(count_empty_rows=True),
  "sapo": aggregation.sequence_mean(count_empty_rows=True),
  "bnpo": aggregation.token_mean(),
  "dapo": aggregation.token_mean(),
  "cispo": aggregation.token_mean(),
  "vespo": aggregation.token_mean(),
  "luspo": aggregation.sequence_sum(count_empty_rows=True),
  "dr_grpo": aggregation.constant_length(length=LENGTH),
}


def surrogate(config):
  kind = config["loss_type"]
  if kind == "cispo":
    cap = config["epsilon_high"] or config["epsilon"]  # the cap itself, not how far it is above 1
    return surrogates.cispo(low=1.0, high=cap - 1)
  if kind == "sapo":
    return surrogates.sapo(
      tau_pos=config.get("sapo_temperature_pos", 1.0), tau_neg=config.get("sapo_temperature_neg", 1.05)
    )
  if kind == "vespo":
    names = ("k_pos", "lambda_pos", "k_neg", "lambda_neg")
    return surrogates.vespo(**{name: config[f"vespo_{name}"] for name in names if f"vespo_{name}" in config})
  return surrogates.clip(low=config["epsilon"], high=config["epsilon_high"] or config["epsilon"], delta=config["delta"])


def objective(config):
  aggregate = AGGREGATES[config["loss_type"]]
  level = ratios.token() if config["importance_sampling_level"] == "token" else ratios.sequence()
  policy = policy_gradient(ratios.token() if config["loss_type"] == "vespo" else level, surrogate(config), aggregate)
  corrected = level if config.get("use_bias_correction_kl") else None
  return add(policy=policy, kl=scale(config["beta"], kl_penalty(kl.k3, aggregate, ratio=corrected)))


@pytest.fixture(scope="module")
def batch():
  names = ("logps", "old_logps", "ref_logps", "mask", "advantages")
  return {name: np.asarray(systems.ARRAYS[f"trl/batch/mild/{name}"], np.float64) for name in names}


@pytest.mark.parametrize("case", TRL["grpo_loss"], ids=lambda case: case["id"].rsplit("/", 1)[-1])
def test_loss_and_gradient(case, batch):
  mask = jnp.asarray(batch["mask"])
  inputs = Inputs(
    mask,
    jnp.broadcast_to(jnp.asarray(batch["advantages"])[:, None], mask.shape),
    old_logp=jnp.asarray(batch["old_logps"]),
    ref_logp=jnp.asarray(batch["ref_logps"]),
  )
  value, gradient = value_and_gradient(objective(case["config"]), inputs, logp=jnp.asarray(batch["logps"]))
  assert_agrees(value, case["expected_loss"])
  assert_agrees(gradient, systems.ARRAYS[case["grad"]])


@pytest.mark.parametrize("case", TRL["grpo_advantages"], ids=lambda case: str(case["index"]))
def test_advantages(case):
  names = list(case["rewards"])
  rewards = np.array([case["rewards"][name] for name in names], np.float64).reshape(len(names), -1, 4)
  weights = jnp.ones(len(names)) if case["reward_weights"] is None else jnp.asarray(case["reward_weights"])
  if case["multi_objective_aggregation"] == "sum_then_normalize":
    total = jnp.tensordot(weights, jnp.asarray(rewards), 1)
    actual = advantages.group_normalized(total, scale=case["scale_rewards"], eps=1e-4)
  else:
    actual = advantages.whitened(advantages.normalize_then_sum(jnp.asarray(rewards), weights=weights, eps=1e-4))
  np.testing.assert_allclose(actual.ravel(), case["advantages"], rtol=2e-5, atol=1e-6)  # TRL: float32
