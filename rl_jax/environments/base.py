"""The contract of environments: pure functions over a batch of states, in JAX or on the host.

    reset(keys)           -> state, observations       keys [N]; observations [N, D]
    step(state, actions)  -> Transition                actions [N], or [N, A] within -1 to 1

An environment knows nothing of time limits, which are the rollout's: `terminated` says that an episode is over because
of what happened in it. One in pure JAX is written for a single state and mapped by `vectorized`; one on the host takes
and returns NumPy arrays, for however many rows it is given.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

LARGEST = 1e6  # beyond it, a number of an observation or a reward is that of a simulation that broke down


class Discrete(NamedTuple):
  """One of `count` actions."""

  count: int


class Box(NamedTuple):
  """`size` numbers from -1 to 1; what is outside of that is clipped by the environment."""

  size: int


class Transition(NamedTuple):
  """What follows an action.

  Attributes:
    state: Whatever `step` reads next.
    observation: `[N, D]`.
    rewards: Each term of the reward by name, `[N]`, without its weight.
    terminated: `[N]`, whether the episode is over, and nothing follows.
    truncated: `[N]`, whether the environment breaks it off for another reason; None where it never does.
  """

  state: Any
  observation: Float[Array, "N D"]
  rewards: Mapping[str, Float[Array, " N"]]
  terminated: Bool[Array, " N"]
  truncated: Bool[Array, " N"] | None = None


class Environment(NamedTuple):
  """A batch of independent copies of one environment.

  Attributes:
    name: Name in tables and file names.
    observation_size: D, numbers an observation.
    actions: What can be done.
    max_steps: T, steps after which a rollout truncates an episode.
    weights: The weight of each term of the reward; one of weight 0 is only logged. `failed`, if there is one, is the
      reward of a step in which the simulation breaks down (`guarded`).
    reset: `keys [N] -> (state, observations [N, D])`: the same start from the same key.
    step: `(state, actions) -> Transition`.
    on_host: Whether it runs on the host, outside of compiled programs.
  """

  name: str
  observation_size: int
  actions: Discrete | Box
  max_steps: int
  weights: Mapping[str, float]
  reset: Callable[[Array], tuple[Any, Float[Array, "N D"]]]
  step: Callable[[Any, Array], Transition]
  on_host: bool = False


class Guarded(NamedTuple):
  """A transition, and where the simulation broke down in it, `[N]`: these episodes are over."""

  transition: Transition
  failed: Bool[Array, " N"]


def guarded(environment: Environment) -> Callable[[Any, Array], Guarded]:
  """Returns the environment's `step` with the rows found in which it broke down.

  That is where a number of the observation or the reward is not finite, or beyond a million. Such a row is over; its
  observation is 0, and its only reward is the weight of `failed`, 0 where the environment has none. So nothing that
  learns or counts sees the numbers.

  Raises:
    ValueError: When it steps, if what comes back has other shapes or terms than the environment says.
  """
  xp = np if environment.on_host else jnp
  names = [name for name in environment.weights if name != "failed"]

  def step(state: Any, actions: Array) -> Guarded:
    after = environment.step(state, actions)
    _check(environment, after, names, len(actions))
    whole = xp.concatenate([after.observation, *(after.rewards[name][:, None] for name in names)], axis=-1)
    failed = ~xp.all(xp.abs(whole) < LARGEST, axis=-1)
    rewards = {name: xp.where(failed, 0, after.rewards[name]) for name in names}
    rewards |= {"failed": failed.astype(xp.float32)} if "failed" in environment.weights else {}
    observation = xp.where(failed[:, None], 0, after.observation)
    terminated = after.terminated | failed
    return Guarded(after._replace(observation=observation, rewards=rewards, terminated=terminated), failed)

  return step


def begin(environment: Environment, keys: Array) -> tuple[Any, Float[Array, "N D"]]:
  """Returns what `reset` does.

  Raises:
    ValueError: If the observations have another shape than the environment says.
  """
  state, observations = environment.reset(keys)
  _check_observations(environment, observations, len(keys))
  return state, observations


def _check_observations(environment: Environment, observations: Array, rows: int) -> None:
  wanted = (rows, environment.observation_size)
  if observations.shape != wanted:
    raise ValueError(
      f"environment {environment.name!r} must give observations {wanted}, it gave {tuple(observations.shape)}"
    )


def _check(environment: Environment, after: Transition, names: list[str], rows: int) -> None:
  name = environment.name
  _check_observations(environment, after.observation, rows)
  if sorted(after.rewards) != sorted(names):
    raise ValueError(f"environment {name!r} must give the rewards {names}, which have weights, not {[*after.rewards]}")
  shapes = {key: value.shape for key, value in {**after.rewards, "terminated": after.terminated}.items()}
  for key, shape in shapes.items():
    if shape != (rows,):
      raise ValueError(f"environment {name!r} must give {key} of shape {(rows,)}, it gave {shape}")


def vectorized(environment: Environment) -> Environment:
  """Maps an environment in pure JAX, written for a single state and key, over a batch."""
  return environment._replace(reset=jax.vmap(environment.reset), step=jax.vmap(environment.step))
