"""Stop in time: `7:` is answered by seven letters, whichever they are. What is learned is the length of the answer."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.tasks.on_device.base import SPECIAL, Answer, Task, Text, Verdict, join, number, symbol

CHARACTERS = "0123456789:abcd"
_A = SPECIAL + CHARACTERS.index("a")


def load(*, longest: int = 9) -> Task:
  """Returns the task.

  Args:
    longest: The largest length asked for, up to 99; lengths from 1 on are equally frequent.

  Raises:
    ValueError: If `longest` is out of range.

  >>> load(longest=4).baseline
  0.25
  """
  if not 1 <= longest <= 99:
    raise ValueError(f"longest must be from 1 to 99, got {longest}")
  digits = len(str(longest))
  size, room = digits + 1, longest + 4  # room to stop too late, too

  def draw(key: Array) -> tuple[Text, Array]:
    wanted = jax.random.randint(key, (), 1, longest + 1)
    return join([number(wanted, digits), symbol(CHARACTERS, ":")], size), wanted

  def verify(wanted: Array, answer: Answer) -> Verdict:
    inside = jnp.arange(answer.tokens.shape[0]) < answer.length
    letters = answer.terminated & jnp.all((answer.tokens >= _A) | ~inside)
    solved = letters & (answer.length == wanted)
    nearness = jnp.maximum(0, 1 - jnp.abs(answer.length - wanted) / longest)
    return Verdict(jnp.where(solved, 1.0, jnp.where(letters, 0.5 * nearness, 0.0)), solved)

  def solution(wanted: Array) -> Text:
    return Text(jnp.full(longest, _A), wanted)

  return Task(f"stop-{longest}", CHARACTERS, size, room, draw, verify, solution, 1.0, 1 / longest)
