"""Agreement with OpenRLHF's own code. Every case of the data is compared; it computes some of them in float32."""

from functools import partial

import jax
import numpy as np
import pytest

from rl_jax.objectives.base import Inputs, policy_gradient, value_regression, weighted
from rl_jax.ops import advantages, aggregation, corrections, kl, masking, ratios, returns, rewards, surrogates
from rl_jax.ops.masking import masked_mean, zero_masked
from tests import systems
from tests.systems import assert_agrees, value_and_gradient

pytestmark = pytest.mark.usefixtures("x64")
COMPARED = []
cases = partial(systems.cases, compared=COMPARED)


def aggregate(config):
  return aggregation.token_mean() if config["token_level_loss"] else aggregation.sequence_mean()


def correction(config):
  low, high = config["vllm_is_truncated_threshold"]

  def weights(inputs):
    logps = inputs.old_logp, inputs.behavior_logp, inputs.mask
    kind = config.get("vllm_is_correction_type", "tis")
    if kind == "tis":
      return corrections.truncated(*logps, low=low, high=high)
    if kind == "icepop":
      return corrections.icepop(*logps, low=low, high=high)
    kept = corrections.keep_close(*logps, statistic="sequence_mean", low=-np.log(high), high=-np.log(low))
    return corrections.importance(*logps) * kept  # "seq-mask-tis"

  return weights


@cases("openrlhf/policy/")
def test_policy_loss(name):
  config, given, expected = systems.load(name)
  surrogate = surrogates.clip(low=config.get("clip_eps_low", 0.2), high=config.get("clip_eps_high", 0.2))
  if "dual_clip" in config:
    surrogate = surrogates.dual_clip(low=0.2, high=0.2, bound=config["dual_clip"])
  old, mu = given["old_log_prob"], given["rollout_log_prob"]
  corrected = config.get("enable_vllm_is_correction", False)
  if config.get("policy_loss_type") == "gspo":
    objective = policy_gradient(ratios.sequence(), surrogate, aggregation.sequence_mean())
    old = mu if corrected else old  # with the correction on, the ratio is taken against the sampler
  else:
    objective = policy_gradient(ratios.token(), surrogate, aggregate(config))
    if corrected:
      objective = weighted(objective, correction(config), needs=("old_logp", "behavior_logp"))
  inputs = Inputs(given["response_mask"], given["advantages"], old_logp=old, behavior_logp=mu)
  value, gradient = value_and_gradient(objective, inputs, logp=given["log_prob"])
  assert_agrees(value, expected["loss"])
  assert_agrees(gradient, expected["grad_log_prob"])


@cases("openrlhf/value/")
def test_value_loss(name):
  config, given, expected = systems.load(name)
  objective = value_regression(aggregate(config), clip=config["clip_eps"])
  inputs = Inputs(given["response_mask"], returns=given["returns"], old_values=given["values"])
  value, gradient = value_and_gradient(objective, inputs, values=given["vpreds"])
  assert_agrees(value, expected["loss"])
  assert_agrees(gradient, expected["grad_vpreds"])


@cases("openrlhf/kl/")
def test_kl(name):
  config, given, expected = systems.load(name)
  estimator = getattr(kl, config["kl_estimator"])
  gradient = jax.grad(lambda x: estimator(x, given["ref_log_prob"]).sum())(given["log_prob"])
  np.testing.assert_allclose(estimator(given["log_prob"], given["ref_log_prob"]), expected["kl"], rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(gradient, expected["grad_log_prob"], rtol=1e-6, atol=1e-7)  # in float32 there


@cases("openrlhf/gae/")
def test_gae(name):
  config, given, expected = systems.load(name)
  mask = given["response_mask"]
  actual = returns.gae(
    given["token_level_rewards"], given["values"], mask, gamma=config["gamma"], lam=config["lambd"], holes="zero"
  )
  assert_agrees(actual[0], expected["advantages"] * mask, 1e-10)
  assert_agrees(actual[1], expected["returns"] * mask, 1e-10)


@cases("openrlhf/returns/")
def test_discounted_returns(name):
  config, given, expected = systems.load(name)
  mask = given["response_mask"]
  actual = returns.discounted_returns(given["token_level_rewards"], mask, gamma=config["gamma"], holes="zero")
  assert_agrees(actual, expected["returns"] * mask, 1e-10)


@cases("openrlhf/pipeline/")
def test_from_rewards_to_advantages(name):
  config, given, expected = systems.load(name)
  mask, old = given["response_mask"], given["old_log_prob"]
  shape = {
    "rloo": advantages.leave_one_out,
    "reinforce_baseline": lambda r: advantages.group_normalized(r, scale="none"),
    "dr_grpo": lambda r: advantages.group_normalized(r, scale="none"),
    "group_norm": lambda r: advantages.group_normalized(r, eps=1e-9),
  }.get(config["estimator"], lambda r: r)
  shaped = shape(given["reward_baselines"].reshape(2, 4)).reshape(-1).clip(*config["reward_clip_range"])
  token_rewards = rewards.with_kl(
    rewards.terminal(shaped, mask), old, given["ref_log_prob"], mask, coef=config["kl_coef"]
  )
  if config["estimator"] == "gae":
    estimates, targets = returns.gae(
      token_rewards, given["values"], mask, gamma=config["gamma"], lam=config["lambd"], holes="zero"
    )
  else:
    estimates = targets = returns.discounted_returns(token_rewards, mask, gamma=config["gamma"], holes="zero")
  if config["estimator"] in ("gae", "reinforce", "reinforce_baseline"):
    if config["no_std_norm"]:
      estimates = zero_masked(estimates - masked_mean(estimates, mask), mask)
    else:
      estimates = masking.masked_whiten(estimates, mask, ddof=0, eps=0.0)
  # In float32 there: entries that cancel to nearly nothing agree in the size of what canceled.
  np.testing.assert_allclose(estimates, expected["advantages"] * mask, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(targets, expected["returns"] * mask, rtol=1e-6, atol=1e-6)


def test_every_case_is_compared():
  assert set(COMPARED) == set(systems.ids("openrlhf/"))
