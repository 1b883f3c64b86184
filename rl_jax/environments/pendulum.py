"""Pendulum: a rod that hangs from a hinge is to be swung up and held there, by a torque too weak to lift it at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.environments.base import Box, Environment, Transition, vectorized

GRAVITY, MASS, LENGTH, SECONDS, TORQUE, FASTEST = 10.0, 1.0, 1.0, 0.05, 2.0, 8.0


def load(*, max_steps: int = 200) -> Environment:
  """Returns the pendulum; its state is the angle from upright and its rate, an action 1 is the full torque.

  The reward is `-(angle^2 + 0.1 rate^2 + 0.001 torque^2)`; an episode never terminates. Numbers as in Gymnasium's
  Pendulum-v1.

  Args:
    max_steps: Steps of an episode.

  >>> environment = load()
  >>> state, observations = environment.reset(jax.random.split(jax.random.key(0), 3))
  >>> environment.step(state, jnp.zeros((3, 1))).observation.shape
  (3, 3)
  """
  weights = {"angle": -1.0, "rate": -0.1, "torque": -0.001}
  return vectorized(Environment("pendulum", 3, Box(1), max_steps, weights, reset, step))


def reset(key: Array) -> tuple[Array, Array]:
  state = jax.random.uniform(key, (2,), minval=-1, maxval=1) * jnp.array([jnp.pi, 1.0])
  return state, observe(state)


def observe(state: Array) -> Array:
  return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])


def step(state: Array, action: Array) -> Transition:
  angle, rate = state
  torque = TORQUE * jnp.clip(action[0], -1, 1)
  centred = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
  rewards = {"angle": jnp.square(centred), "rate": jnp.square(rate), "torque": jnp.square(torque)}
  turning = 1.5 * GRAVITY / LENGTH * jnp.sin(angle) + 3 * torque / (MASS * LENGTH**2)
  rate = jnp.clip(rate + SECONDS * turning, -FASTEST, FASTEST)
  state = jnp.stack([angle + SECONDS * rate, rate])
  return Transition(state, observe(state), rewards, jnp.zeros((), bool))
