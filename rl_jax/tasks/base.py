"""The contract between tasks and training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rl_jax.tasks.rewards import Reward

Row = Mapping[str, Any]


class Task(NamedTuple):
  """Prompts and rewards.

  Attributes:
    name: Name in tables and file names.
    row: `index -> row`, for any index from 0 on, the same row every time: a run resumes by its index alone.
    evaluation: Held-out rows.
    rewards: Reward functions; their weighted sum is what is learned.
    solved: `(prompts, completions, completion_ids, **columns) -> list[bool]`, the exact match that evaluation counts;
      None where the task has no such notion, and evaluation reports the mean reward alone.
    answer: `completion -> answer`, of which equal ones are votes for the same where a majority decides.
    stop: Texts of one token each that end a completion, besides the tokenizer's end of sequence.
    fingerprint: Identity of data that can change between two runs, such as a file's SHA-256; empty where nothing can.
    rows: All rows, held-out ones included, with their places such as "line 3", where there is an end to them: a run
      reads every prompt before it trains on the first.
    description: How many rows are trained on and measured, in one line; empty where there is no end to them.
  """

  name: str
  row: Callable[[int], Row]
  evaluation: Sequence[Row]
  rewards: tuple[Reward, ...]
  solved: Callable[..., list[bool]] | None = None
  answer: Callable[[str], str] = str.strip
  stop: tuple[str, ...] = ()
  fingerprint: str = ""
  rows: Sequence[tuple[str, Row]] = ()
  description: str = ""


def columns(rows: Sequence[Row]) -> dict[str, list]:
  """Returns the rows' columns other than the prompt, as reward functions get them; a missing value is None.

  >>> columns([{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": "2 + 2 =", "answer": "4"}])
  {'answer': ['2', '4']}
  """
  names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
  return {name: [row.get(name) for row in rows] for name in names}
