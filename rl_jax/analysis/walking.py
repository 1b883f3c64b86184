"""What a biped does, to look at: one episode as numbers, a film strip, an animation, and torques and gait over time."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rl_jax.analysis.figures import pyplot
from rl_jax.environments import biped, physics
from rl_jax.environments.agents import Agent
from rl_jax.environments.base import Environment
from rl_jax.errors import reason
from rl_jax.ops.moments import Moments
from rl_jax.rollouts.episodes import normalized

JOINTS = {"hip": "-", "knee": "--", "ankle": ":"}  # lines of a leg's color
LEGS = {"left": "tab:blue", "right": "tab:orange"}  # as in the model


class Walk(NamedTuple):
  """One greedy episode of T steps.

  Attributes:
    places: `[T, joints]`, of all joints, after each step; the first of them is how far the robot has come, in metres.
    torques: `[T, 6]`, in newton metres.
    forces: `[T, 2]`, under the left and the right foot, in newtons.
    rewards: Each term of the reward with its weight, `[T]`.
  """

  places: np.ndarray
  torques: np.ndarray
  forces: np.ndarray
  rewards: Mapping[str, np.ndarray]

  @property
  def distance(self) -> float:
    return float(self.places[-1, 0])


def record(environment: Environment, agent: Agent, params: Any, moments: Moments | None, key: jax.Array) -> Walk:
  """Plays one greedy episode of a biped.

  Args:
    environment: What `environments.biped.load` returns.
    agent: Who walks.
    params: Its parameters.
    moments: Of observations, by which they are normalized.
    key: PRNG key of the start.
  """
  choose = jax.jit(lambda seen: agent.distribution(params, normalized(seen, moments)).mode())
  step = environment.step if environment.on_host else jax.jit(environment.step)
  state, seen = environment.reset(jax.random.split(key, 1))
  walked, terms = [], []
  for _ in range(environment.max_steps):
    after = step(state, choose(seen))
    state, seen = after.state, after.observation
    walked.append([np.asarray(leaf)[0] for leaf in (state.body.places, state.torques, state.body.forces)])
    terms.append({name: environment.weights[name] * float(term[0]) for name, term in after.rewards.items()})
    if after.terminated[0]:
      break
  places, torques, forces = (np.stack(parts) for parts in zip(*walked, strict=True))
  return Walk(places, torques, forces, {name: np.array([term[name] for term in terms]) for name in terms[0]})


def frames(walk: Walk, *, every: int, width: int = 480, height: int = 270) -> list[np.ndarray]:
  """Renders every n-th step from the side, without a window: `[height, width, 3]` each.

  Raises:
    ValueError: If this machine cannot draw without a window; MUJOCO_GL says by what: egl, or osmesa, or glfw.
  """
  mujoco, model = importlib.import_module("mujoco"), physics.load_model(biped.MODEL)
  backend = os.environ.get("MUJOCO_GL") or ("egl" if sys.platform.startswith("linux") else "glfw")
  try:
    context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
    context.make_current()
    drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
  except Exception as error:
    raise ValueError(f"no picture can be drawn by MUJOCO_GL={backend}: {reason(error)}") from None
  data, scene, camera = mujoco.MjData(model), mujoco.MjvScene(model, maxgeom=100), mujoco.MjvCamera()
  camera.distance, camera.azimuth, camera.elevation = 1.8, 75.0, -12.0
  options, window, drawn = mujoco.MjvOption(), mujoco.MjrRect(0, 0, width, height), []
  mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, drawing)
  for places in walk.places[::every]:
    data.qpos[:] = places
    mujoco.mj_forward(model, data)
    camera.lookat = [places[0], 0, 0.35]
    mujoco.mjv_updateScene(model, data, options, None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
    picture = np.zeros((height, width, 3), np.uint8)
    mujoco.mjr_render(window, scene, drawing)
    mujoco.mjr_readPixels(picture, None, window, drawing)
    drawn.append(np.flipud(picture))
  context.free()
  return drawn


def draw_film(walks: Mapping[str, Walk], path: Path, *, pictures: int = 8, every: int = 6) -> Path:
  """Draws a film strip, one row a walk: from its middle on, or its end where it is short; returns its path."""
  plt = pyplot()
  figure = plt.figure(figsize=(2 * pictures, 2.6 * len(walks)), layout="constrained")
  for row, (title, walk) in zip(figure.subfigures(len(walks), 1, squeeze=False)[:, 0], walks.items(), strict=True):
    steps = len(walk.places)
    start = max(min(steps // 2, steps - pictures * every), 0)
    part = walk._replace(places=walk.places[start : start + pictures * every])
    shown = frames(part, every=every, width=240, height=240)
    row.suptitle(f"{title}: {walk.distance:z.1f} m in {steps * biped.SECONDS:.1f} s", fontsize=11)
    for column, axis in enumerate(row.subplots(1, pictures)):
      axis.axis("off")
      if column < len(shown):
        step = start + column * every
        axis.imshow(shown[column])
        axis.set_title(f"{step * biped.SECONDS:.2f} s, {walk.places[step, 0]:z.2f} m", fontsize=9)
  figure.savefig(path, dpi=80)
  plt.close(figure)
  return path


def save_animation(walks: Sequence[Walk], path: Path, *, every: int = 3, seconds: float = 5.0) -> Path:
  """Writes a GIF of the first seconds of walks one after the other, at the speed of life; returns its path."""
  image = importlib.import_module("PIL.Image")
  last = round(seconds / biped.SECONDS)
  drawn = [frame for walk in walks for frame in frames(walk._replace(places=walk.places[:last]), every=every)]
  pictures = [image.fromarray(frame).quantize(64) for frame in drawn]
  pause = round(1000 * every * biped.SECONDS)
  pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=pause, loop=0, optimize=True)
  return path


def draw_gait(walk: Walk, path: Path, *, seconds: float = 3.0) -> Path:
  """Draws torques, the forces under the feet, and the terms of the reward over the last seconds; returns its path."""
  plt = pyplot()
  steps = slice(max(len(walk.torques) - round(seconds / biped.SECONDS), 0), len(walk.torques))
  time = np.arange(len(walk.torques))[steps] * biped.SECONDS
  figure, axes = plt.subplots(4, 1, figsize=(10, 9), sharex=True)
  for place, (side, color) in enumerate(LEGS.items()):
    torques = walk.torques[steps, 3 * place : 3 * place + 3].T
    for (joint, style), values in zip(JOINTS.items(), torques, strict=True):
      axes[place].plot(time, values, style, color=color, label=joint, linewidth=1.2)
    axes[place].set_title(f"torques, {side} leg [N m]", fontsize=10)
    axes[2].plot(time, walk.forces[steps, place], color=color, label=side)
    axes[2].fill_between(time, walk.forces[steps, place], color=color, alpha=0.2)
  axes[2].set_title("normal force under each foot [N]", fontsize=10)
  colors = plt.get_cmap("Dark2").colors
  for (name, terms), color in zip(walk.rewards.items(), colors, strict=False):
    axes[3].plot(time, terms[steps], color=color, label=name)
  axes[3].set_title("terms of the reward, with their weights", fontsize=10)
  axes[3].set_xlabel("time [s]")
  for axis in axes:
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return path
