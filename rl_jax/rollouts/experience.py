"""From a rollout and what is said of it to a batch: rewards of tokens, the KL in them, advantages, metrics. Pure."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.objectives.base import Inputs
from rl_jax.objectives.loading import Algorithm
from rl_jax.ops import advantages as advantages_lib
from rl_jax.ops import estimates, returns
from rl_jax.ops import rewards as rewards_lib
from rl_jax.ops.masking import masked_count, masked_mean, masked_sum, masked_variance
from rl_jax.ops.moments import Moments
from rl_jax.ops.shaping import PLAIN, Rewards, Shaping, combine, of_completion, token_rewards, updated
from rl_jax.rollouts.outputs import Outputs
from rl_jax.rollouts.rollout import Rollout
from rl_jax.state import Batch, Coefficients, Judgment, Running

Metrics = dict[str, Array]


class Experienced(NamedTuple):
  """What a rollout and its judgment come to.

  Attributes:
    running: What the rollout moved on.
    batch: The batch to learn from.
    metrics: The rollout's metrics.
    rewards: `[P, G]`, what is learned from of each completion; NaN where no reward applied.
  """

  running: Running
  batch: Batch
  metrics: Metrics
  rewards: Float[Array, "P G"]


MakeExperience = Callable[[Array, Running, Coefficients, Rollout, Outputs, Judgment], Experienced]

NOT_GIVEN = frozenset({"reward_scores", "ratings", "kl_baseline"})  # fields of preference data
GIVEN = frozenset({"token_rewards", "values", "greedy_rewards", "reward_parts", "reward_baseline", "old_logp"})


def check_needs(algorithm: Algorithm) -> frozenset[str]:
  """Returns the fields that an algorithm reads.

  Raises:
    ValueError: If it does not learn from rewards, or reads what no rollout or its advantage gives.

  >>> from rl_jax import objectives
  >>> check_needs(objectives.load("kto"))
  Traceback (most recent call last):
  ...
  ValueError: objective 'kto' does not learn from rewards: its module has no `advantage`
  """
  advantage, needs = algorithm.from_rewards(), algorithm.needs
  if missing := sorted((needs & NOT_GIVEN) | (advantage.needs - GIVEN)):
    raise ValueError(f"objective {algorithm.name!r} needs {missing[0]}, which no rollout gives")
  if "returns" in needs and "returns" not in jax.eval_shape(advantage.estimate, _two_prompts()):
    raise ValueError(f"objective {algorithm.name!r} needs returns, which its advantage does not give")
  return needs | advantage.needs


def _two_prompts() -> estimates.Experience:
  """Two prompts with one completion of one token each, of which one is rewarded."""
  rewards, none = jnp.array([[0.0], [1.0]]), jnp.zeros((2, 1, 1))
  return estimates.Experience(
    mask=none + 1,
    token_rewards=rewards[..., None],
    rewarded=rewards >= 0,
    lengths=jnp.ones((2, 1)),
    reward_baseline=jnp.zeros(()),
    old_logp=none,
    values=none,
    greedy_rewards=jnp.zeros(2),
    reward_parts=rewards[None],
    reward_weights=jnp.ones(1),
  )


def check_group_size(algorithm: Algorithm, group_size: int) -> None:
  """Raises ValueError if groups of one teach nothing, because completions are compared within their group alone.

  >>> from rl_jax import objectives
  >>> check_group_size(objectives.load("reinforce"), 1)
  >>> check_group_size(objectives.load("grpo"), 1)
  Traceback (most recent call last):
  ...
  ValueError: group_size must be at least 2 for objective 'grpo': a completion alone has no advantage
  """
  if group_size > 1:
    return
  if not jnp.any(algorithm.from_rewards().estimate(_two_prompts())["advantages"]):
    raise ValueError(
      f"group_size must be at least 2 for objective {algorithm.name!r}: a completion alone has no advantage"
    )


def rewards_of(judgment: Judgment, rollout: Rollout) -> Rewards:
  """Returns what is learned from of a rollout's completions, and where there is anything: one rule for all who ask."""
  scores = {name: jnp.asarray(score) for name, score in judgment.scores.items()}
  return combine(scores, judgment.weights, jnp.asarray(rollout.sequences.real) != 0)


