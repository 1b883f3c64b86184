"""A robot that learns to walk: a biped with 31 observations and 6 torques, and a reward of five terms.

The body is `biped.xml`. It is simulated by one of two backends with the same interface, `environments.physics`: MuJoCo
on the host, on all cores, or MJX in JAX, for TPUs and GPUs.

Observations, in metres, radians, seconds, newtons and newton metres: the torso's place to the side and its height above
the start (2), its velocity forwards, to the side and upwards (3), yaw, pitch and roll (3) and their rates (3), the
angles of hip, knee and ankle, left and right (6), and their rates (6), the normal force under each foot (2), and the
torques of the step before (6).
"""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from rl_jax.environments.base import Box, Environment, Transition
from rl_jax.environments.physics import Body, Simulator, make_simulator

MODEL = Path(__file__).with_name("biped.xml")
OBSERVATIONS = 31
MAX_TORQUE = 3.0  # newton metres, as in the model
SUBSTEPS = 4  # of the physics, 5 ms each, an action
SECONDS = 0.02  # an action
LOWEST, STEEPEST = -0.15, 0.8  # a fall: the torso this far below its start, or pitch or roll beyond this


class Walker(NamedTuple):
  """The state of N robots.

  Attributes:
    body: Places and speeds of all joints.
    torques: `[N, 6]`, those of the last step.
  """

  body: Body
  torques: Array


def load(
  *,
  backend: str = "mujoco",
  planar: bool = False,
  seconds: float = 10.0,
  speed: float = 1.0,
  sideways: float = -3.0,
  height: float = -50.0,
  alive: float = 25.0,
  effort: float = -0.02,
  failed: float = -1.0,
  noise: float = 0.02,
) -> Environment:
  """Returns the biped.

  The reward of a step is `v_x - 3 y^2 - 50 z^2 + 25 Ts / Tf - 0.02 sum_i u_i^2`: the torso's forward speed, its place
  to the side, its height above the start, a bonus for each step of length Ts of an episode of at most Tf, and the
  torques. Arguments that are terms of it are their weights.

  Args:
    backend: "mujoco", on the host, or "mjx", in JAX.
    planar: Whether the torso is held in the plane of walking, for quick tries.
    seconds: Tf, the longest episode.
    speed: Weight of the forward speed, in metres a second.
    sideways: Weight of the squared place to the side, in square metres.
    height: Weight of the squared height above the start, in square metres.
    alive: Weight of `Ts / Tf`.
    effort: Weight of the summed squares of the torques that led to the state, in square newton metres.
    failed: Reward of a step in which the simulation breaks down; it ends the episode, and has no other reward.
    noise: Largest deviation of a joint's angle, and of its rate, at the start.

  Raises:
    ValueError: If there is no such backend, or it is not installed.
  """
  numbers = dict(speed=speed, sideways=sideways, height=height, alive=alive, effort=effort, failed=failed, noise=noise)
  for name, number in numbers.items():
    if not math.isfinite(number):
      raise ValueError(f"{name} must be finite, got {number}")
  if noise < 0:
    raise ValueError(f"noise must be at least 0, got {noise}")
  if not SECONDS <= seconds < math.inf:
    raise ValueError(f"seconds must be at least {SECONDS} and finite, got {seconds}")
  simulator = make_simulator(backend, MODEL, substeps=SUBSTEPS, hold=("y", "yaw", "roll") if planar else ())
  max_steps = round(seconds / SECONDS)
  weights = {"speed": speed, "sideways": sideways, "height": height, "alive": alive, "effort": effort, "failed": failed}
  return Environment(
    "biped-planar" if planar else "biped",
    OBSERVATIONS,
    Box(6),
    max_steps,
    weights,
    make_reset(simulator, noise),
    make_step(simulator, share=1 / max_steps),
    on_host=simulator.on_host,
  )


def make_reset(simulator: Simulator, noise: float) -> Callable[[Array], tuple[Walker, Any]]:
  """Returns `reset(keys)`: standing, with small deviations of the joints."""

  @jax.jit
  def deviations(keys: Array) -> Array:
    return jax.vmap(lambda key: jax.random.uniform(key, (2, 6), minval=-noise, maxval=noise))(keys)

  def reset(keys: Array) -> tuple[Walker, Any]:
    xp = simulator.arrays
    drawn = xp.asarray(deviations(keys), simulator.start.dtype)
    still = xp.zeros((len(keys), 6), drawn.dtype)
    start = simulator.start[None] + xp.concatenate([still, drawn[:, 0]], axis=-1)
    body = Body(start, xp.concatenate([still, drawn[:, 1]], axis=-1), xp.zeros((len(keys), 2), drawn.dtype))
    return Walker(body, still), observe(xp, body, still)

  return reset


def make_step(simulator: Simulator, *, share: float) -> Callable[[Walker, Array], Transition]:
  """Returns `step(state, actions)`; `share` is what a step is of the longest episode."""

  def step(state: Walker, actions: Array) -> Transition:
    xp = simulator.arrays
    torques = MAX_TORQUE * xp.clip(xp.asarray(actions), -1, 1)
    body = simulator.advance(state.body, torques)
    _, y, z, _, pitch, roll = (body.places[:, i] for i in range(6))
    fallen = (z < LOWEST) | (xp.abs(pitch) > STEEPEST) | (xp.abs(roll) > STEEPEST)
    rewards = {
      "speed": body.speeds[:, 0],
      "sideways": y**2,
      "height": z**2,
      "alive": xp.full_like(y, share),
      "effort": xp.sum(torques**2, axis=-1),
    }
    return Transition(Walker(body, torques), observe(xp, body, torques), rewards, fallen)

  return step


def observe(xp: ModuleType, body: Body, torques: Array) -> Any:
  """Returns the 31 observations `[N, 31]`; how far the robot has come is none of them."""
  seen = xp.concatenate(
    [
      body.places[:, 1:3],
      body.speeds[:, 0:3],
      body.places[:, 3:6],
      body.speeds[:, 3:6],
      body.places[:, 6:12],
      body.speeds[:, 6:12],
      body.forces,
      torques,
    ],
    axis=-1,
  )
  return seen.astype(xp.float32)
