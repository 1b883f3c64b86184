"""Sort digits: `5272>` is answered by `2257`. Graded by digits in their places."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.tasks.on_device.base import SPECIAL, Answer, Task, Text, Verdict, at_least, graded, join, symbol

CHARACTERS = "0123456789>"


def load(*, length: int = 6) -> Task:
  """Returns the task.

  Args:
    length: Length of the longest list; lengths from 1 on are equally frequent.

  Raises:
    ValueError: If `length` is below 1.

  >>> load(length=1).baseline
  0.1
  """
  at_least(1, length=length)

  def draw(key: Array) -> tuple[Text, Text]:
    length_key, digit_key = jax.random.split(key)
    size = jax.random.randint(length_key, (), 1, length + 1)
    digits = Text(SPECIAL + jax.random.randint(digit_key, (length,), 0, 10), size)
    return join([digits, symbol(CHARACTERS, ">")], length + 1), digits

  def solution(digits: Text) -> Text:
    beyond = SPECIAL + 10  # sorts behind all digits
    kept = jnp.where(jnp.arange(length) < digits.length, digits.tokens, beyond)
    return Text(jnp.sort(kept), digits.length)

  def verify(digits: Text, answer: Answer) -> Verdict:
    return graded(answer, solution(digits))

  # One digit is right for a tenth of the lists of one; longer answers are right for fewer: at most n! / 10^n.
  return Task(f"sort-{length}", CHARACTERS, length + 1, length + 1, draw, verify, solution, 1.0, 0.1 / length)
