"""Tasks from rows: of files, of data sets on the hub, or rows that are there already.

The rows are shuffled anew in every epoch, in an order that depends on the seed and the epoch alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl_jax.tasks import files, forms, sources
from rl_jax.tasks.base import Row, Task
from rl_jax.tasks.epochs import shuffled
from rl_jax.tasks.held_out import hold_out
from rl_jax.tasks.rewards import Reward

MOST = 64  # prompts that are held out by default


def load(
  path: str | Path,
  rewards: Sequence[Reward],
  *,
  evaluation_size: int | None = None,
  config: str = "",
  split: str = "train",
  rename: str = "",
  seed: int = 0,
) -> Task:
  """Returns the task of a file, or of a data set on the hub: `forms.PROMPTS` are the forms of its rows.

  Args:
    path: A file, or a name on the hub.
    rewards: Reward functions.
    evaluation_size: How many prompts of a seeded shuffle are held out, with all their rows; a tenth by default, at most
      64.
    config: A configuration of a data set on the hub.
    split: A split of one.
    rename: Columns to rename, `old:new,...`.
    seed: Seed of the shuffle.

  Raises:
    ValueError: For a missing file, a broken line (by number), a row without a usable prompt, or too few prompts.

  >>> import tempfile
  >>> length = Reward(lambda completions, **_: [len(c) for c in completions], 1.0, "length")
  >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
  ...   _ = file.write('{"prompt": "Hi"}\\n' * 3 + '{"prompt": "Bye"}\\n')
  ...   file.flush()
  ...   load(file.name, [length]).description
  '4 rows read as prompts; 1 row of 1 prompt to train on, 3 rows of 1 prompt held out, of which 1 is measured'
  """
  found = sources.read(path, config=config, split=split, rename=rename)
  read = sources.as_form(found, forms.PROMPTS, _checked)
  task = _task(found.name, read.places, read.rows, rewards, evaluation_size, seed, f"task {str(path)!r}")
  return task._replace(fingerprint=found.fingerprint, description=f"{read.description}; {task.description}")


def from_rows(
  name: str,
  rows: Sequence[Row],
  rewards: Sequence[Reward | Callable[..., Any]],
  *,
  evaluation_size: int | None = None,
  seed: int = 0,
) -> Task:
  """Returns the task of rows that are there already, such as those of a `datasets` data set.

  Args:
    name: Name in tables and file names.
    rows: Dicts with a "prompt" (text or chat messages) and any other columns, or in another of `forms.PROMPTS`.
    rewards: Functions, or `Reward`s with a weight and a name.
    evaluation_size: How many prompts of a seeded shuffle are held out, with all their rows; a tenth by default, at most
      64.
    seed: Seed of the shuffle.

  Raises:
    ValueError: For a row without a usable prompt, by its number, or too few prompts.

  >>> rows = [{"prompt": f"{a} + 1 =", "answer": str(a + 1)} for a in range(3)]
  >>> task = from_rows("sums", rows, [lambda completions, answer, **_: [0.0]], evaluation_size=1)
  >>> len(task.rows), len(task.evaluation)
  (3, 1)
  """
  places = [f"row {number}" for number in range(1, len(rows) + 1)]
  read = sources.as_form(sources.Rows(places, list(rows), "", name), forms.PROMPTS, _checked)
  functions = [
    each if isinstance(each, Reward) else Reward(each, 1.0, getattr(each, "__name__", type(each).__name__))
    for each in rewards
  ]
  task = _task(name, read.places, read.rows, functions, evaluation_size, seed, f"task {name!r}")
  return task._replace(description=f"{read.description}; {task.description}")


def _task(
  name: str,
  places: Sequence[str],
  rows: Sequence[Row],
  rewards: Sequence[Reward],
  evaluation_size: int | None,
  seed: int,
  what: str,
) -> Task:
  """Holds out prompts, each measured on its first row; the other rows are shuffled anew in every epoch."""
  if evaluation_size is None:
    evaluation_size = min(max(len({files.subject(row["prompt"]) for row in rows}) // 10, 1), MOST)
  if evaluation_size < 1:
    raise ValueError(f"evaluation_size must be at least 1, got {evaluation_size}")
  columns = dict.fromkeys(column for row in rows for column in row)
  filled = [{column: row.get(column) for column in columns} for row in rows]
  try:
    split = hold_out(filled, evaluation_size, seed=seed, key=lambda row: files.subject(row["prompt"]))
  except ValueError as error:
    raise ValueError(f"{what} is too small for evaluation_size={evaluation_size} (a task option): {error}") from None
  place, training = shuffled(len(split.training), seed), split.training
  evaluation = list({files.subject(row["prompt"]): row for row in reversed(split.held_out)}.values())[::-1]
  measured = f", of which {len(evaluation)} {'is' if len(evaluation) == 1 else 'are'} measured"
  return Task(
    name,
    lambda index: training[place(index)],
    evaluation,
    tuple(rewards),
    rows=list(zip(places, filled, strict=True)),
    description=split.describe() + measured * (len(evaluation) < len(split.held_out)),
  )


def _checked(row: Row) -> Row:
  prompt = row["prompt"]
  if not (isinstance(prompt, str) and prompt) and not files.is_chat(prompt):
    raise ValueError("the prompt must be text or a list of messages with role and content")
  return row
