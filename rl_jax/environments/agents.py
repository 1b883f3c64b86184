"""Agents for environments: a small network from observations to a distribution of actions, and one to a value."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rl_jax.environments.base import Discrete, Environment
from rl_jax.ops.distributions import Categorical, Distribution, Gaussian
from rl_jax.ops.moments import Moments


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
    mean = jnp.asarray(torso.apply({"params": params["policy"]["mean"]}, observations))
    return Gaussian(mean, jnp.broadcast_to(params["policy"]["log_std"], mean.shape))

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


def for_environment(
  environment: Environment, *, widths: Sequence[int] = (64, 64), critic: bool = True, std: float = 0.5
) -> Agent:
  """Returns an agent for an environment's observations and actions; arguments as `gaussian`.

  >>> from rl_jax.environments import cartpole
  >>> agent = for_environment(cartpole.load())
  >>> agent.distribution(agent.init(jax.random.key(0)), jnp.ones((5, 4))).logits.shape
  (5, 2)
  """
  size, actions = environment.observation_size, environment.actions
  if isinstance(actions, Discrete):
    return categorical(size, actions.count, widths=widths, critic=critic)
  return gaussian(size, actions.size, widths=widths, critic=critic, std=std)


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


def save(folder: Path, params: Any, moments: Moments | None) -> Path:
  """Writes an agent's parameters, and the moments its observations are normalized by, to `agent.safetensors`.

  >>> import tempfile
  >>> agent = categorical(4, 2)
  >>> params = agent.init(jax.random.key(0))
  >>> with tempfile.TemporaryDirectory() as name:
  ...   _ = save(Path(name), params, None)
  ...   jax.tree.all(jax.tree.map(jnp.array_equal, params, load(Path(name))[0]))
  True
  """
  normalization = {} if moments is None else {"observations": moments._asdict()}
  tensors = flatten_dict({"params": params, **normalization}, sep="/")
  path = Path(folder) / "agent.safetensors"
  path.parent.mkdir(parents=True, exist_ok=True)
  save_file({name: np.asarray(leaf) for name, leaf in tensors.items()}, path)
  return path


def load(folder: Path) -> tuple[Any, Moments | None]:
  """Returns what `save` wrote: parameters, and moments or None.

  Raises:
    ValueError: If the file is missing or damaged.
  """
  path = Path(folder) / "agent.safetensors"
  try:
    tensors = unflatten_dict(load_file(path), sep="/")
  except (OSError, SafetensorError) as error:
    raise ValueError(f"{str(path)!r} is no readable agent: {error}") from None
  if "params" not in tensors:
    raise ValueError(f"{str(path)!r} holds no agent: it has no parameters")
  moments = tensors.get("observations")
  return tensors["params"], None if moments is None else Moments(**moments)
