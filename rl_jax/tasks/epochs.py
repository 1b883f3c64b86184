"""The order in which a data set is gone through: shuffled anew in every epoch, by the seed and the epoch alone."""

import functools
from collections.abc import Callable

import numpy as np


def shuffled(rows: int, seed: int) -> Callable[[int], int]:
  """Returns `index -> row number`, for any index from 0 on: a run resumes by its index alone.

  >>> order = shuffled(3, seed=0)
  >>> sorted(map(order, range(3))), sorted(map(order, range(3, 6)))
  ([0, 1, 2], [0, 1, 2])
  """

  @functools.lru_cache(maxsize=2)
  def permutation(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)

  def row(index: int) -> int:
    epoch, place = divmod(index, rows)
    return int(permutation(epoch)[place])

  return row
