"""Devices: the mesh, where arrays lie on it, and the same update step under jit, shard_map and pmap.

The only file with collectives. `Devices` is what a run needs of them. The main path is `jit_step`: batches are sharded
over the mesh's data axis, the step is written as if there were one device, and XLA inserts the communication. Under
`shard_map_step` and `pmap_step` the step sees its own rows only and names the axis: weights are computed from all rows
*before* differentiation, and gradients are summed once after it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rl_jax.ops import metrics as metrics_lib

AXES = ("data", "fsdp", "tensor")
BY_ROW = PartitionSpec(("data", "fsdp"))
REPLICATED = PartitionSpec()

Device: TypeAlias = Any  # a jax.Device, which type checkers take for a variable
Step: TypeAlias = Callable[[Any, Any], tuple[Any, Any]]
AxisName: TypeAlias = str | tuple[str, ...] | None


class Devices:
  """The devices of a run, and what it puts and compiles there.

  >>> devices = Devices(make_mesh(data=1, devices=jax.devices()[:1]))
  >>> double = devices.jit(lambda x: 2 * x)
  >>> double(1.0), double(2.0), devices.compiles
  (Array(2., dtype=float32, weak_type=True), Array(4., dtype=float32, weak_type=True), 1)

  Attributes:
    mesh: A mesh with axes data, fsdp and tensor.
    compiles: Functions that were traced so far, each once a shape: one that rises every step costs more than all else.
  """

  def __init__(self, mesh: Mesh | None = None):
    """Takes all devices by default, for data parallelism."""
    self.mesh = make_mesh() if mesh is None else mesh
    self.compiles = 0

  def put(self, tree: Any) -> Any:
    """Splits the leading axis of every leaf over the devices, as `put` does."""
    return put(tree, self.mesh)

  def replicate(self, tree: Any) -> Any:
    """Puts every leaf on all devices; where it is already, it is not copied."""
    return jax.device_put(tree, NamedSharding(self.mesh, REPLICATED))

  def jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Jits a function, and counts how often it is traced."""
    return jax.jit(self._counted(function), **options)

  def step(self, step: "Step") -> "Step":
    """Jits an update step over the devices; its state is donated."""
    return jit_step(self._counted(step), self.mesh)

  def build(self, make: Callable[..., Any], *args: Any) -> Any:
    """Builds a training state on all devices; the buffers of the first argument are taken over."""
    return build_replicated(make, self.mesh)(*args)

  def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
      self.compiles += 1
      return function(*args, **kwargs)

    return counted