def make_experience(algorithm: Algorithm, *, on_policy: bool, shaping: Shaping = PLAIN) -> MakeExperience:
  """Returns `experience(key, running, coefficients, rollout, outputs, judgment) -> Experienced`.

  Args:
    algorithm: Its advantage is estimated, and its needs decide which fields are filled in.
    on_policy: Whether the batch is used for a single update, so that the learner's own log-probs are the old ones.
    shaping: How rewards of completions become rewards of tokens; a KL takes its weight from the coefficient `kl_coef`.

  Raises:
    ValueError: If the algorithm reads what no rollout gives, or a KL would be paid twice, in the loss and the reward.
  """
  check_needs(algorithm)
  needs, advantage = algorithm.needs, algorithm.from_rewards()
  if shaping.kl is not None and "ref_logp" in needs:
    raise ValueError(
      f"objective {algorithm.name!r} has a KL to the reference in its loss: the reward cannot have another"
    )
  if shaping.spread is not None and "token_rewards" not in advantage.needs:
    raise ValueError(f"the advantage of {algorithm.name!r} reads whole completions: a spread changes nothing")
  if "reward_parts" in advantage.needs and shaping != PLAIN:
    raise ValueError(
      f"the advantage of {algorithm.name!r} reads each reward by itself: nothing can be shaped before it"
    )

  def experience(
    key: Array, running: Running, coefficients: Coefficients, rollout: Rollout, outputs: Outputs, judgment: Judgment
  ) -> Experienced:
    real, rewards = rollout.sequences.real != 0, rewards_of(judgment, rollout)
    # A completion that is left out of the loss keeps its reward, which the others of its group are compared with.
    counted, trained = real & rewards.rewarded[..., None], (rollout.mask != 0) & rewards.rewarded[..., None]
    moments = updated(running.reward_moments, rewards)
    at_tokens = token_rewards(shaping, rewards, rollout.terminated, counted, moments=moments)
    at_tokens, paid = _pay_kl(shaping, at_tokens, outputs, counted, rewards.rewarded, coefficients)
    values, last_values = _values(outputs, rollout.terminated)
    facts = estimates.Experience(
      mask=trained,
      token_rewards=at_tokens,
      rewarded=rewards.rewarded,
      lengths=masked_count(real, axis=-1),
      values=values,
      last_values=last_values,
      greedy_rewards=_greedy_rewards(judgment, shaping, moments),
      reward_baseline=running.reward_baseline,
      old_logp=outputs.old_logp,
      **(_parts(judgment, real) if "reward_parts" in advantage.needs else {}),
    )
    fields = advantage.estimate(facts)
    running = running._replace(reward_moments=moments, reward_baseline=fields.pop("reward_baseline", None))
    inputs = Inputs(
      mask=trained,
      old_logp=None if on_policy else outputs.old_logp,
      ref_logp=outputs.ref_logp if "ref_logp" in needs else None,
      behavior_logp=rollout.behavior_logp,
      old_values=values,
      target_mask=_target_mask(rollout, judgment) if "target_mask" in needs else None,
      noise=jax.random.uniform(key, trained.shape) if "noise" in needs else None,
      **fields,
    )
    metrics = rollout_metrics(rollout, judgment, rewards) | paid | _value_metrics(inputs)
    return Experienced(running, Batch(rollout.sequences, inputs), metrics, rewards.known)

  return experience


