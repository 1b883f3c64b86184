"""Batches of a fixed data set for `train.loop`: shuffled anew in every epoch, in an order that the seed fixes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_jax.analysis import plots
from rl_jax.tasks.epochs import shuffled
from rl_jax.train.evaluate import Measured
from rl_jax.train.metrics_io import read_lines
from rl_jax.train.rollout import Collect, Collected
from rl_jax.train.state import RLState
from rl_jax.train.step import Batch


def make_collect(
  make_batch: Callable[[RLState, np.ndarray], Batch], *, rows: int, batch_size: int, seed: int
) -> Collect:
  """Returns `collect(state) -> Collected`: the next `batch_size` rows of the data.

  Args:
    make_batch: `(state, row numbers) -> Batch`.
    rows: Of the data set.
    batch_size: Rows a batch.
    seed: Of the order.

  Raises:
    ValueError: If there are fewer rows than a batch has.
  """
  check_size(rows, batch_size)
  row = shuffled(rows, seed)

  def collect(state: RLState) -> Collected:
    first = int(state.position)
    numbers = np.array([row(index) for index in range(first, first + batch_size)])
    batch = make_batch(state, numbers)
    metrics = {"epoch": (first + batch_size) / rows, "tokens": float(jnp.sum(batch.inputs.mask != 0))}
    return Collected(state._replace(position=jnp.asarray(first + batch_size, jnp.int32)), batch, metrics, [])

  return collect


def check_size(rows: int, batch_size: int) -> None:
  """Raises ValueError if there are fewer rows than a batch has.

  >>> check_size(3, 4)
  Traceback (most recent call last):
  ...
  ValueError: the data has 3 rows for training, fewer than a batch of 4
  """
  if rows < batch_size:
    raise ValueError(f"the data has {rows} rows for training, fewer than a batch of {batch_size}")


def hold_out(rows: Sequence[Any], share: float, *, seed: int) -> tuple[list[Any], list[Any]]:
  """Returns shuffled rows to train on, and a share of them, at least one, to measure on.

  >>> train, test = hold_out(range(10), 0.2, seed=0)
  >>> len(train), len(test), sorted(train + test) == list(range(10))
  (8, 2, True)
  """
  order = np.random.default_rng(seed).permutation(len(rows))
  held = max(round(share * len(rows)), 1)
  return [rows[i] for i in order[held:]], [rows[i] for i in order[:held]]


def fill(rows: int, size: int) -> list[np.ndarray]:
  """Returns row numbers in batches of one size; the last one is filled up from the beginning.

  >>> [numbers.tolist() for numbers in fill(5, 2)]
  [[0, 1], [2, 3], [4, 0]]
  """
  return [np.arange(start, start + size) % rows for start in range(0, rows, size)]


def take(tree: Any, numbers: np.ndarray) -> Any:
  """Returns the rows `numbers` of every leaf.

  >>> take({"x": np.arange(4)}, np.array([3, 1]))["x"].tolist()
  [3, 1]
  """
  return jax.tree.map(lambda leaf: leaf[numbers], tree)


def show(folder: str | Path) -> None:
  """Prints what was measured before and after a run, draws its curves, and says where everything is."""
  results = read_lines(folder, "evaluation.jsonl")
  for title, result in (("before", results[0]), (f"after {results[-1]['step']} steps", results[-1])):
    print(f"{title}: {Measured(result['values']).describe()}")
  try:
    print(f"curves: {plots.draw(folder)}")
  except ValueError as error:
    print(f"no curves: {error}")
  print(f"metrics and checkpoints: {folder}\nthe model: {Path(folder) / 'model'}")
