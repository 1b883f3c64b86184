"""Checkpoints: the `RLState` but for what is frozen in it, written by orbax: atomically, in the background on
accelerators.

On CPU they are written before the run goes on: a background write would hold on to the buffers that the next update
wants to reuse, so that the state would exist twice, while it competes for the same cores.

A run that is killed at any instant, also while a checkpoint is being written, resumes from the last finished one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rl_jax.errors import reason
from rl_jax.state import join, split


class Checkpoints:
  """The checkpoints of one run. Open them with `open_checkpoints`, which waits for writes to finish on leaving."""

  def __init__(self, manager: ocp.CheckpointManager, frozen: Sequence[str] = ()):
    self._manager = manager
    self._frozen = frozen

  def latest(self) -> int | None:
    """Returns the step of the newest finished checkpoint, or None."""
    return self._manager.latest_step()

  def resume(self, state: Any) -> Any:
    """Returns the newest checkpoint in the form of `state`, or `state` itself where there is none."""
    step = self.latest()
    return state if step is None else self.restore(step, state)

  def save(self, step: int, state: Any) -> None:
    """Writes `state` as checkpoint `step`, unless there is one already."""
    if step != self.latest():
      items = {name: ocp.args.StandardSave(item) for name, item in self._items(state).items()}
      self._manager.save(step, args=ocp.args.Composite(**items))

  def restore(self, step: int, like: Any) -> Any:
    """Returns checkpoint `step`, with the structure, types and devices of `like`.

    What is frozen is `like`'s own.

    Raises:
      ValueError: If the checkpoint does not fit, because another model or optimizer wrote it.
    """
    own, where = self._items(like), f"checkpoint {step} in {self._manager.directory}"
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, own)
    try:
      items = {name: ocp.args.StandardRestore(item) for name, item in target.items()}
      found = self._manager.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
      raise ValueError(f"{where} is damaged, or of another model or optimizer: {reason(error)}") from error
    if not self._frozen:
      return found["state"]
    if int(found["frozen"]["fingerprint"]) != int(own["frozen"]["fingerprint"]):
      raise ValueError(f"{where} is of adapters on another model: the base is not the one that the run began with")
    policy = found["state"].policy
    whole = join(policy.params, split(like.policy.params, self._frozen)[1])
    return found["state"]._replace(policy=policy._replace(params=whole))

  def _items(self, state: Any) -> dict[str, Any]:
    """What a checkpoint holds: all of the state but what is frozen, of which it has a fingerprint."""
    if not self._frozen:
      return {"state": state}
    trained, constant = split(state.policy.params, self._frozen)
    own = state._replace(policy=state.policy._replace(params=trained))
    return {"state": own, "frozen": {"fingerprint": jax.jit(_fingerprint)(constant)}}


def _fingerprint(tree: Any) -> jax.Array:
  """A number of all bits and their places, the same on every device: integers are added, which wrap around."""
  total = jnp.uint32(0)
  for number, leaf in enumerate(jax.tree.leaves(tree)):
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint16 if leaf.dtype.itemsize == 2 else jnp.uint32)
    flat = bits.reshape(-1).astype(jnp.uint32)
    weights = (jax.lax.iota(jnp.uint32, flat.size) + jnp.uint32(number + 1)) * jnp.uint32(2654435761) | jnp.uint32(1)
    total += jnp.sum((flat ^ (flat >> 15)) * weights, dtype=jnp.uint32)
  return total


@contextmanager
def open_checkpoints(folder: str | Path, *, keep: int = 2, frozen: Sequence[str] = ()) -> Iterator[Checkpoints]:
  """Opens the checkpoints of a folder, keeping the newest `keep`; the parameters that are frozen are not written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder, open_checkpoints(folder) as checkpoints:
  ...   checkpoints.save(3, {"x": jax.numpy.ones(2)})
  ...   checkpoints.latest(), checkpoints.resume({"x": jax.numpy.zeros(2)})["x"].tolist()
  (3, [1.0, 1.0])
  """
  background = jax.default_backend() != "cpu"
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=background)
  with ocp.CheckpointManager(Path(folder).absolute(), options=options) as manager:
    yield Checkpoints(manager, frozen)
    manager.wait_until_finished()
