"""Agreement with values that other systems computed with their own code on one ragged batch (tests/data/systems.*)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.objectives import base, grpo
from rl_jax.objectives.base import Inputs
from rl_jax.ops import advantages, aggregation, kl, log_probs, masking, ratios, returns, surrogates

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "systems.json").read_text())
ARRAYS = np.load(DATA / "systems.npz")
VERL = {case["id"]: case for case in CASES["verl_openrlhf"]}

pytestmark = pytest.mark.usefixtures("x64")


def case(name):
  found = VERL[name]
  read = lambda names: {key: jnp.asarray(np.asarray(ARRAYS[where], np.float64)) for key, where in names.items()}  # noqa: E731
  return found["config"], read(found["inputs"]), read(found["outputs"])


@pytest.mark.parametrize("system,rtol", [("verl", 1e-12), ("openrlhf", 1e-6)])  # OpenRLHF computes in float32
@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl(system, rtol, name):
  path = f"verl/kl_penalty/{name}/ragged" if system == "verl" else f"openrlhf/kl/{name}/ragged"
  _, given, expected = case(path)
  estimator = getattr(kl, name)
  value = estimator(given["log_prob"], given["ref_log_prob"])
  gradient = jax.grad(lambda x: estimator(x, given["ref_log_prob"]).sum())(given["log_prob"])
  np.testing.assert_allclose(value, expected["kl"], rtol=rtol, atol=1e-7 if rtol > 1e-9 else 1e-14)
  np.testing.assert_allclose(gradient, expected["grad_log_prob"], rtol=rtol, atol=1e-7 if rtol > 1e-9 else 1e-14)


def test_masked_statistics():
  config, given, expected = case("verl/masked_stats/ragged")
  x, mask = given["advantages"], given["response_mask"]
  np.testing.assert_allclose(masking.masked_mean(x, mask), expected["mean"], rtol=1e-7)  # verl adds 1e-8 to the count
  np.testing.assert_allclose(masking.masked_variance(x, mask, ddof=1), expected["var"], rtol=1e-7)
  for shift, name in ((True, "whiten"), (False, "whiten_keepmean")):
    actual = masking.masked_whiten(x, mask, shift_mean=shift, eps=config["eps"])
    # verl leaves numbers in the padding; compare where the mask is set.
    np.testing.assert_allclose(actual[mask == 1], expected[name][mask == 1], rtol=1e-7, atol=1e-9)


def test_log_probs():
  _, given, expected = case("verl/logprobs/ragged")
  labels = given["labels"].astype(jnp.int32)
  identity = jnp.eye(given["logits"].shape[-1])
  logp, entropy = log_probs.token_log_probs(given["logits"], identity, labels)
  gradient = jax.grad(lambda x: log_probs.token_log_probs(x, identity, labels)[0].sum())(given["logits"])
  np.testing.assert_allclose(logp, expected["log_probs"], rtol=1e-12)
  np.testing.assert_allclose(entropy, expected["token_entropy"], rtol=1e-12)
  np.testing.assert_allclose(gradient, expected["grad_logits"], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
  "mode,aggregate",
  [
    ("token-mean", aggregation.token_mean()),
    ("seq-mean-token-mean", aggregation.sequence_mean()),
    ("seq-mean-token-sum-norm", aggregation.constant_length(length=13, count_empty_rows=False)),
  ],
)
def test_aggregation(mode, aggregate):
  _, given, expected = case(f"verl/agg_loss/{mode}/local/ragged")
  weight = aggregate(given["response_mask"])
  np.testing.assert_allclose(base.weighted_sum(weight, given["loss_mat"]), expected["loss"], rtol=1e-7)
  np.testing.assert_allclose(weight, expected["grad_loss_mat"], rtol=1e-7, atol=1e-15)


@pytest.mark.parametrize("settings", ["g1.0_l1.0", "g0.99_l0.95", "g0.9_l0.0"])
@pytest.mark.parametrize("form", [returns.gae, returns.gae_associative])
def test_gae_verl(settings, form):
  config, given, expected = case(f"verl/gae/ragged/{settings}")
  mask = given["response_mask"]
  raw, targets = form(
    given["token_level_rewards"], given["values"], mask, gamma=config["gamma"], lam=config["lam"], holes="carry"
  )
  whitened = masking.masked_whiten(raw, mask)  # verl whitens inside its GAE
  np.testing.assert_allclose(whitened[mask == 1], expected["advantages"][mask == 1], rtol=1e-7, atol=1e-8)
  np.testing.assert_allclose(targets[mask == 1], expected["returns"][mask == 1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", ["g1.0_l1.0", "g0.99_l0.95"])
def test_gae_openrlhf(settings):
  config, given, expected = case(f"openrlhf/gae/ragged/{settings}")
  mask = given["response_mask"]
  actual = returns.gae(
    given["token_level_rewards"], given["values"], mask, gamma=config["gamma"], lam=config["lambd"], holes="zero"
  )
  np.testing.assert_allclose(actual[0] * mask, expected["advantages"] * mask, rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(actual[1] * mask, expected["returns"] * mask, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
  "name,estimator",
  [
    ("verl/grpo/ragged/std1", lambda r, m: advantages.group_normalized(r, m, eps=1e-6)),
    ("verl/grpo/ragged/std0", lambda r, m: advantages.group_normalized(r, m, scale="none")),
    ("verl/rloo/ragged", advantages.leave_one_out),
  ],
)
def test_group_advantages_verl(name, estimator):
  _, given, expected = case(name)
  scores = given["token_level_rewards"].sum(-1)  # verl sums the padding's zeros too
  ids = given["index"].astype(jnp.int32)
  actual = advantages.by_group_ids(estimator, num_groups=2, max_group_size=4)(scores, ids)
  np.testing.assert_allclose(actual[:, None] * given["response_mask"], expected["advantages"], rtol=1e-6, atol=1e-9)


def test_group_advantages_trl():
  compared = 0
  for given in CASES["trl"]["grpo_advantages"]:
    plain = len(given["rewards"]) == 1 and given["reward_weights"] is None
    summed = given["multi_objective_aggregation"] == "sum_then_normalize"
    if not plain or not summed or any(reward is None for reward in given["rewards"]["a"]):
      continue
    rewards = jnp.asarray(given["rewards"]["a"]).reshape(-1, given["num_generations"])
    actual = advantages.group_normalized(rewards, scale=given["scale_rewards"], eps=1e-4)
    np.testing.assert_allclose(actual.ravel(), given["advantages"], rtol=1e-4, atol=1e-6)  # TRL: float32
    compared += 1
  assert compared >= 3


@pytest.mark.parametrize("settings", ["default", "agg_seq-mean-token-mean"])
def test_clipped_policy_loss_verl(settings):
  config, given, expected = case(f"verl/policy/vanilla/ragged/{settings}")
  aggregates = {"token-mean": aggregation.token_mean(), "seq-mean-token-mean": aggregation.sequence_mean()}
  objective = base.policy_gradient(
    ratios.token(),
    surrogates.dual_clip(
      low=config["clip_ratio_low"], high=config["clip_ratio_high"], bound=config["clip_ratio_c"]
    ),
    aggregates[config["loss_agg_mode"]],
  )
  inputs = Inputs(given["response_mask"], given["advantages"], old_logp=given["old_log_prob"])
  weights = objective.weight(inputs)

  def loss(logp):
    return objective.loss(inputs._replace(logp=logp), weights)[0]

  value, gradient = jax.value_and_grad(loss)(given["log_prob"])
  np.testing.assert_allclose(value, expected["loss"], rtol=1e-7)
  np.testing.assert_allclose(gradient, expected["grad_log_prob"], rtol=1e-7, atol=1e-12)


TRL_SETTINGS = {
  "loss_type", "importance_sampling_level", "epsilon", "epsilon_high", "delta", "beta", "use_bias_correction_kl",
}  # fmt: skip


def test_grpo_loss_trl():
  batch = {
    name: jnp.asarray(np.asarray(ARRAYS[f"trl/batch/mild/{name}"], np.float64))
    for name in ("logps", "old_logps", "ref_logps", "mask", "advantages")
  }
  inputs = Inputs(
    batch["mask"],
    jnp.broadcast_to(batch["advantages"][:, None], batch["mask"].shape),
    old_logp=batch["old_logps"],
    ref_logp=batch["ref_logps"],
  )
  compared = 0
  for given in CASES["trl"]["grpo_loss"]:
    config = given["config"]
    ours = config["loss_type"] == "grpo" and config["importance_sampling_level"] == "token" and not config["delta"]
    if not ours or set(config) - TRL_SETTINGS or config.get("use_bias_correction_kl"):
      continue
    objective = grpo.objective(
      clip_low=config["epsilon"], clip_high=config["epsilon_high"] or config["epsilon"], kl_coef=config["beta"]
    )
    weights = objective.weight(inputs)

    def loss(logp, objective=objective, weights=weights):
      return objective.loss(inputs._replace(logp=logp), weights)[0]

    value, gradient = jax.value_and_grad(loss)(batch["logps"])
    np.testing.assert_allclose(value, given["expected_loss"], rtol=1e-7)
    np.testing.assert_allclose(gradient, ARRAYS[given["grad"]], rtol=1e-7, atol=1e-12)
    compared += 1
  assert compared >= 4
