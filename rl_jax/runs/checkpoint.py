"""Checkpoints: the whole `RLState`, written atomically by orbax, and in the background on accelerators.

On CPU they are written before the run goes on: a background write would hold on to the buffers that the next update
wants to reuse, so that the state would exist twice, while it competes for the same cores.

A run that is killed at any instant, also while a checkpoint is being written, resumes from the last finished one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rl_jax.errors import reason


class Checkpoints:
  """The checkpoints of one run. Open them with `open_checkpoints`, which waits for writes to finish on leaving."""

  def __init__(self, manager: ocp.CheckpointManager):
    self._manager = manager

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
      self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

  def restore(self, step: int, like: Any) -> Any:
    """Returns checkpoint `step`, with the structure, types and devices of `like`.

    Raises:
      ValueError: If the checkpoint does not fit, because another model or optimizer wrote it.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
    except (ValueError, KeyError, TypeError) as error:
      where = f"checkpoint {step} in {self._manager.directory}"
      raise ValueError(f"{where} is damaged, or of another model or optimizer: {reason(error)}") from error


@contextmanager
def open_checkpoints(folder: str | Path, *, keep: int = 2) -> Iterator[Checkpoints]:
  """Opens the checkpoints of a folder, keeping the newest `keep`.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder, open_checkpoints(folder) as checkpoints:
  ...   checkpoints.save(3, {"x": jax.numpy.ones(2)})
  ...   checkpoints.latest(), checkpoints.resume({"x": jax.numpy.zeros(2)})["x"].tolist()
  (3, [1.0, 1.0])
  """
  background = jax.default_backend() != "cpu"
  options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=background)
  with ocp.CheckpointManager(Path(folder).absolute(), options=options) as manager:
    yield Checkpoints(manager)
    manager.wait_until_finished()
