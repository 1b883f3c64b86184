"""From completions to texts and what is said of them: the same for training, greedy baselines and evaluation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rl_jax.state import Judgment, Sequences
from rl_jax.tasks import rewards, text
from rl_jax.tasks.base import Row, Task, columns

Record = dict[str, Any]


def judge(
  task: Task, decode: Callable[[np.ndarray, np.ndarray], list[str]], rows: Sequence[Row], sequences: Sequences
) -> tuple[Judgment, list[Record]]:
  """Decodes completions, calls the task's reward functions on them, and asks which ones are solved.

  Args:
    task: Its reward functions are called; where it has none, nothing is scored.
    decode: `(tokens [N, T], mask) -> texts`.
    rows: The row of each prompt, P of them.
    sequences: Sequences with completions `[P, G, T]`.

  Returns:
    What is said of them, and prompts and completions for readers, one record a completion.

  Raises:
    ValueError: As `tasks.rewards.judge`.

  >>> import functools
  >>> from rl_jax.models.presets import character_tokenizer
  >>> decode = functools.partial(text.decode, character_tokenizer("0123456789"))
  >>> length = rewards.Reward(lambda completions, **_: [len(text) for text in completions], 1.0, "length")
  >>> task = Task("lengths", lambda index: {"prompt": "1"}, [], (length,))
  >>> tokens, mask = np.array([[[3, 4, 0]]]), np.array([[[True, True, False]]])
  >>> judgment, records = judge(task, decode, [task.row(0)], Sequences(None, None, tokens, mask))
  >>> judgment.scores["length"].tolist(), records
  ([[2.0]], [{'prompt': '1', 'completion': '01', 'tokens': 2}])
  """
  tokens, mask = np.asarray(sequences.completions), np.asarray(sequences.completion_mask) != 0
  shape, rows = tokens.shape[:2], [row for row in rows for _ in range(tokens.shape[1])]
  tokens, mask = tokens.reshape(len(rows), -1), mask.reshape(len(rows), -1)
  texts = decode(tokens, mask)
  keywords: dict[str, Any] = dict(
    prompts=[row["prompt"] for row in rows],
    completions=text.as_replies(rows, texts),
    completion_ids=[row[real].tolist() for row, real in zip(tokens, mask, strict=True)],
  )
  parts = rewards.judge(task.rewards, **keywords, columns=columns(rows))
  scores: Any = {name: values.astype(np.float32).reshape(shape) for name, values in parts.items()}
  solved: Any = (
    None if task.solved is None else np.reshape(task.solved(**keywords, **columns(rows)), shape).astype(bool)
  )
  records = [
    {"prompt": row["prompt"], "completion": reply, "tokens": int(real.sum())}
    for row, reply, real in zip(rows, texts, mask, strict=True)
  ]
  return Judgment.of(scores, {reward.name: reward.weight for reward in task.rewards}, solved), records
