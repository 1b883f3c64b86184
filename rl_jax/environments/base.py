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
from jaxtyping import Array, Bool, Float


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
    terminated: `[N]`, whether the episode is over.
    failed: `[N]`, whether it is over because the simulation broke down; None where it cannot.
  """

  state: Any
  observation: Float[Array, "N D"]
  rewards: Mapping[str, Float[Array, " N"]]
  terminated: Bool[Array, " N"]
  failed: Bool[Array, " N"] | None = None


class Environment(NamedTuple):
  """A batch of independent copies of one environment.

  Attributes:
    name: Name in tables and file names.
    observation_size: D, numbers an observation.
    actions: What can be done.
    max_steps: T, steps after which a rollout truncates an episode.
    weights: The weight of each term of the reward; one of weight 0 is only logged.
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


def vectorized(environment: Environment) -> Environment:
  """Maps an environment in pure JAX, written for a single state and key, over a batch."""
  return environment._replace(reset=jax.vmap(environment.reset), step=jax.vmap(environment.step))
