"""Agents for environments: a small network from observations to a distribution of actions, and one to a value."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.ops.distributions import Categorical, Distribution, Gaussian


class Agent(NamedTuple):
  """Pure functions of one dict of parameters, `{"policy": ...}`, with `"critic"` beside it where there are values.

  Attributes:
    init: `key -> params`.
    distribution: `(params, observations [..., D]) -> Gaussian or Categorical` over actions.
    value: `(params, observations [..., D]) -> [...]`, what a state is worth; None without a critic.
  """

  init: Callable[[Array], Any]
  distribution: Callable[[Any, Float[Array, "*batch D"]], Distribution]
  value: Callable[[Any, Float[Array, "*batch D"]], Float[Array, "*batch"]] | None


class MLP(nn.Module):
  """Dense layers with tanh between them, orthogonal at first; the last one is scaled."""

  widths: Sequence[int]
  out: int
  scale: float

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch N"]:
    for width in self.widths:
      x = jnp.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(math.sqrt(2)))(x))
    return nn.Dense(self.out, kernel_init=nn.initializers.orthogonal(self.scale))(x)


def gaussian(
  observation_size: int, action_size: int, *, widths: Sequence[int] = (64, 64), critic: bool = True, std: float = 0.5
) -> Agent:
  """Returns an agent whose actions are A numbers; their spread is learned, and the same in all states.

  Args:
    observation_size: D, numbers an observation.
    action_size: A, numbers an action.
    widths: Hidden units of each layer, in policy and critic.
    critic: Whether there is a critic.
    std: Standard deviation of the first actions, around 0.

  >>> agent = gaussian(3, 2)
  >>> params = agent.init(jax.random.key(0))
  >>> agent.distribution(params, jnp.ones((5, 3))).mean.shape, agent.value(params, jnp.ones((5, 3))).shape
  ((5, 2), (5,))
  """
  torso = MLP(tuple(widths), action_size, 0.01)

  def init(key: Array) -> Any:
    mean = torso.init(key, jnp.zeros(observation_size))["params"]
    return {"mean": mean, "log_std": jnp.full(action_size, math.log(std))}

  def distribution(params: Any, observations: Array) -> Gaussian:
    mean = torso.apply({"params": params["policy"]["mean"]}, observations)
    return Gaussian(jnp.asarray(mean), params["policy"]["log_std"])

  return _agent(init, distribution, observation_size, widths, critic)


def categorical(
  observation_size: int, num_actions: int, *, widths: Sequence[int] = (64, 64), critic: bool = True
) -> Agent:
  """Returns an agent that takes one of N actions; arguments as `gaussian`.

  >>> agent = categorical(4, 2, critic=False)
  >>> agent.distribution(agent.init(jax.random.key(0)), jnp.ones((5, 4))).logits.shape, agent.value
  ((5, 2), None)
  """
  torso = MLP(tuple(widths), num_actions, 0.01)

  def init(key: Array) -> Any:
    return torso.init(key, jnp.zeros(observation_size))["params"]

  def distribution(params: Any, observations: Array) -> Categorical:
    return Categorical(jnp.asarray(torso.apply({"params": params["policy"]}, observations)))

  return _agent(init, distribution, observation_size, widths, critic)


def _agent(
  init_policy: Callable[[Array], Any],
  distribution: Callable[[Any, Array], Distribution],
  observation_size: int,
  widths: Sequence[int],
  critic: bool,
) -> Agent:
  """Puts a critic of its own beside a policy."""
  torso = MLP(tuple(widths), 1, 1.0)

  def init(key: Array) -> Any:
    policy_key, critic_key = jax.random.split(key)
    params = {"policy": init_policy(policy_key)}
    return params | {"critic": torso.init(critic_key, jnp.zeros(observation_size))["params"]} if critic else params

  def value(params: Any, observations: Array) -> Array:
    return jnp.asarray(torso.apply({"params": params["critic"]}, observations))[..., 0]

  return Agent(init, distribution, value if critic else None)
