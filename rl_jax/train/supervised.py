"""Batches of a fixed data set for `train.loop`: shuffled anew in every epoch, in an order that the seed fixes."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_jax.analysis import plots
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

  >>> make_collect(lambda state, numbers: numbers, rows=3, batch_size=4, seed=0)
  Traceback (most recent call last):
  ...
  ValueError: the data has 3 rows for training, fewer than a batch of 4
  """
  if rows < batch_size:
    raise ValueError(f"the data has {rows} rows for training, fewer than a batch of {batch_size}")

  @functools.lru_cache(maxsize=2)
  def order(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)

  def collect(state: RLState) -> Collected:
    first = int(state.position)
    numbers = np.array([order(i // rows)[i % rows] for i in range(first, first + batch_size)])
    batch = make_batch(state, numbers)
    metrics = {"epoch": (first + batch_size) / rows, "tokens": float(jnp.sum(batch.inputs.mask != 0))}
    return Collected(state._replace(position=jnp.asarray(first + batch_size, jnp.int32)), batch, metrics, [])

  return collect


def hold_out(rows: Sequence[Any], share: float, *, seed: int) -> tuple[list[Any], list[Any]]:
  """Returns shuffled rows to train on, and a share of them, at least one, to measure on.

  >>> train, test = hold_out(range(10), 0.2, seed=0)
  >>> len(train), len(test), sorted(train + test) == list(range(10))
  (8, 2, True)
  """
  order = np.random.default_rng(seed).permutation(len(rows))
  held = max(round(share * len(rows)), 1)
  return [rows[i] for i in order[held:]], [rows[i] for i in order[:held]]


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
