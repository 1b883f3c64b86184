"""Copy or reverse a word: `dacb>` is answered by `dacb`, or by `bcad`. Graded by letters in their places."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.tasks.on_device.base import SPECIAL, Answer, Task, Text, Verdict, at_least, graded, join, symbol

CHARACTERS = "abcdefgh>"
LETTERS = len(CHARACTERS) - 1


def load(*, length: int = 8, reverse: bool = False) -> Task:
  """Returns the task.

  Args:
    length: Length of the longest word; lengths from 1 on are equally frequent.
    reverse: Whether the answer is the word backwards.

  Raises:
    ValueError: If `length` is below 1.

  >>> round(load(length=4).baseline, 5)
  0.03125
  """
  at_least(1, length=length)

  def draw(key: Array) -> tuple[Text, Text]:
    length_key, word_key = jax.random.split(key)
    size = jax.random.randint(length_key, (), 1, length + 1)
    word = Text(SPECIAL + jax.random.randint(word_key, (length,), 0, LETTERS), size)
    return join([word, symbol(CHARACTERS, ">")], length + 1), word

  def solution(word: Text) -> Text:
    if not reverse:
      return word
    return Text(word.tokens[jnp.maximum(word.length - 1 - jnp.arange(length), 0)], word.length)

  def verify(word: Text, answer: Answer) -> Verdict:
    return graded(answer, solution(word))

  name = f"{'reverse' if reverse else 'copy'}-{length}"
  return Task(name, CHARACTERS, length + 1, length + 1, draw, verify, solution, 1.0, 1 / (length * LETTERS))
