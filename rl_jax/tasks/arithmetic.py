"""Sums of numbers, one-shot: `17 + 25 =` is answered by ` 42` and a line end.

Held-out problems are those whose two numbers, in either order, hash into one class of sixteen; training never draws
them.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from rl_jax.tasks.base import Row, Task
from rl_jax.tasks.rewards import Reward

_SHOT = "38 + 47 = 85\n"
_ANSWER = re.compile(r"\s*(\d+)\s*")


def load(*, digits: int = 2, evaluation_size: int = 256, seed: int = 0) -> Task:
  """Returns the task of adding two numbers of `digits` digits each.

  Args:
    digits: Digits of each number, from 1 to 9.
    evaluation_size: Held-out problems, fewer where there are not that many.
    seed: Seed of the order in which problems are drawn.

  >>> row = load(digits=2).row(0)
  >>> row["prompt"].startswith(_SHOT), len(row["answer"]) in (2, 3)
  (True, True)
  """
  if not 1 <= digits <= 9:
    raise ValueError(f"digits must be from 1 to 9, got {digits}")
  if evaluation_size < 1:
    raise ValueError(f"evaluation_size must be at least 1, got {evaluation_size}")

  def draw(stream: int, index: int, held_out: bool) -> Row:
    rng = np.random.default_rng((seed, stream, index))
    while True:
      a, b = (int(x) for x in rng.integers(10 ** (digits - 1), 10**digits, 2))
      if _is_held_out(a, b) == held_out:
        return {"prompt": f"{_SHOT}{a} + {b} =", "answer": str(a + b)}

  candidates = (draw(1, index, True) for index in range(20 * evaluation_size))
  evaluation = list({row["prompt"]: row for row in candidates}.values())[:evaluation_size]
  rewards = (Reward(graded, 1.0, "graded"),)
  return Task(f"arithmetic-{digits}", lambda index: draw(0, index, False), evaluation, rewards, solved, stop=("\n",))


def _is_held_out(a: int, b: int) -> bool:
  return zlib.crc32(f"{min(a, b)} + {max(a, b)}".encode()) % 16 == 0


def graded(completions: Sequence[str], answer: Sequence[str], **_) -> list[float]:
  """1 for the right number; otherwise 0.1 for a number, 0.1 for its length, up to 0.2 for digits in their place.

  >>> graded(completions=[" 42", " 51", " 7", "?"], answer=["42"] * 4)
  [1.0, 0.2, 0.1, 0.0]
  """
  return [_grade(completion, right) for completion, right in zip(completions, answer, strict=True)]


def _grade(completion: str, right: str) -> float:
  match = _ANSWER.fullmatch(completion)
  if match is None:
    return 0.0
  given = match.group(1)
  if given == right:
    return 1.0
  if len(given) != len(right):
    return 0.1
  return 0.2 + 0.2 * sum(x == y for x, y in zip(given, right, strict=True)) / len(right)


def solved(completions: Sequence[str], answer: Sequence[str], **_) -> list[bool]:
  """Whether each completion is the right number and nothing else.

  >>> solved(completions=[" 42\\n", " 42 43"], answer=["42", "42"])
  [True, False]
  """
  return [grade == 1.0 for grade in graded(completions, answer)]
