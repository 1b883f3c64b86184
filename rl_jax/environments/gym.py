"""Environments of Gymnasium, vectorized on the host: anything registered there that has a vector of observations."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rl_jax.environments.base import Box, Discrete, Environment, Transition


def load(*, env_id: str = "CartPole-v1", max_steps: int = 0, processes: bool = False) -> Environment:
  """Returns an environment of Gymnasium; its reward is the term `reward`.

  Numbers of an action go from -1 to 1 here, and over the whole range that the environment has for them there.

  Args:
    env_id: A name of its registry, or `module:name`.
    max_steps: Steps of the longest episode; 0 for the environment's own limit.
    processes: Whether each copy runs in a process of its own, for environments that take long to step.

  Raises:
    ValueError: If Gymnasium is not installed, there is no such environment, or it has other spaces than these.
  """
  if max_steps < 0:
    raise ValueError(f"max_steps must be at least 1, or 0 for the environment's own, got {max_steps}")
  gymnasium = _package()
  try:
    single = gymnasium.make(env_id)
  except Exception as error:
    raise ValueError(f"env_id {env_id!r} names no environment that Gymnasium can make: {error}") from None
  observations, actions = single.observation_space, single.action_space
  limit = max_steps or (single.spec.max_episode_steps if single.spec else None)
  single.close()
  if not limit:
    raise ValueError(f"environment {env_id!r} has no limit of its own: max_steps must be at least 1")
  if not isinstance(observations, gymnasium.spaces.Box) or len(observations.shape) != 1:
    raise ValueError(f"environment {env_id!r} must have a vector of observations, it has {observations}")
  make = _make_copies(gymnasium, env_id, limit, processes)
  reset, step = _functions(make, *_scale(gymnasium, env_id, actions))
  return Environment(
    env_id, observations.shape[0], _actions(gymnasium, actions), limit, {"reward": 1.0}, reset, step, on_host=True
  )


def _package() -> Any:
  try:
    return importlib.import_module("gymnasium")
  except ImportError:
    raise ValueError("environments of Gymnasium need gymnasium: pip install 'rl-jax[gym]'") from None


def _actions(gymnasium: Any, space: Any) -> Discrete | Box:
  return Discrete(int(space.n)) if isinstance(space, gymnasium.spaces.Discrete) else Box(space.shape[0])


def _scale(gymnasium: Any, env_id: str, space: Any) -> tuple[Any, Any]:
  """Middle and half width of the range of actions; nothing for those that are counted."""
  if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
    return None, None
  if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
    raise ValueError(f"environment {env_id!r} must have actions 0 to n - 1 or a bounded vector of them, it has {space}")
  return (space.high + space.low) / 2, (space.high - space.low) / 2


def _make_copies(gymnasium: Any, env_id: str, limit: int, processes: bool) -> Callable[[int], Any]:
  """Returns `count -> that many copies`, made once for each count."""
  made: dict[int, Any] = {}

  def make(count: int) -> Any:
    if count not in made:
      mode = "async" if processes else "sync"
      made[count] = gymnasium.make_vec(env_id, num_envs=count, vectorization_mode=mode, max_episode_steps=limit)
    return made[count]

  return make


def _functions(make: Callable[[int], Any], middle: Any, half: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """Returns `reset` and `step`. A state is `[N, 2]`, each row's place among how many copies: they hold the rest, so
  that only the newest state of an episode can be stepped."""

  def reset(keys: Any) -> tuple[Any, Any]:
    seeds = np.asarray(jax.vmap(_seed)(keys))
    observations, _ = make(len(seeds)).reset(seed=seeds.tolist())
    count = len(seeds)
    return np.stack([np.arange(count), np.full(count, count)], axis=-1), observations.astype(np.float32)

  def step(state: Any, actions: Any) -> Transition:
    rows, copies = state[:, 0], make(int(state[0, 1]))
    everyone = np.zeros(copies.action_space.shape, copies.action_space.dtype)
    if middle is None:
      everyone[rows] = actions
    else:
      everyone[:], everyone[rows] = middle, middle + half * np.clip(actions, -1, 1)
    observations, rewards, terminated, truncated, _ = copies.step(everyone)
    terms = {"reward": rewards[rows].astype(np.float32)}
    return Transition(state, observations[rows].astype(np.float32), terms, terminated[rows], truncated[rows])

  return reset, step


def _seed(key: Any) -> Any:
  return jax.random.bits(key) >> 1