def make_mesh(
  *, data: int | None = None, fsdp: int = 1, tensor: int = 1, devices: Sequence[Device] | None = None
) -> Mesh:
  """Returns a mesh with axes data, fsdp and tensor; `data` takes all remaining devices by default.

  Raises:
    ValueError: If the sizes do not multiply to the number of devices.

  >>> make_mesh(data=1, devices=jax.devices()[:1]).axis_names
  ('data', 'fsdp', 'tensor')
  """
  devices = jax.devices() if devices is None else devices
  data = len(devices) // (fsdp * tensor) if data is None else data
  if data * fsdp * tensor != len(devices):
    raise ValueError(f"data * fsdp * tensor must be the {len(devices)} devices, got {data} * {fsdp} * {tensor}")
  return Mesh(np.asarray(devices).reshape(data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a copy of every leaf on each device of the mesh, which may be donated: the originals stay as they are.

  >>> mesh = make_mesh(data=1, devices=jax.devices()[:1])
  >>> replicate({"x": jnp.ones(2)}, mesh)["x"].sharding.is_fully_replicated
  True
  """
  return jax.device_put(jax.tree.map(jnp.copy, tree), NamedSharding(mesh, REPLICATED))


def build_replicated(make: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Returns `make` jitted with its result on all devices of the mesh; its first argument's buffers are taken over.

  It builds a training state around loaded parameters without a moment in which they exist twice.

  >>> mesh = make_mesh(data=1, devices=jax.devices()[:1])
  >>> int(build_replicated(lambda x, y: x + y, mesh)(jnp.array(1), 2))
  3
  """
  return jax.jit(make, out_shardings=NamedSharding(mesh, REPLICATED), donate_argnums=0)


def put(tree: Any, mesh: Mesh) -> Any:
  """Splits every leaf's leading axis over the devices of the data and fsdp axes.

  Raises:
    ValueError: If the rows do not divide evenly.

  >>> mesh = make_mesh(data=1, devices=jax.devices()[:1])
  >>> put(jnp.arange(4), mesh).tolist()
  [0, 1, 2, 3]
  """
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  rows = {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
  if any(count % parts for count in rows):
    raise ValueError(f"the number of prompts must be a multiple of the {parts} devices, got {sorted(rows)}")
  return jax.device_put(tree, NamedSharding(mesh, BY_ROW))


def jit_step(step: Step, mesh: Mesh) -> Step:
  """The main path: one program over the mesh. The step names no axis; its state is donated and replicated.

  >>> mesh = make_mesh(data=1, devices=jax.devices()[:1])
  >>> step = jit_step(lambda state, batch: (state + batch.sum(), batch.mean()), mesh)
  >>> [float(x) for x in step(replicate(jnp.zeros(()), mesh), put(jnp.ones((4, 2)), mesh))]
  [8.0, 1.0]
  """
  whole, rows = NamedSharding(mesh, REPLICATED), NamedSharding(mesh, BY_ROW)
  return jax.jit(step, in_shardings=(whole, rows), out_shardings=whole, donate_argnums=0)


def over_runs(run: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Maps a run over the leading axis of its arguments (seeds, hyperparameters), split over the devices; compiled.

  Every device trains its share of the runs; they never communicate.

  Raises:
    ValueError: If the runs do not divide evenly.

  >>> mesh = make_mesh(data=1, devices=jax.devices()[:1])
  >>> over_runs(lambda x: x * 2, mesh)(jnp.arange(3)).tolist()
  [0, 2, 4]
  """
  mapped = jax.jit(jax.shard_map(jax.vmap(run), mesh=mesh, in_specs=BY_ROW, out_specs=BY_ROW, check_vma=False))
  parts = mesh.shape["data"] * mesh.shape["fsdp"]

  def checked(*args: Any) -> Any:
    runs = {leaf.shape[0] for leaf in jax.tree.leaves(args)}
    if any(count % parts for count in runs):
      raise ValueError(f"the number of runs must be a multiple of the {parts} devices, got {sorted(runs)}")
    return mapped(*args)

  return checked


def shard_map_step(step: Step, mesh: Mesh) -> Step:
  """The step, made with `axis_name=("data", "fsdp")`, on each device's own rows; the state is donated.

  >>> mesh = make_mesh(data=1, devices=jax.devices()[:1])
  >>> def step(state, batch):
  ...   total = sum_over_devices(batch.sum(), ("data", "fsdp"))
  ...   return state + total, total
  >>> [float(x) for x in shard_map_step(step, mesh)(jnp.zeros(()), jnp.ones((4, 2)))]
  [8.0, 8.0]
  """
  mapped = jax.shard_map(step, mesh=mesh, in_specs=(REPLICATED, BY_ROW), out_specs=REPLICATED, check_vma=False)
  return jax.jit(mapped, donate_argnums=0)


def pmap_step(step: Step, *, axis_name: str = "data", devices: Sequence[Device] | None = None) -> Step:
  """The step, made with the same `axis_name`, under pmap. Batches come whole and are split over the devices.

  On CPU it costs two to five times a `jit_step`; it is here for programs that are written around pmap.

  >>> def step(state, batch):
  ...   total = sum_over_devices(batch.sum(), "data")
  ...   return state + total, total
  >>> mapped = pmap_step(step, devices=jax.devices()[:1])
  >>> [float(x) for x in mapped(jnp.zeros(()), jnp.ones((4, 2)))]
  [8.0, 8.0]
  """
  devices = jax.local_devices() if devices is None else devices
  mapped = jax.pmap(step, axis_name=axis_name, in_axes=(None, 0), out_axes=None, devices=devices)

  def split(leaf: jax.Array) -> jax.Array:
    if leaf.shape[0] % len(devices):
      raise ValueError(f"the number of prompts must be a multiple of {len(devices)} devices, got {leaf.shape[0]}")
    return leaf.reshape(len(devices), -1, *leaf.shape[1:])

  return lambda state, batch: mapped(state, jax.tree.map(split, batch))


def global_weights(weight: Callable[[Any], Any], inputs: Any, axis_name: AxisName) -> Any:
  """Computes per-token weights from the rows of all devices and returns those of this device's rows.

  >>> print(global_weights(lambda mask: mask / mask.sum(), jnp.array([1.0, 1.0, 0.0]), None))
  [0.5 0.5 0. ]
  """
  if axis_name is None:
    return weight(inputs)
  everywhere = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), inputs)
  rows = jax.tree.leaves(inputs)[0].shape[0]
  start = jax.lax.axis_index(axis_name) * rows
  return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), weight(everywhere))


def sum_over_devices(tree: Any, axis_name: AxisName) -> Any:
  """Sums every leaf over the axis; the identity where no axis is named.

  >>> print(jax.vmap(lambda x: sum_over_devices(x, "rows"), axis_name="rows")(jnp.array([1.0, 2.0])))
  [3. 3.]
  """
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def combine_metrics(metrics: metrics_lib.Metrics, axis_name: AxisName) -> metrics_lib.Metrics:
  """Combines each device's metrics, means with means, maxima with maxima.

  >>> from rl_jax.ops.metrics import Mean, results
  >>> results(combine_metrics({"loss": Mean(jnp.array(6.0), jnp.array(4.0))}, None))
  {'loss': 1.5}
  """
  if axis_name is None:
    return metrics
  return metrics_lib.reduce(jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name), metrics))
