"""Reach a number: `2,7,3:17=` is answered by an expression of these digits with that value, such as `2*7+3`.

The verifier evaluates what was written: digits joined by `+`, `-` and `*`, each given digit used once.
"""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rl_jax.tasks.on_device.base import SPECIAL, Answer, Task, Text, Verdict, join, number, symbol

CHARACTERS = "0123456789+-*,:="
_PLUS, _MINUS, _TIMES = (SPECIAL + CHARACTERS.index(operator) for operator in "+-*")


def load(*, count: int = 3, format_reward: float = 0.1) -> Task:
  """Returns the task.

  Args:
    count: Digits to use, from 2 to 4, each from 1 to 9.
    format_reward: Reward of an expression that uses the digits and has another value.

  Raises:
    ValueError: If `count` is out of range.

  >>> load().max_new_tokens
  6
  """
  if not 2 <= count <= 4:
    raise ValueError(f"count must be from 2 to 4, got {count}")
  length = 2 * count - 1
  digits_of_target = count
  size = 2 * count + digits_of_target + 2

  def draw(key: Array) -> tuple[Text, tuple[Array, Array, Array]]:
    digit_key, operator_key, order_key = jax.random.split(key, 3)
    digits = jax.random.randint(digit_key, (count,), 1, 10)
    operators = jnp.array([_PLUS, _MINUS, _TIMES])[jax.random.randint(operator_key, (count - 1,), 0, 3)]
    expression = jnp.zeros(length, jnp.int32).at[::2].set(SPECIAL + digits).at[1::2].set(operators)
    value, _ = _evaluate(expression, jnp.int32(length))
    shown = jax.random.permutation(order_key, digits)
    pieces = []
    for place in range(count):
      pieces += [number(shown[place], 1), symbol(CHARACTERS, "," if place < count - 1 else ":")]
    sign = Text(jnp.array([_MINUS]), (value < 0).astype(jnp.int32))
    pieces += [sign, number(jnp.abs(value), digits_of_target), symbol(CHARACTERS, "=")]
    return join(pieces, size), (digits, value, expression)

  def solution(data: tuple[Array, Array, Array]) -> Text:
    return Text(data[2], jnp.int32(length))

  def verify(data: tuple[Array, Array, Array], answer: Answer) -> Verdict:
    digits, target, _ = data
    written = jnp.pad(answer.tokens, (0, max(length - answer.tokens.shape[0], 0)))[:length]
    value, valid = _evaluate(written, answer.length)
    used = jnp.sort(written[::2]) == jnp.sort(SPECIAL + digits)
    well_formed = answer.terminated & (answer.length == length) & valid & jnp.all(used)
    solved = well_formed & (value == target)
    return Verdict(jnp.where(solved, 1.0, format_reward * well_formed), solved)

  return Task(f"countdown-{count}", CHARACTERS, size, length + 1, draw, verify, solution, 1.0, _most_frequent(count))


def _evaluate(tokens: Int[Array, " n"], length: Array) -> tuple[Int[Array, ""], Bool[Array, ""]]:
  """The value of an expression of digits, `*` before `+` and `-`, and whether it is one."""

  def step(carry: tuple, slot: tuple[Array, Array]) -> tuple[tuple, None]:
    total, term, operator, valid = carry
    place, token = slot
    digit = token - SPECIAL
    is_digit = (digit >= 0) & (digit <= 9)
    is_operator = (token == _PLUS) | (token == _MINUS) | (token == _TIMES)
    times = operator == _TIMES
    summed = jnp.where(is_digit & ~times, total + term, total)
    signed = jnp.where(operator == _MINUS, -digit, digit)
    term = jnp.where(is_digit, jnp.where(times, term * digit, signed), term)
    valid &= jnp.where(place % 2 == 0, is_digit, is_operator)
    after = summed, term, jnp.where(is_operator, token, operator), valid
    return jax.tree.map(lambda new, old: jnp.where(place < length, new, old), after, carry), None

  start = (jnp.int32(0), jnp.int32(0), jnp.int32(_PLUS), jnp.bool_(True))
  (total, term, _, valid), _ = jax.lax.scan(step, start, (jnp.arange(tokens.shape[0]), tokens))
  return total + term, valid & (length % 2 == 1)


def _most_frequent(count: int) -> float:
  """The probability of the likeliest pair of digits and target."""
  pairs = Counter()
  for digits in itertools.product(range(1, 10), repeat=count):
    for operators in itertools.product("+-*", repeat=count - 1):
      total, term = 0, digits[0]
      for operator, digit in zip(operators, digits[1:], strict=True):
        total, term = (total, term * digit) if operator == "*" else (total + term, digit if operator == "+" else -digit)
      pairs[(*sorted(digits), total + term)] += 1
  return pairs.most_common(1)[0][1] / (9**count * 3 ** (count - 1))
