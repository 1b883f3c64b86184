"""From rewards to advantages: every estimator as a function of what a rollout gives, whatever it reads of it.

The estimators of `ops.advantages`, `ops.token_advantages` and `ops.returns` are plain functions of the arrays that they
need. A factory here says what those are, and returns an `Advantage`, which any loop can take:

    per_completion(f)         f(rewards [P, G], mask [P, G])                            such as group_normalized
    with_lengths(f)           f(rewards, lengths [P, G], mask)                          opo
    over_tokens(f)            f(rewards, mask [P, G, T], group_mask=[P, G])             reinforce_plus_plus_baseline
    per_token(f)              f(token_rewards [P, G, T], mask [P, G, T])                reinforce_plus_plus
    per_reward(f)             f(rewards [K, P, G], mask [K, P, G], weights=[K])         normalize_then_sum
    against_greedy(f)         f(rewards, greedy_rewards [P], mask)                      remax
    against_running_mean()    rewards less a mean that outlives the batch               running_mean
    with_critic(f)            f(token_rewards, values [P, G, T], mask, last_value=...)  gae
    with_probabilities(f)     f(token_rewards, old_logp, sum_squared_probs, mask)       optimal_token_baseline
    from_teacher(f)           f(teacher_logp, old_logp, mask)                           distillation
    by_steps(base)            an estimate of episodes, and that of steps from one state step_level

`functools.partial` sets an estimator's own settings: `per_completion(partial(group_normalized, scale="none"))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from rl_jax.ops import advantages as advantages_lib
from rl_jax.ops import token_advantages
from rl_jax.ops.advantages import whitened
from rl_jax.ops.masking import masked_whiten
from rl_jax.ops.token_advantages import broadcast_to_tokens


class Experience(NamedTuple):
  """What advantages are estimated from; the fields after `lengths` are None where no estimate needs them.

  Attributes:
    mask: `[P, G, T]`, 1 where the policy chose the token and it is trained on.
    token_rewards: `[P, G, T]`, the reward that follows each token; that of a completion is their sum.
    rewarded: `[P, G]`, the completions that have a reward.
    lengths: `[P, G]`, tokens of each completion.
    values: `[P, G, T]`, the critic's value before each token.
    last_values: `[P, G]`, the critic's value after the last token, where a truncated completion is worth that; 0 for
      the others.
    greedy_rewards: `[P]`, the reward of each prompt's greedy completion, NaN where it has none.
    reward_parts: `[K, P, G]`, each reward by itself, NaN where it does not apply.
    reward_weights: `[K]`.
    reward_baseline: The running mean of rewards.
    old_logp: `[P, G, T]`, log-probs of the policy that sampled.
    sum_squared_probs: `[P, G, T]`, `sum_v pi(v)^2` at each token.
    teacher_logp: `[P, G, T]`, another policy's log-probs.
    step_rewards: `[S]`, the return from each step of the batch.
    states: `[S]`, equal integers where two steps started from the same state.
    steps: `[P, G, T]`, the step of each token.
  """

  mask: Shaped[Array, "P G T"]
  token_rewards: Float[Array, "P G T"]
  rewarded: Shaped[Array, "P G"]
  lengths: Shaped[Array, "P G"]
  values: Float[Array, "P G T"] | None = None
  last_values: Float[Array, "P G"] | None = None
  greedy_rewards: Float[Array, " P"] | None = None
  reward_parts: Float[Array, "K P G"] | None = None
  reward_weights: Float[Array, " K"] | None = None
  reward_baseline: Float[Array, ""] | None = None
  old_logp: Float[Array, "P G T"] | None = None
  sum_squared_probs: Float[Array, "P G T"] | None = None
  teacher_logp: Float[Array, "P G T"] | None = None
  step_rewards: Float[Array, " S"] | None = None
  states: Int[Array, " S"] | None = None
  steps: Int[Array, "P G T"] | None = None


class Advantage(NamedTuple):
  """How advantages are estimated.

  Attributes:
    estimate: `Experience -> {"advantages": [P, G, T], ...}`, fields of `objectives.base.Inputs`; `reward_baseline`
      among them is carried on to the next rollout.
    needs: The optional fields of `Experience` that it reads; what nobody needs is not computed. "token_rewards" is
      among them where it matters on which of a completion's tokens a reward stands.
  """

  estimate: Callable[[Experience], dict[str, Array]]
  needs: frozenset[str] = frozenset()


def _total(experience: Experience) -> Array:
  return jnp.sum(experience.token_rewards, axis=-1)


def _for_tokens(per_completion: Array, experience: Experience) -> dict[str, Array]:
  return {"advantages": broadcast_to_tokens(per_completion, experience.mask)}


def per_completion(estimator: Callable[..., Any]) -> Advantage:
  """Every token of a completion gets what `estimator(rewards [P, G], mask [P, G])` gives for it.

  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, jnp.array([[[1.0], [0.0]]]), ones[..., 0], ones[..., 0])
  >>> print(per_completion(advantages_lib.leave_one_out).estimate(experience)["advantages"].ravel())
  [ 1. -1.]
  """
  return Advantage(lambda experience: _for_tokens(estimator(_total(experience), experience.rewarded), experience))


def with_lengths(estimator: Callable[..., Any]) -> Advantage:
  """As `per_completion`, for `estimator(rewards, lengths [P, G], mask)`.

  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, jnp.array([[[0.0], [1.0]]]), ones[..., 0], jnp.array([[1, 3]]))
  >>> print(with_lengths(advantages_lib.opo).estimate(experience)["advantages"].ravel())
  [-0.75  0.25]
  """
  return Advantage(
    lambda experience: _for_tokens(estimator(_total(experience), experience.lengths, experience.rewarded), experience)
  )


def over_tokens(estimator: Callable[..., Any]) -> Advantage:
  """`estimator(rewards [P, G], mask [P, G, T], group_mask=[P, G]) -> [P, G, T]`, a statistic of the batch's tokens.

  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, jnp.array([[[0.0], [2.0]]]), ones[..., 0], ones[..., 0])
  >>> found = over_tokens(token_advantages.reinforce_plus_plus_baseline).estimate(experience)["advantages"]
  >>> print(found.ravel().round(2))
  [-0.71  0.71]
  """
  return Advantage(
    lambda experience: {"advantages": estimator(_total(experience), experience.mask, group_mask=experience.rewarded)}
  )


def per_token(estimator: Callable[..., Any]) -> Advantage:
  """`estimator(token_rewards [P, G, T], mask [P, G, T]) -> [P, G, T]`.

  >>> from rl_jax.ops import returns
  >>> ones = jnp.ones((1, 1, 2))
  >>> experience = Experience(ones, jnp.array([[[1.0, 2.0]]]), ones[..., 0], ones[..., 0])
  >>> print(per_token(returns.discounted_returns).estimate(experience)["advantages"].ravel())
  [3. 2.]
  """
  return Advantage(
    lambda experience: {"advantages": estimator(experience.token_rewards, experience.mask)},
    frozenset({"token_rewards"}),
  )


def per_reward(estimator: Callable[..., Any], *, whiten: bool = True) -> Advantage:
  """`estimator(rewards [K, P, G], mask [K, P, G], weights=[K]) -> [P, G]`, of each reward function by itself.

  Args:
    estimator: An estimator such as `normalize_then_sum`.
    whiten: Whether its result is whitened over the batch's completions.

  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, ones, ones[..., 0], ones[..., 0],
  ...     reward_parts=jnp.array([[[0.0, 1.0]], [[10.0, 0.0]]]), reward_weights=jnp.array([1.0, 0.5]))
  >>> found = per_reward(advantages_lib.normalize_then_sum, whiten=False).estimate(experience)["advantages"]
  >>> print(found.ravel().round(2))
  [-0.35  0.35]
  """

  def estimate(experience: Experience) -> dict[str, Array]:
    parts = jnp.asarray(experience.reward_parts)
    found = estimator(parts, ~jnp.isnan(parts), weights=experience.reward_weights)
    return _for_tokens(whitened(found, experience.rewarded) if whiten else found, experience)

  return Advantage(estimate, frozenset({"reward_parts"}))


def against_greedy(estimator: Callable[..., Any]) -> Advantage:
  """As `per_completion`, for `estimator(rewards, greedy_rewards [P], mask)`; 0 where the greedy one has no reward.

  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, ones, ones[..., 0], ones[..., 0], greedy_rewards=jnp.array([0.25]))
  >>> print(against_greedy(advantages_lib.remax).estimate(experience)["advantages"].ravel())
  [0.75 0.75]
  """

  def estimate(experience: Experience) -> dict[str, Array]:
    greedy = jnp.asarray(experience.greedy_rewards)
    known = ~jnp.isnan(greedy)
    compared = experience.rewarded.astype(bool) & known[:, None]
    return _for_tokens(estimator(_total(experience), jnp.where(known, greedy, 0), compared), experience)

  return Advantage(estimate, frozenset({"greedy_rewards"}))


def against_running_mean(*, decay: float | Array = 0.95) -> Advantage:
  """`A = s - b`, with the running mean of all rewards before this batch for b.

  Args:
    decay: `b' = decay b + (1 - decay) mean(s)`, as `advantages.running_mean` has it.

  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, ones, ones[..., 0], ones[..., 0], reward_baseline=jnp.array(0.5))
  >>> found = against_running_mean(decay=0.5).estimate(experience)
  >>> print(found["advantages"].ravel(), found["reward_baseline"])
  [0.5 0.5] 0.75
  """

  def estimate(experience: Experience) -> dict[str, Array]:
    before, rewards = jnp.asarray(experience.reward_baseline), _total(experience)
    after = advantages_lib.running_mean(before, rewards, experience.rewarded, decay=decay)
    return _for_tokens(advantages_lib.baseline(rewards, experience.rewarded, value=before), experience) | {
      "reward_baseline": after
    }

  return Advantage(estimate, frozenset({"reward_baseline"}))


def with_critic(estimator: Callable[..., Any], *, whiten: bool = True) -> Advantage:
  """`estimator(token_rewards, values, mask, last_value=...) -> (advantages, returns)`, all `[P, G, T]`.

  Args:
    estimator: An estimator such as `returns.gae`.
    whiten: Whether the advantages are whitened over the batch's tokens.

  >>> from rl_jax.ops import returns
  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, jnp.array([[[1.0], [0.0]]]), ones[..., 0], ones[..., 0], values=0.5 * ones)
  >>> print(with_critic(returns.gae, whiten=False).estimate(experience)["advantages"].ravel())
  [ 0.5 -0.5]
  """

  def estimate(experience: Experience) -> dict[str, Array]:
    bootstrap = {} if experience.last_values is None else {"last_value": experience.last_values}
    advantages, returns = estimator(experience.token_rewards, experience.values, experience.mask, **bootstrap)
    return {"advantages": masked_whiten(advantages, experience.mask) if whiten else advantages, "returns": returns}

  return Advantage(estimate, frozenset({"token_rewards", "values"}))


def with_probabilities(estimator: Callable[..., Any]) -> Advantage:
  """`estimator(token_rewards, old_logp, sum_squared_probs, mask) -> (advantages, returns)`, all `[P, G, T]`.

  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, jnp.array([[[1.0], [0.0]]]), ones[..., 0], ones[..., 0],
  ...     old_logp=jnp.log(0.5 * ones), sum_squared_probs=0.5 * ones)
  >>> print(with_probabilities(token_advantages.optimal_token_baseline).estimate(experience)["advantages"].ravel())
  [ 0.5 -0.5]
  """

  def estimate(experience: Experience) -> dict[str, Array]:
    found = estimator(experience.token_rewards, experience.old_logp, experience.sum_squared_probs, experience.mask)
    return dict(zip(("advantages", "returns"), found, strict=True))

  return Advantage(estimate, frozenset({"token_rewards", "old_logp", "sum_squared_probs"}))


def from_teacher(estimator: Callable[..., Any] = token_advantages.distillation) -> Advantage:
  """`estimator(teacher_logp, old_logp, mask) -> [P, G, T]`: no reward but another policy's log-probs.

  >>> ones = jnp.ones((1, 1, 1))
  >>> experience = Experience(ones, 0 * ones, ones[..., 0], ones[..., 0], teacher_logp=-ones, old_logp=-3 * ones)
  >>> print(from_teacher().estimate(experience)["advantages"].ravel())
  [2.]
  """
  return Advantage(
    lambda experience: {"advantages": estimator(experience.teacher_logp, experience.old_logp, experience.mask)},
    frozenset({"teacher_logp", "old_logp"}),
  )


def by_steps(base: Advantage, estimator: Callable[..., Any] = token_advantages.step_level) -> Advantage:
  """`estimator(advantages [P, G, T], step_rewards, states, steps, mask)` on top of another estimate.

  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, jnp.array([[[1.0], [0.0]]]), ones[..., 0], ones[..., 0],
  ...     step_rewards=jnp.array([3.0, 1.0]), states=jnp.array([0, 0]), steps=jnp.array([[[0], [1]]]))
  >>> found = by_steps(per_completion(advantages_lib.leave_one_out)).estimate(experience)["advantages"]
  >>> [f"{x:.2f}" for x in found.ravel()]
  ['1.71', '-1.71']
  """

  def estimate(experience: Experience) -> dict[str, Array]:
    fields = base.estimate(experience)
    steps = (experience.step_rewards, experience.states, experience.steps)
    return fields | {"advantages": estimator(fields["advantages"], *steps, experience.mask)}

  return Advantage(estimate, base.needs | {"step_rewards", "states", "steps"})
