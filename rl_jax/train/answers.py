"""From completion tokens to texts and rewards, the same for training and for evaluation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rl_jax.tasks import rewards
from rl_jax.tasks.base import Row, Task, columns
from rl_jax.train import text


class Answers(NamedTuple):
  """Completions of n rows as text, in the form of their prompts, and their rewards."""

  texts: list[str]
  replies: list[Any]
  scored: rewards.Scored


def score(task: Task, tokenizer: Any, rows: Sequence[Row], tokens: np.ndarray, mask: np.ndarray) -> Answers:
  """Decodes completions and calls the task's reward functions on them.

  Args:
    task: Its reward functions are called.
    tokenizer: A `transformers` tokenizer.
    rows: The row that each completion answers, n of them.
    tokens: `[n, T]`.
    mask: `[n, T]`, True for real tokens.

  Raises:
    ValueError: As `tasks.rewards.score`.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> tokenizer = character_tokenizer("0123456789")
  >>> length = rewards.Reward(lambda completions, **_: [len(text) for text in completions], 1.0, "length")
  >>> row = {"prompt": "1"}
  >>> task = Task("lengths", lambda index: row, [], (length,))
  >>> answers = score(task, tokenizer, [row], np.array([[3, 4, 0]]), np.array([[True, True, False]]))
  >>> answers.texts, answers.scored.total.tolist()
  (['01'], [2.0])
  """
  texts = text.decode(tokenizer, tokens, mask)
  replies = text.as_replies(rows, texts)
  scored = rewards.score(
    task.rewards,
    prompts=[row["prompt"] for row in rows],
    completions=replies,
    completion_ids=[row[real].tolist() for row, real in zip(tokens, mask, strict=True)],
    columns=columns(rows),
  )
  return Answers(texts, replies, scored)


def solved(task: Task, rows: Sequence[Row], replies: Sequence[Any], tokens: np.ndarray, mask: np.ndarray) -> list[bool]:
  """Returns which completions the task says are right.

  Raises:
    ValueError: If the task cannot tell.
  """
  if task.solved is None:
    raise ValueError(f"task {task.name!r} does not say which completions are right")
  ids = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
  prompts = [row["prompt"] for row in rows]
  return list(task.solved(prompts=prompts, completions=replies, completion_ids=ids, **columns(rows)))
