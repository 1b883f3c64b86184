"""Arithmetic modulo a small number: `12*9=` modulo 13 is answered by `4`."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rl_jax.tasks.on_device.base import SPECIAL, Answer, Task, Text, Verdict, exact, join, number, symbol

CHARACTERS = "0123456789+-*="
OPERATORS = "+-*"


def load(*, modulus: int = 13, operators: str = OPERATORS, format_reward: float = 0.1) -> Task:
  """Returns the task.

  Args:
    modulus: The modulus, from 2 to 1000; it does not stand in the prompt.
    operators: Some of `+-*`, equally frequent.
    format_reward: Reward of a wrong answer that is a number.

  Raises:
    ValueError: If an argument is out of range.

  >>> round(load(modulus=7, operators="+").baseline, 3)
  0.143
  """
  if not 2 <= modulus <= 1000:
    raise ValueError(f"modulus must be from 2 to 1000, got {modulus}")
  if not operators or set(operators) - set(OPERATORS):
    raise ValueError(f"operators must be some of {OPERATORS!r}, got {operators!r}")
  digits = len(str(modulus - 1))
  size = 2 * digits + 2
  choices = jnp.array([OPERATORS.index(operator) for operator in operators])

  def draw(key: Array) -> tuple[Text, Text]:
    number_key, operator_key = jax.random.split(key)
    a, b = jax.random.randint(number_key, (2,), 0, modulus)
    operator = choices[jax.random.randint(operator_key, (), 0, len(operators))]
    sign = Text((SPECIAL + CHARACTERS.index("+") + operator)[None], jnp.int32(1))
    result = jnp.array([a + b, a - b, a * b])[operator] % modulus
    return join([number(a, digits), sign, number(b, digits), symbol(CHARACTERS, "=")], size), number(result, digits)

  def verify(result: Text, answer: Answer) -> Verdict:
    return exact(answer, result, format_reward=format_reward)

  baseline = _most_frequent_result(modulus, operators)
  return Task(f"modular-{modulus}", CHARACTERS, size, digits + 1, draw, verify, lambda result: result, 1.0, baseline)


def _most_frequent_result(modulus: int, operators: str) -> float:
  a, b = np.mgrid[:modulus, :modulus]
  results = {"+": a + b, "-": a - b, "*": a * b}
  counts = sum(np.bincount((results[operator] % modulus).ravel(), minlength=modulus) for operator in operators)
  return float(np.max(counts) / (len(operators) * modulus**2))
