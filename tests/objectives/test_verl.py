"""Agreement with verl's own code: losses and gradients, estimators, corrections. Every case of the data is compared."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.objectives import clip_cov, kl_cov
from rl_jax.objectives.base import Inputs, masked, policy_gradient, scale, value_regression, weighted, weighted_sum
from rl_jax.ops import (
  advantages,
  aggregation,
  corrections,
  kl,
  log_probs,
  masking,
  ratios,
  returns,
  rewards,
  surrogates,
  token_advantages,
)
from rl_jax.ops.masking import masked_mean
from tests import systems
from tests.systems import assert_agrees, value_and_gradient

pytestmark = pytest.mark.usefixtures("x64")
AGGREGATES = {
  "token-mean": aggregation.token_mean(),
  "token-sum": aggregation.token_sum(),
  "seq-mean-token-sum": aggregation.sequence_sum(),
  "seq-mean-token-mean": aggregation.sequence_mean(),
  "seq-mean-token-sum-norm": aggregation.constant_length(length=13, count_empty_rows=False),  # 13: the padded length
}
COMPARED = []
cases = partial(systems.cases, compared=COMPARED)


def groups(given):
  return given["index"].astype(jnp.int32)


def grouped(estimator):
  return advantages.by_group_ids(estimator, num_groups=2, max_group_size=4)


@cases("verl/masked_stats/")
def test_masked_statistics(name):
  config, given, expected = systems.load(name)
  x, mask = given["advantages"], given["response_mask"]
  assert_agrees(masking.masked_mean(x, mask), expected["mean"])
  assert_agrees(masking.masked_variance(x, mask, ddof=1), expected["var"])
  for shift, key in ((True, "whiten"), (False, "whiten_keepmean")):
    actual = masking.masked_whiten(x, mask, shift_mean=shift, eps=config["eps"])
    assert_agrees(actual[mask == 1], expected[key][mask == 1])  # verl leaves numbers in the padding


@cases("verl/logprobs/")
def test_log_probs(name):
  _, given, expected = systems.load(name)
  labels = given["labels"].astype(jnp.int32)
  identity = jnp.eye(given["logits"].shape[-1])
  logp, entropy = log_probs.token_log_probs(given["logits"], identity, labels)
  gradient = jax.grad(lambda x: log_probs.token_log_probs(x, identity, labels)[0].sum())(given["logits"])
  squares = log_probs.sum_squared_probs(given["logits"], identity)
  assert_agrees(logp, expected["log_probs"], 1e-12)
  assert_agrees(entropy, expected["token_entropy"], 1e-12)
  assert_agrees(gradient, expected["grad_logits"], 1e-10)
  assert_agrees(squares, expected["sum_pi_squared"], 1e-12)


@cases("verl/agg_loss/")
def test_aggregation(name):
  config, given, expected = systems.load(name)
  mode, mask = config["loss_agg_mode"], given["response_mask"]
  weight = AGGREGATES[mode](mask)
  if "dp_size" in config:  # denominators given from outside, on one of two workers
    tokens, rows = config["batch_num_tokens"], config["global_batch_size"]
    mine = mask.sum(), jnp.sum(mask.sum(-1) > 0)
    factor = {"token-mean": mine[0] / tokens, "token-sum": 1}.get(mode, mine[1] / rows)
    weight = weight * factor * config["dp_size"]
  if "loss_scale_factor" in config:
    weight = aggregation.constant_length(length=config["loss_scale_factor"], count_empty_rows=False)(mask)
  assert_agrees(weighted_sum(weight, given["loss_mat"]), expected["loss"])
  assert_agrees(weight, expected["grad_loss_mat"])


CLAMPED_K3 = partial(kl.k3, max_log_ratio=20.0, max_value=10.0)
ESTIMATORS = {
  "kl": kl.k1,
  "k1": kl.k1,
  "abs": kl.absolute,
  "mse": kl.k2,
  "k2": kl.k2,
  "low_var_kl": CLAMPED_K3,
  "k3": CLAMPED_K3,
}


@cases("verl/kl_penalty/")
def test_kl(name):
  config, given, expected = systems.load(name)
  kind = config["kl_penalty"]
  estimator = ESTIMATORS[kind.removesuffix("+")]
  estimator = kl.straight_through(estimator) if kind.endswith("+") else estimator
  value = estimator(given["log_prob"], given["ref_log_prob"])
  gradient = jax.grad(lambda x: estimator(x, given["ref_log_prob"]).sum())(given["log_prob"])
  assert_agrees(value, expected["kl"], 1e-12)
  assert_agrees(gradient, expected["grad_log_prob"], 1e-12)


@cases("verl/compute_rewards/")
def test_kl_in_the_reward(name):
  config, given, expected = systems.load(name)
  everywhere = jnp.ones_like(given["old_log_prob"])  # verl does not mask here
  actual = rewards.with_kl(
    given["token_level_rewards"], given["old_log_prob"], given["ref_log_prob"], everywhere, coef=config["kl_ratio"]
  )
  assert_agrees(actual, expected["rewards"], 1e-12)


@pytest.mark.parametrize("form", [returns.gae, returns.gae_associative])
@cases("verl/gae/")
def test_gae(name, form):
  config, given, expected = systems.load(name)
  mask = given["response_mask"]
  raw, targets = form(given["token_level_rewards"], given["values"], mask, gamma=config["gamma"], lam=config["lam"])
  whitened = masking.masked_whiten(raw, mask)  # verl whitens inside its GAE
  assert_agrees(whitened[mask == 1], expected["advantages"][mask == 1])
  assert_agrees(targets[mask == 1], expected["returns"][mask == 1], 1e-10)


@cases("verl/grpo")  # grpo, grpo_vectorized, grpo_passk
def test_group_normalized_and_pass_at_k(name):
  config, given, expected = systems.load(name)
  normalize, eps = config["norm_adv_by_std_in_grpo"], config["epsilon"]
  if "passk" in name:
    estimator = partial(advantages.pass_at_k, normalize=normalize, eps=eps)
  else:
    estimator = partial(advantages.group_normalized, scale="group" if normalize else "none", eps=eps)
  actual = grouped(estimator)(given["token_level_rewards"].sum(-1), groups(given))
  assert_agrees(token_advantages.broadcast_to_tokens(actual, given["response_mask"]), expected["advantages"])


@cases("verl/rloo")  # rloo, rloo_vectorized
def test_leave_one_out(name):
  _, given, expected = systems.load(name)
  actual = grouped(advantages.leave_one_out)(given["token_level_rewards"].sum(-1), groups(given))
  assert_agrees(token_advantages.broadcast_to_tokens(actual, given["response_mask"]), expected["advantages"])


@cases("verl/opo/")
def test_opo(name):
  _, given, expected = systems.load(name)
  scores, lengths = (x.reshape(2, 4) for x in (given["token_level_rewards"].sum(-1), given["response_mask"].sum(-1)))
  assert np.all(given["index"] == jnp.repeat(given["index"].reshape(2, 4)[:, 0], 4))
  actual = advantages.opo(scores, lengths).reshape(-1)
  assert_agrees(token_advantages.broadcast_to_tokens(actual, given["response_mask"]), expected["advantages"])


@cases("verl/gpg_adv/")
def test_gpg(name):
  config, given, expected = systems.load(name)
  scores = next(value for key, value in given.items() if key.startswith("token_level_rewards")).sum(-1)
  actual = advantages.gpg(scores.reshape(2, 4), f_norm=config["f_norm"]).reshape(-1)
  assert_agrees(token_advantages.broadcast_to_tokens(actual, given["response_mask"]), expected["advantages"])


@cases("verl/rf++/")
def test_reinforce_plus_plus(name):
  config, given, expected = systems.load(name)
  mask = given["response_mask"]
  actual = token_advantages.reinforce_plus_plus(given["token_level_rewards"], mask, gamma=config["gamma"])
  assert_agrees(actual, expected["advantages"])
  to_go = returns.discounted_returns(given["token_level_rewards"], mask, gamma=config["gamma"])
  assert_agrees(to_go, expected["returns"], 1e-12)


@cases("verl/rf++_baseline/")
def test_reinforce_plus_plus_baseline(name):
  _, given, expected = systems.load(name)
  mask = given["response_mask"]
  scores = given["token_level_rewards"].sum(-1).reshape(2, 4)
  actual = token_advantages.reinforce_plus_plus_baseline(scores, mask.reshape(2, 4, -1)).reshape(mask.shape)
  assert_agrees(actual, expected["advantages"])


@cases("verl/remax/")
def test_remax(name):
  _, given, expected = systems.load(name)
  mask = given["response_mask"]
  to_go = returns.discounted_returns(given["token_level_rewards"], mask)
  assert_agrees(to_go, expected["returns"], 1e-12)
  # One greedy reward a row here; verl subtracts it from the reward-to-go at every token.
  baseline = token_advantages.broadcast_to_tokens(given["reward_baselines"], mask)
  assert_agrees(advantages.baseline(to_go, mask, value=baseline), expected["advantages"], 1e-12)


@pytest.mark.parametrize("by_place", [False, True])
@cases("verl/otb/")
def test_optimal_token_baseline(name, by_place):
  check_optimal_token_baseline(name, by_place)


@cases("verl/tir_otb/")
def test_multi_turn_optimal_token_baseline(name):
  check_optimal_token_baseline(name, by_place=True)


def check_optimal_token_baseline(name, by_place):
  config, given, expected = systems.load(name)
  split = {key: x.reshape(2, 4, -1) for key, x in given.items() if x.ndim == 2}
  actual, to_go = token_advantages.optimal_token_baseline(
    split["token_level_rewards"],
    split["old_log_prob"],
    split["sum_pi_squared"],
    split["response_mask"],
    importance=split["rollout_is_weights"] if config["use_rollout_is_weights"] else None,
    zero_tail=config["handle_zero_tail"],
    by_place=by_place,
    eps=config["epsilon"],
  )
  assert_agrees(actual.reshape(8, -1), expected["advantages"])
  assert_agrees(to_go.reshape(8, -1) * given["response_mask"], expected["returns"] * given["response_mask"], 1e-12)


@cases("verl/gdpo/")
def test_normalize_then_sum(name):
  config, given, expected = systems.load(name)
  mask = given["response_mask"]
  scores = jnp.stack([given[key].reshape(2, 4) for key in config["gdpo_reward_keys"]])
  weights = config["gdpo_reward_weights"] and jnp.asarray(config["gdpo_reward_weights"])
  combined = advantages.normalize_then_sum(scores, weights=weights, eps=config["epsilon"]).reshape(-1)
  actual = masking.masked_whiten(token_advantages.broadcast_to_tokens(combined, mask), mask)
  assert_agrees(actual, expected["advantages"], 2e-6)  # verl computes in float32


def policy_term(kind, config, aggregate):
  low, high, c = (config.get(key) for key in ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c"))
  token = ratios.token()
  return {
    "vanilla": lambda: policy_gradient(token, surrogates.dual_clip(low=low, high=high, bound=c), aggregate),
    # Aggregated by sequence whatever is asked for. The advantages of the batch differ by token, so it is GSPO-token.
    "gspo": lambda: policy_gradient(
      ratios.sequence_token(), surrogates.clip(low=low, high=high), aggregation.sequence_mean()
    ),
    "sapo": lambda: policy_gradient(
      token,
      surrogates.sapo(tau_pos=1.0, tau_neg=1.05),
      aggregation.sequence_mean(),  # verl's defaults, and ours
    ),
    "cispo": lambda: policy_gradient(token, surrogates.cispo(low=low, high=high), aggregate),
    "dppo_tv": lambda: policy_gradient(token, surrogates.dppo_tv(low=low, high=high, cap=c), aggregate),
    "dppo_kl": lambda: policy_gradient(token, surrogates.dppo_kl(low=low, high=high, cap=c), aggregate),
    "gpg": lambda: policy_gradient(token, surrogates.reinforce(), aggregate),
    "dro": lambda: policy_gradient(token, surrogates.dro(beta=config["policy_loss"]["dro_beta"]), aggregate),
    "geo_mean": lambda: policy_gradient(
      token, surrogates.gmpo(low=low, high=high), aggregation.sequence_mean(count_empty_rows=True)
    ),
    "kl_cov": lambda: kl_cov.objective(
      fraction=config["policy_loss"].get("kl_cov_ratio", 2e-4), kl_coef=config["policy_loss"].get("ppo_kl_coef", 0.1)
    ),
    "clip_cov": lambda: clip_cov.objective(
      fraction=config["policy_loss"]["clip_cov_ratio"],
      lowest=config["policy_loss"]["clip_cov_lb"],
      highest=config["policy_loss"]["clip_cov_ub"],
      clip_low=low,
      clip_high=high,
    ),
  }[kind]()


@cases("verl/policy/")
def test_policy_loss(name):
  config, given, expected = systems.load(name)
  kind, mask = name.split("/")[2], given["response_mask"]
  objective = policy_term(kind, config, AGGREGATES[config["loss_agg_mode"]])
  if config["use_rollout_is_weights"]:
    factor = given["rollout_is_weights"]
    if kind == "geo_mean":  # a sequence has one weight here, the geometric mean of its tokens'
      log_mean = masked_mean(jnp.log(factor), mask, axis=-1)
      factor = jnp.broadcast_to(jnp.exp(log_mean)[:, None], mask.shape)
    objective = weighted(objective, lambda inputs: factor, needs=())
  if config["global_batch_info"]:
    info = config["global_batch_info"]
    objective = scale(mask.sum() / info["batch_num_tokens"] * info["dp_size"], objective)
  inputs = Inputs(
    mask, given["advantages"], old_logp=given["old_log_prob"], batch_logp=given["log_prob"], noise=jnp.zeros_like(mask)
  )
  value, gradient = value_and_gradient(objective, inputs, logp=given["log_prob"])
  assert_agrees(value, expected["loss"])
  assert_agrees(gradient, expected["grad_log_prob"])


@cases("verl/value_loss/")
def test_value_loss(name):
  config, given, expected = systems.load(name)
  objective = value_regression(AGGREGATES[name.split("/")[-1]], clip=config["cliprange_value"])
  inputs = Inputs(given["response_mask"], returns=given["returns"], old_values=given["values"])
  value, gradient = value_and_gradient(objective, inputs, values=given["vpreds"])
  assert_agrees(value, expected["loss"])
  assert_agrees(gradient, expected["grad_vpreds"])
  metrics = objective.loss(inputs._replace(values=given["vpreds"]), objective.weight(inputs))[1]
  np.testing.assert_allclose(metrics["value_clipped"].result(), expected["vf_clipfrac"], rtol=1e-6)


def bounds(threshold):
  low, _, high = str(threshold).rpartition("_")
  return (float(low) if low else None), float(high)


def importance(config, old, mu, mask):
  low, high = bounds(config["rollout_is_threshold"])
  level = config["rollout_is"]
  if low is None:
    return corrections.truncated(old, mu, mask, level=level, high=high)
  return corrections.icepop(old, mu, mask, level=level, low=low, high=high)


@cases("verl/rollout_is/")
def test_importance_weights(name):
  config, given, expected = systems.load(name)
  mask = given["response_mask"]
  weights = importance(config, given["old_log_prob"], given["rollout_log_prob"], mask)
  if config["rollout_is_batch_normalize"]:
    weights = corrections.self_normalized(weights, mask, level=config["rollout_is"])
  assert_agrees(weights, expected["weights"])


def keep(config, old, mu, mask):
  kept = mask == 1
  options = config["rollout_rs"].split(","), str(config["rollout_rs_threshold"]).split(",")
  for option, threshold in zip(*options, strict=True):
    statistic, estimator = option.rsplit("_", 1)
    low, high = bounds(threshold)
    if estimator == "k1":  # verl gives bounds on exp(k1); one number stands for itself and its inverse
      low, high = np.log(1 / high if low is None else low), np.log(high)
    kept &= corrections.keep_close(
      old,
      mu,
      mask,
      estimator=estimator,
      statistic=statistic.replace("seq", "sequence"),
      low=-jnp.inf if low is None else low,
      high=high,
    )
  return kept


@cases("verl/rollout_rs/")
def test_rejection(name):
  config, given, expected = systems.load(name)
  kept = keep(config, given["old_log_prob"], given["rollout_log_prob"], given["response_mask"])
  np.testing.assert_array_equal(kept, expected["mask"] == 1)


@cases("verl/offpolicy_metrics/")
def test_mismatch_metrics(name):
  _, given, expected = systems.load(name)
  arguments = given["old_log_prob"], given["rollout_log_prob"], given["response_mask"]
  seen = corrections.mismatch(*arguments)
  mean_difference = -masked_mean(corrections.log_ratio(*arguments), arguments[2])
  np.testing.assert_allclose(mean_difference, expected["metric:kl"], rtol=1e-6)
  np.testing.assert_allclose(seen["mismatch_kl"].result(), expected["metric:k3_kl"], rtol=1e-6)
  np.testing.assert_allclose(corrections.chi_squared(*arguments), expected["metric:chi2_token"], rtol=1e-6)
  by_sequence = corrections.chi_squared(*arguments, level="sequence")
  np.testing.assert_allclose(by_sequence, expected["metric:chi2_seq"], rtol=1e-6)


@cases("verl/bypass/")
def test_bypass(name):
  # The learner against the sampler directly: the sampler's log-probs take the place of the old ones.
  config, given, expected = systems.load(name)
  mask, mu = given["response_mask"], given["old_log_prob" if "rollout_log_prob" not in given else "rollout_log_prob"]
  logp = given["log_prob"] if "log_prob" in given else given["old_log_prob"]
  aggregate = AGGREGATES[config.get("loss_agg_mode", "token-mean")]
  surrogate = surrogates.dual_clip(
    low=config.get("clip_ratio_low", 0.2),
    high=config.get("clip_ratio_high", 0.2),
    bound=config.get("clip_ratio_c", 3.0),
  )
  objective = policy_gradient(ratios.token(), surrogate, aggregate)
  if config["loss_type"] == "reinforce":
    objective = policy_gradient(ratios.on_policy(), surrogates.reinforce(), aggregate)
  if "rollout_rs" in config:
    objective = masked(
      objective, lambda inputs: keep(config, inputs.batch_logp, inputs.old_logp, inputs.mask), needs=("batch_logp",)
    )
  if config["loss_type"] == "reinforce":

    def weights(inputs):
      return importance(config, inputs.batch_logp, inputs.old_logp, inputs.mask)

    objective = weighted(objective, weights, needs=("batch_logp",))
  inputs = Inputs(mask, given["advantages"], old_logp=mu, batch_logp=logp)
  value, gradient = value_and_gradient(objective, inputs, logp=logp)
  assert_agrees(value, expected["loss"])
  assert_agrees(gradient, expected["grad_log_prob"])


def test_every_case_is_compared():
  assert set(COMPARED) == set(systems.ids("verl/"))