def rollout_metrics(rollout: Rollout, judgment: Judgment, rewards: Rewards) -> Metrics:
  """Returns a rollout's metrics: of what is learned from, of each reward by name, and of the completions."""
  real, known = rollout.sequences.real != 0, rewards.rewarded
  lengths = masked_count(real, axis=-1)
  any_known = jnp.any(known)
  metrics = {
    "reward": jnp.where(any_known, masked_mean(rewards.total, known), jnp.nan),
    "reward_std": jnp.where(any_known, jnp.sqrt(masked_variance(rewards.total, known, ddof=0)), jnp.nan),
    "length": jnp.mean(lengths),
    "tokens": jnp.sum(lengths),
    "terminated": jnp.mean(rollout.terminated.astype(jnp.float32)),
  }
  if known.shape[-1] > 1:
    metrics["zero_variance"] = jnp.mean(advantages_lib.zero_variance(rewards.total, known).astype(jnp.float32))
  if judgment.solved is not None:
    metrics["solved"] = jnp.mean(judgment.solved.astype(jnp.float32))
    metrics["wrong_length"] = masked_mean(lengths, ~(judgment.solved != 0))
  if len(judgment.every) > 1:
    for name, score in judgment.every.items():
      each = of_completion(score, real)
      applies = ~jnp.isnan(each)
      metrics[f"reward/{name}"] = jnp.where(jnp.any(applies), masked_mean(each, applies), jnp.nan)
  return metrics


def _pay_kl(
  shaping: Shaping, at_tokens: Array, outputs: Outputs, mask: Array, rewarded: Array, coefficients: Coefficients
) -> tuple[Array, Metrics]:
  """Takes each token's KL to the reference from its reward, and measures it: `kl_reward` in nats a token."""
  if shaping.kl is None:
    return at_tokens, {}
  if outputs.ref_logp is None or "kl_coef" not in coefficients:
    raise ValueError("a KL in the reward needs a reference policy and the coefficient kl_coef")
  old, ref, coef = outputs.old_logp, outputs.ref_logp, coefficients["kl_coef"]
  divergence = masked_sum(old - ref, mask)
  metrics = {
    "kl_reward": divergence / jnp.maximum(masked_count(mask), 1),
    "kl_completion": divergence / jnp.maximum(jnp.sum(rewarded), 1),
  }
  return rewards_lib.with_kl(at_tokens, old, ref, mask, coef=coef, estimator=shaping.kl), metrics


def _values(outputs: Outputs, terminated: Array) -> tuple[Array | None, Array | None]:
  """The critic's values, and what the state after the last token is worth: nothing where a stop token ended it."""
  if outputs.values is None:
    return None, None
  tokens, last = outputs.values
  return tokens, None if last is None else jnp.where(terminated, 0, last)


def _greedy_rewards(judgment: Judgment, shaping: Shaping, moments: Moments | None) -> Array | None:
  """The greedy completions' rewards `[P]`, shaped as those of the samples are, without a KL; NaN where none applies."""
  if judgment.greedy is None:
    return None
  scores, mask, terminated = judgment.greedy
  rewards = combine(scores, judgment.weights, mask)
  counted = (mask != 0) & rewards.rewarded[..., None]
  total = jnp.sum(token_rewards(shaping, rewards, terminated, counted, moments=moments), axis=-1)
  return jnp.where(rewards.rewarded, total, jnp.nan)[:, 0]


def _parts(judgment: Judgment, real: Array) -> dict[str, Array]:
  """Each reward by itself `[K, P, G]`, and the weights `[K]`."""
  parts = jnp.stack([of_completion(score, real) for score in judgment.scores.values()])
  return {
    "reward_parts": parts,
    "reward_weights": jnp.stack([jnp.asarray(judgment.weights[name]) for name in judgment.scores]),
  }


def _target_mask(rollout: Rollout, judgment: Judgment) -> Array:
  """The tokens of solved completions; of none, where nobody can tell."""
  if judgment.solved is None:
    return jnp.zeros(rollout.mask.shape, bool)
  return (rollout.mask != 0) & (judgment.solved != 0)[..., None]


def _value_metrics(inputs: Inputs) -> Metrics:
  if inputs.old_values is None or inputs.returns is None:
    return {}
  return {
    "explained_variance": returns.explained_variance(inputs.old_values, inputs.returns, inputs.mask),
    "value": masked_mean(inputs.old_values, inputs.mask),
  }
