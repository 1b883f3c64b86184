"""Add two numbers: `47+8=` is answered by `55`. Exact match, with a small reward for any number."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.signal import fftconvolve

from rl_jax.tasks.on_device.base import Answer, Task, Text, Verdict, at_least, exact, join, number, symbol

CHARACTERS = "0123456789+="


def load(*, digits: int = 2, shortest: int = 1, format_reward: float = 0.1) -> Task:
  """Returns the task.

  Args:
    digits: Digits of the longest number, up to 6; each number's length is drawn uniformly, so difficulty varies.
    shortest: Digits of the shortest number.
    format_reward: Reward of a wrong answer that is a number.

  Raises:
    ValueError: If lengths are out of range.

  >>> round(load(digits=1).baseline, 6)
  0.1
  """
  at_least(1, shortest=shortest)
  if not shortest <= digits <= 6:
    raise ValueError(f"digits must be from {shortest} (the shortest) to 6, got {digits}")
  size = 2 * digits + 2

  def draw(key: Array) -> tuple[Text, Text]:
    first, second = (_draw_number(part, shortest, digits) for part in jax.random.split(key))
    pieces = [number(first, digits), symbol(CHARACTERS, "+"), number(second, digits), symbol(CHARACTERS, "=")]
    return join(pieces, size), number(first + second, digits + 1)

  def verify(total: Text, answer: Answer) -> Verdict:
    return exact(answer, total, format_reward=format_reward)

  name = f"addition-{digits}" if shortest == 1 else f"addition-{shortest}-{digits}"
  baseline = _most_frequent_sum(shortest, digits)
  return Task(name, CHARACTERS, size, digits + 2, draw, verify, lambda total: total, 1.0, baseline)


def _draw_number(key: Array, shortest: int, longest: int) -> Array:
  """A number whose length is uniform, and which is uniform among those of its length (0 has one digit)."""
  length_key, number_key = jax.random.split(key)
  lowest, highest = _bounds(shortest, longest)
  choice = jax.random.randint(length_key, (), 0, longest + 1 - shortest)
  return jax.random.randint(number_key, (), jnp.array(lowest)[choice], jnp.array(highest)[choice])


def _bounds(shortest: int, longest: int) -> tuple[list[int], list[int]]:
  lengths = range(shortest, longest + 1)
  return [10 ** (n - 1) if n > 1 else 0 for n in lengths], [10**n for n in lengths]


def _most_frequent_sum(shortest: int, longest: int) -> float:
  chance = np.zeros(10**longest)
  for low, high in zip(*_bounds(shortest, longest), strict=True):
    chance[low:high] = 1 / (high - low) / (longest + 1 - shortest)
  return float(fftconvolve(chance, chance).max())
