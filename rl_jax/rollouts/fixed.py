"""Batches of a fixed data set: shuffled anew in every epoch, in an order that the seed fixes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_jax.rollouts.collect import Collect, Collected
from rl_jax.state import Batch, RLState
from rl_jax.tasks.epochs import shuffled


def make_collect(
  make_batch: Callable[[RLState, np.ndarray], Batch], *, rows: int, batch_size: int, seed: int
) -> Collect:
  """Returns `collect(state) -> Collected`: the next `batch_size` rows of the data.

  Args:
    make_batch: `(state, row numbers) -> Batch`.
    rows: Number of rows in the data set.
    batch_size: Rows a batch.
    seed: Seed of the order.

  Raises:
    ValueError: If there are fewer rows than a batch has.
  """
  if rows < batch_size:
    raise ValueError(f"the data has {rows} rows for training, fewer than a batch of {batch_size}")
  row = shuffled(rows, seed)

  def collect(state: RLState) -> Collected:
    first = int(state.running.position)
    numbers = np.array([row(index) for index in range(first, first + batch_size)])
    batch = make_batch(state, numbers)
    metrics = {"epoch": (first + batch_size) / rows, "tokens": float(jnp.sum(batch.inputs.mask != 0))}
    running = state.running._replace(position=np.int32(first + batch_size))
    return Collected(state._replace(running=running), batch, metrics)

  return collect


def fixed_size_batches(rows: int, size: int) -> list[np.ndarray]:
  """Returns row numbers in batches of one size; the last one is filled up from the beginning.

  >>> [numbers.tolist() for numbers in fixed_size_batches(5, 2)]
  [[0, 1], [2, 3], [4, 0]]
  """
  return [np.arange(start, start + size) % rows for start in range(0, rows, size)]


def select_rows(tree: Any, numbers: np.ndarray) -> Any:
  """Returns the rows `numbers` of every leaf.

  >>> select_rows({"x": np.arange(4)}, np.array([3, 1]))["x"].tolist()
  [3, 1]
  """
  return jax.tree.map(lambda leaf: leaf[numbers], tree)
