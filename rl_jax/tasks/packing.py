"""Several short examples in one row: a token attends to its own example alone, and positions start anew in each."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from rl_jax.tasks.examples import Example


class Packed(NamedTuple):
  """Rows of examples.

  Attributes:
    tokens: `[B, S]`.
    positions: Positions within each example.
    segments: Which example of its row a token belongs to, from 1 on; 0 for padding.
  """

  tokens: Int[Array, "B S"]
  positions: Int[Array, "B S"]
  segments: Int[Array, "B S"]


def pack(
  examples: Sequence[Example], length: int, *, pad_token: int = 0, together: bool = True
) -> tuple[Packed, Bool[np.ndarray, "B S"]]:
  """Returns examples in rows of `length` tokens (first fit, longest first), and which tokens are labels.

  Args:
    examples: Examples, each of at most `length` tokens.
    length: S.
    pad_token: Fills rows up.
    together: Whether examples share rows; otherwise each has its own.

  Raises:
    ValueError: If an example is longer.

  >>> packed, labels = pack([Example([5, 6], [False, True]), Example([7], [True])], 4)
  >>> packed.tokens.tolist(), packed.positions.tolist(), packed.segments.tolist(), labels.tolist()
  ([[5, 6, 7, 0]], [[0, 1, 0, 0]], [[1, 1, 2, 0]], [[False, True, False, False]])
  """
  rows: list[list[Example]] = []
  room: list[int] = []
  for number, example in sorted(enumerate(examples), key=lambda each: -len(each[1].tokens)):
    size = len(example.tokens)
    if size > length:
      raise ValueError(f"example {number} has {size} tokens, more than a row's {length}")
    place = next((i for i, left in enumerate(room) if left >= size), None) if together else None
    if place is None:
      rows.append([])
      room.append(length)
      place = len(rows) - 1
    rows[place].append(example)
    room[place] -= size
  shape = (len(rows), length)
  tokens, labels = np.full(shape, pad_token, np.int32), np.zeros(shape, bool)
  positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  for row, packed in enumerate(rows):
    start = 0
    for number, example in enumerate(packed, start=1):
      end = start + len(example.tokens)
      tokens[row, start:end] = example.tokens
      positions[row, start:end] = np.arange(end - start)
      segments[row, start:end] = number
      labels[row, start + 1 : end] = example.labels[1:]  # nothing predicts an example's first token
      start = end
  return Packed(jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(segments)), labels
