"""The one way to hold rows out: by what they are about, so that nothing that is measured was trained on."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")


class Split(NamedTuple):
  """Rows to train on and rows to measure on, both shuffled.

  Attributes:
    training: Rows to train on.
    held_out: Rows to measure on.
    prompts: How many different prompts the two have.
  """

  training: list
  held_out: list
  prompts: tuple[int, int]

  def describe(self) -> str:
    """Returns one line.

    >>> Split(["a1", "a2", "b"], ["c"], (2, 1)).describe()
    '3 rows of 2 prompts to train on, 1 row of 1 prompt held out'
    """
    train, test = (
      f"{len(rows)} row{'s' * (len(rows) != 1)} of {prompts} prompt{'s' * (prompts != 1)}"
      for rows, prompts in zip((self.training, self.held_out), self.prompts, strict=True)
    )
    return f"{train} to train on, {test} held out"


def hold_out(rows: Sequence[T], wanted: int | float, *, seed: int, key: Callable[[T], Hashable]) -> Split:
  """Holds out all rows of some prompts, the first ones of a seeded shuffle.

  Args:
    rows: Rows of the data set.
    wanted: How many prompts are held out, or as a float between 0 and 1 which share of them; at least one.
    seed: Seed of the shuffle.
    key: `row -> what it is about`, mostly its prompt.

  Raises:
    ValueError: If nothing is to be held out, or no prompt would be left to train on.

  >>> split = hold_out(["a1", "b1", "a2", "c1", "b2"], 1, seed=0, key=lambda row: row[0])
  >>> sorted(split.training), sorted(split.held_out)
  (['b1', 'b2', 'c1'], ['a1', 'a2'])
  """
  shuffled = [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]
  prompts = list(dict.fromkeys(map(key, shuffled)))
  if wanted <= 0 or (isinstance(wanted, float) and wanted >= 1):
    raise ValueError(f"wanted must be a positive number of prompts, or a share of them below 1, got {wanted}")
  count = max(round(wanted * len(prompts)), 1) if isinstance(wanted, float) else int(wanted)
  if count >= len(prompts):
    few = f"{len(rows)} rows of {len(prompts)} different prompts"
    raise ValueError(f"there are {few}: none would be left to train on with {count} held out")
  chosen = set(prompts[:count])
  training = [row for row in shuffled if key(row) not in chosen]
  held_out = [row for row in shuffled if key(row) in chosen]
  return Split(training, held_out, (len(prompts) - count, count))
