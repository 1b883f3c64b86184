"""Tasks from JSONL and Parquet files: a prompt column (a string or a list of chat messages), and any others.

The rows are shuffled anew in every epoch, in an order that depends on the seed and the epoch alone.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl_jax.tasks.base import Row, Task
from rl_jax.tasks.epochs import shuffled
from rl_jax.tasks.rewards import Reward


def load(
  path: str | Path,
  rewards: Sequence[Reward],
  *,
  evaluation_size: int = 64,
  prompt_column: str = "prompt",
  seed: int = 0,
) -> Task:
  """Returns the task of a file; the last `evaluation_size` rows of a seeded shuffle are held out.

  Raises:
    ValueError: For a missing file, a broken line (by number), a row without a usable prompt, or too few rows.

  >>> import tempfile
  >>> length = Reward(lambda completions, **_: [len(c) for c in completions], 1.0, "length")
  >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
  ...   _ = file.write('{"prompt": "Hi"}\\n' * 3)
  ...   file.flush()
  ...   load(file.name, [length], evaluation_size=1).row(0)
  {'prompt': 'Hi'}
  """
  path = Path(path)
  identity = fingerprint(path)
  rows = [_row(row, f"{path}, {place}", prompt_column) for place, row in read(path)]
  task = _task(path.stem, rows, rewards, evaluation_size, seed, f"task file {str(path)!r}")
  return task._replace(fingerprint=identity)


def from_rows(
  name: str,
  rows: Sequence[Row],
  rewards: Sequence[Reward | Callable[..., Any]],
  *,
  evaluation_size: int = 64,
  seed: int = 0,
) -> Task:
  """Returns the task of rows that are there already, such as those of a `datasets` data set.

  Args:
    name: Name in tables and file names.
    rows: Dicts with a "prompt" (text or chat messages) and any other columns.
    rewards: Functions, or `Reward`s with a weight and a name.
    evaluation_size: How many rows of a seeded shuffle are held out.
    seed: Seed of the shuffle.

  Raises:
    ValueError: For a row without a usable prompt, by its number, or too few rows.

  >>> rows = [{"prompt": "1 + 1 =", "answer": "2"}] * 3
  >>> task = from_rows("sums", rows, [lambda completions, answer, **_: [0.0]], evaluation_size=1)
  >>> task.row(0)["answer"], len(task.evaluation)
  ('2', 1)
  """
  checked = [_row(row, f"row {number}", "prompt") for number, row in enumerate(rows, start=1)]
  functions = [
    each if isinstance(each, Reward) else Reward(each, 1.0, getattr(each, "__name__", type(each).__name__))
    for each in rewards
  ]
  return _task(name, checked, functions, evaluation_size, seed, f"task {name!r}")


def _task(
  name: str, rows: Sequence[Row], rewards: Sequence[Reward], evaluation_size: int, seed: int, what: str
) -> Task:
  """Holds out the last rows of a seeded shuffle; the others are shuffled anew in every epoch."""
  if evaluation_size < 1:
    raise ValueError(f"evaluation_size must be at least 1, got {evaluation_size}")
  if len(rows) <= evaluation_size:
    raise ValueError(f"{what} has {len(rows)} rows, no more than evaluation_size={evaluation_size} (a task option)")
  order = np.random.default_rng(seed).permutation(len(rows))
  train, held_out = order[: len(rows) - evaluation_size], order[len(rows) - evaluation_size :]
  place = shuffled(len(train), seed)

  def row(index: int) -> Row:
    return rows[train[place(index)]]

  return Task(name, row, [rows[i] for i in held_out], tuple(rewards))


def fingerprint(path: Path) -> str:
  """Returns a file's SHA-256.

  Raises:
    ValueError: If there is no such file.

  >>> fingerprint(Path("nowhere.jsonl"))
  Traceback (most recent call last):
  ...
  ValueError: data file 'nowhere.jsonl' does not exist
  """
  if not path.is_file():
    raise ValueError(f"data file {str(path)!r} does not exist")
  return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path) -> list[tuple[str, Any]]:
  """Returns the rows of a `.jsonl` or `.parquet` file with their places in it, such as "line 3".

  Raises:
    ValueError: For another kind of file, or a broken line, by its number.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
  ...   _ = file.write('{"text": "Hi"}\\n')
  ...   file.flush()
  ...   read(Path(file.name))
  [('line 1', {'text': 'Hi'})]
  """
  if path.suffix == ".jsonl":
    return _read_jsonl(path)
  if path.suffix == ".parquet":
    return _read_parquet(path)
  raise ValueError(f"data file {str(path)!r} must end in .jsonl or .parquet")


def _read_jsonl(path: Path) -> list[tuple[str, Any]]:
  rows = []
  with path.open("rb") as file:
    for number, line in enumerate(file, start=1):
      if not line.strip():
        continue
      try:
        rows.append((f"line {number}", json.loads(line)))
      except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
  return rows


def _read_parquet(path: Path) -> list[tuple[str, Any]]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise ValueError("reading .parquet needs pyarrow: pip install 'rl-jax[tasks]'") from None
  try:
    table = pyarrow.parquet.read_table(path)
    return [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1)]
  except (pyarrow.ArrowInvalid, OSError) as error:
    raise ValueError(f"task file {str(path)!r} is no readable Parquet file ({error})") from None


def _row(row: Any, where: str, prompt_column: str) -> Row:
  if not isinstance(row, dict) or prompt_column not in row:
    raise ValueError(f"{where}: no column {prompt_column!r}")
  prompt = row[prompt_column]
  if not (isinstance(prompt, str) and prompt) and not is_chat(prompt):
    raise ValueError(f"{where}: the prompt must be text or a list of messages with role and content")
  return {**{k: v for k, v in row.items() if k != prompt_column}, "prompt": prompt}


def is_chat(prompt: Any) -> bool:
  """Whether something is a list of chat messages, and not an empty one.

  >>> is_chat([{"role": "user", "content": "Hi"}]), is_chat("Hi")
  (True, False)
  """
  return isinstance(prompt, list) and bool(prompt) and all(_is_message(message) for message in prompt)


def _is_message(message: Any) -> bool:
  return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
