"""Cart-pole: a pole on a cart is to be kept upright by pushing the cart left or right."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rl_jax.environments.base import Discrete, Environment, Transition, vectorized

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
LIMITS = np.array([2.4, np.inf, 12 * np.pi / 180, np.inf], np.float32)  # of position and angle


def load(*, max_steps: int = 500) -> Environment:
  """Returns cart-pole, with a reward of 1 a step; its state is position, speed, angle and angular speed.

  Args:
    max_steps: Steps of the longest episode.

  Reference: A. G. Barto, R. S. Sutton, C. W. Anderson, "Neuronlike Adaptive Elements That Can Solve Difficult Learning
  Control Problems", IEEE Transactions on Systems, Man, and Cybernetics, 1983; numbers as in Gymnasium's CartPole-v1.

  >>> environment = load()
  >>> state, observations = environment.reset(jax.random.split(jax.random.key(0), 3))
  >>> environment.step(state, jnp.array([0, 1, 0])).rewards["upright"]
  Array([1., 1., 1.], dtype=float32)
  """
  single = Environment("cartpole", 4, Discrete(2), max_steps, {"upright": 1.0}, reset, step)
  return vectorized(single)


def reset(key: Array) -> tuple[Array, Array]:
  state = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
  return state, state


def step(state: Array, action: Array) -> Transition:
  position, speed, angle, spin = state
  force = jnp.where(action == 1, FORCE, -FORCE)
  total, sin, cos = CART + POLE, jnp.sin(angle), jnp.cos(angle)
  pushed = (force + POLE * HALF_LENGTH * jnp.square(spin) * sin) / total
  turning = (GRAVITY * sin - cos * pushed) / (HALF_LENGTH * (4 / 3 - POLE * jnp.square(cos) / total))
  moving = pushed - POLE * HALF_LENGTH * turning * cos / total
  state = state + SECONDS * jnp.stack([speed, moving, spin, turning])
  return Transition(state, state, {"upright": jnp.ones(())}, jnp.any(jnp.abs(state) > LIMITS))
