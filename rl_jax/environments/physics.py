"""A body in MuJoCo's format, simulated on the host by all cores (`mujoco`) or in JAX (`mjx`), behind one interface."""

import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 1e30  # what a simulation that breaks down may come to, so that it fits into float32


class Body(NamedTuple):
  """The state of N bodies.

  Attributes:
    places: `[N, joints]`.
    speeds: `[N, joints]`.
    forces: `[N, sensors]`, what the model's sensors measured in the last substep.
  """

  places: Any
  speeds: Any
  forces: Any


class Simulator(NamedTuple):
  """A model that is simulated.

  Attributes:
    arrays: `numpy` or `jax.numpy`, the kind of its arrays.
    start: `[joints]`, the places that the model names.
    advance: `(bodies, controls [N, motors]) -> bodies`, after all substeps of an action.
    on_host: Whether it runs outside of compiled programs.
  """

  arrays: ModuleType
  start: Any
  advance: Callable[[Body, Any], Body]
  on_host: bool


def make_simulator(backend: str, path: Path, *, substeps: int, hold: Sequence[str] = ()) -> Simulator:
  """Loads a model.

  Args:
    backend: "mujoco" or "mjx".
    path: The model's XML; all of its joints are slides and hinges.
    substeps: Steps of the physics an action.
    hold: Joints that are held where they start.

  Raises:
    ValueError: If there is no such backend, or its package is not installed.
  """
  if backend not in ("mujoco", "mjx"):
    raise ValueError(f"backend must be mujoco or mjx, got {backend!r}")
  model = load_model(path, hold)
  return (_on_host if backend == "mujoco" else _in_jax)(model, substeps)


def load_model(path: Path, hold: Sequence[str] = ()) -> Any:
  """Returns the `mujoco.MjModel` of a file, for pictures too; arguments as `make_simulator`."""
  mujoco = _package("mujoco", "control")
  spec = mujoco.MjSpec.from_file(str(path))
  for name in hold:
    spec.add_equality(type=mujoco.mjtEq.mjEQ_JOINT, name1=name)
  return spec.compile()


def _on_host(model: Any, substeps: int) -> Simulator:
  """The simulator on all cores, in float64. Its results do not depend on how many there are."""
  mujoco, rollout = _package("mujoco", "control"), _package("mujoco.rollout", "control")
  threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  datas, pool = [mujoco.MjData(model) for _ in range(threads)], rollout.Rollout(nthread=threads)
  joints = model.nq

  def advance(body: Body, controls: Any) -> Body:
    count = len(controls)
    states = np.concatenate([np.zeros((count, 1)), body.places, body.speeds], axis=-1)
    held = np.repeat(np.asarray(controls, np.float64)[:, None], substeps, axis=1)
    states, measured = pool.rollout(model, datas, states, held)
    last, measured = (np.clip(found[:, -1], -LARGEST, LARGEST) for found in (states, measured))
    return Body(last[:, 1 : 1 + joints], last[:, 1 + joints :], measured)

  return Simulator(np, model.qpos0, advance, on_host=True)


def _in_jax(model: Any, substeps: int) -> Simulator:
  """The simulator in JAX, for TPUs and GPUs. On two CPU cores it is eleven times slower than the one on the host."""
  with contextlib.redirect_stdout(None):  # it prints that warp, which nothing here uses, is not installed
    mjx = _package("mujoco.mjx", "mjx")
  physics = mjx.put_model(model)
  empty = mjx.make_data(physics)

  def one(body: Body, controls: jax.Array) -> Body:
    data = empty.replace(qpos=body.places, qvel=body.speeds, ctrl=controls)
    data = jax.lax.fori_loop(0, substeps, lambda _, data: mjx.step(physics, data), data)
    return Body(data.qpos, data.qvel, data.sensordata)

  return Simulator(jnp, jnp.asarray(model.qpos0), jax.vmap(one), on_host=False)


def _package(name: str, extra: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError:
    raise ValueError(f"the simulation needs {name}: pip install 'rl-jax[{extra}]'") from None
