"""From rewards to advantages: one form for the estimators of groups, of tokens, and with a critic.

The estimators of `rl_jax.ops` are plain functions of arrays, each of those it needs. `adapt` tells by the names of
their arguments which these are, so that the estimator of any objective, or a new one, can be passed to a loop.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_jax.ops.masking import masked_whiten
from rl_jax.ops.token_advantages import per_token


class Experience(NamedTuple):
  """What advantages are estimated from.

  Attributes:
    mask: `[P, G, T]`, 1 where the policy chose the token and it is trained on.
    token_rewards: `[P, G, T]`, the reward that follows each token; that of a completion is their sum.
    rewarded: `[P, G]`, the completions that have a reward.
    values: `[P, G, T]`, the critic's value before each token; None without a critic.
    greedy_rewards: `[P]`, the reward of each prompt's greedy completion; None where no estimator needs it.
    last_values: `[P, G]`, the critic's value after the last token, where an answer that was cut off is worth that; 0
      for the others. None where every answer counts as finished.
  """

  mask: Bool[Array, "P G T"]
  token_rewards: Float[Array, "P G T"]
  rewarded: Bool[Array, "P G"]
  values: Float[Array, "P G T"] | None = None
  greedy_rewards: Float[Array, " P"] | None = None
  last_values: Float[Array, "P G"] | None = None


class Estimate(NamedTuple):
  """How advantages are estimated.

  Attributes:
    fields: `Experience -> {"advantages": [P, G, T], ...}`, fields of `objectives.base.Inputs`.
    needs: The optional fields of `Experience` that it reads.
  """

  fields: Callable[[Experience], dict[str, Array]]
  needs: frozenset[str] = frozenset()


def adapt(estimator: Callable[..., Any] | Estimate, *, whiten: bool = True) -> Estimate:
  """Adapts an estimator, told by the names of its arguments.

    (rewards [P, G], mask [P, G])                     of groups; every token of a completion gets the same
    (rewards [P, G], greedy_rewards [P], mask)        against the greedy completion
    (token_rewards [P, G, T], mask [P, G, T])         of tokens
    (rewards [P, G, T], values, mask)                 with a critic: returns advantages and returns

  Args:
    estimator: From `ops.advantages`, `ops.token_advantages` or `ops.returns`, or one like them; an `Estimate` is
      returned as it is.
    whiten: Whether a critic's advantages are whitened over the batch.

  Raises:
    ValueError: If the arguments are none of these.

  >>> from rl_jax.ops import advantages, returns
  >>> group, critic = adapt(advantages.group_normalized), adapt(returns.gae, whiten=False)
  >>> sorted(group.needs | critic.needs)
  ['values']
  >>> ones = jnp.ones((1, 2, 1))
  >>> experience = Experience(ones, jnp.array([[[1.0], [0.0]]]), jnp.ones((1, 2)), values=0.5 * ones)
  >>> print(critic.fields(experience)["advantages"].ravel())
  [ 0.5 -0.5]
  """
  if isinstance(estimator, Estimate):
    return estimator
  names = list(inspect.signature(estimator).parameters)

  def of_groups(experience: Experience) -> dict[str, Array]:
    greedy = {"greedy_rewards": experience.greedy_rewards} if "greedy_rewards" in names else {}
    rewards = jnp.sum(experience.token_rewards, axis=-1)
    return {"advantages": per_token(estimator(rewards, mask=experience.rewarded, **greedy), experience.mask)}

  def of_tokens(experience: Experience) -> dict[str, Array]:
    return {"advantages": estimator(experience.token_rewards, experience.mask)}

  def with_critic(experience: Experience) -> dict[str, Array]:
    bootstrap = {} if experience.last_values is None else {"last_value": experience.last_values}
    advantages, returns = estimator(experience.token_rewards, experience.values, experience.mask, **bootstrap)
    if whiten:
      advantages = masked_whiten(advantages, experience.mask)
    return {"advantages": advantages, "returns": returns}

  if names[:3] == ["rewards", "values", "mask"]:
    return Estimate(with_critic, frozenset({"values"}))
  if names[:2] == ["token_rewards", "mask"]:
    return Estimate(of_tokens)
  if names[:3] == ["rewards", "greedy_rewards", "mask"]:
    return Estimate(of_groups, frozenset({"greedy_rewards"}))
  if names[:2] == ["rewards", "mask"]:
    return Estimate(of_groups)
  raise ValueError(f"estimator takes {', '.join(names)}: not one of the forms that estimates.adapt knows")
