"""Tasks from JSONL and Parquet files: a prompt column (a string or a list of chat messages), and any others.

The rows are shuffled anew in every epoch, in an order that depends on the seed and the epoch alone.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl_jax.tasks.base import Row, Task
from rl_jax.tasks.epochs import shuffled
from rl_jax.tasks.held_out import hold_out
from rl_jax.tasks.rewards import Reward


def load(
  path: str | Path,
  rewards: Sequence[Reward],
  *,
  evaluation_size: int = 64,
  prompt_column: str = "prompt",
  seed: int = 0,
) -> Task:
  """Returns the task of a file; `evaluation_size` prompts of a seeded shuffle are held out, with all their rows.

  Raises:
    ValueError: For a missing file, a broken line (by number), a row without a usable prompt, or too few prompts.

  >>> import tempfile
  >>> length = Reward(lambda completions, **_: [len(c) for c in completions], 1.0, "length")
  >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
  ...   _ = file.write('{"prompt": "Hi"}\\n' * 3 + '{"prompt": "Bye"}\\n')
  ...   file.flush()
  ...   load(file.name, [length], evaluation_size=1).description
  '1 row of 1 prompt to train on, 3 rows of 1 prompt held out, of which 1 is measured'
  """
  path = Path(path)
  identity = fingerprint(path)
  found = [(f"{path}, {place}", row) for place, row in read(path)]
  places, rows = [place for place, _ in found], [_row(row, place, prompt_column) for place, row in found]
  task = _task(path.stem, places, rows, rewards, evaluation_size, seed, f"task file {str(path)!r}")
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
    evaluation_size: How many prompts of a seeded shuffle are held out, with all their rows.
    seed: Seed of the shuffle.

  Raises:
    ValueError: For a row without a usable prompt, by its number, or too few prompts.

  >>> rows = [{"prompt": f"{a} + 1 =", "answer": str(a + 1)} for a in range(3)]
  >>> task = from_rows("sums", rows, [lambda completions, answer, **_: [0.0]], evaluation_size=1)
  >>> len(task.rows), len(task.evaluation)
  (3, 1)
  """
  places = [f"row {number}" for number in range(1, len(rows) + 1)]
  checked = [_row(row, place, "prompt") for place, row in zip(places, rows, strict=True)]
  functions = [
    each if isinstance(each, Reward) else Reward(each, 1.0, getattr(each, "__name__", type(each).__name__))
    for each in rewards
  ]
  return _task(name, places, checked, functions, evaluation_size, seed, f"task {name!r}")


def _task(
  name: str,
  places: Sequence[str],
  rows: Sequence[Row],
  rewards: Sequence[Reward],
  evaluation_size: int,
  seed: int,
  what: str,
) -> Task:
  """Holds out prompts, each measured on its first row; the other rows are shuffled anew in every epoch."""
  if evaluation_size < 1:
    raise ValueError(f"evaluation_size must be at least 1, got {evaluation_size}")
  columns = dict.fromkeys(column for row in rows for column in row)
  filled = [{column: row.get(column) for column in columns} for row in rows]
  try:
    split = hold_out(filled, evaluation_size, seed=seed, key=lambda row: subject(row["prompt"]))
  except ValueError as error:
    raise ValueError(f"{what} is too small for evaluation_size={evaluation_size} (a task option): {error}") from None
  place, training = shuffled(len(split.training), seed), split.training
  evaluation = list({subject(row["prompt"]): row for row in reversed(split.held_out)}.values())[::-1]
  measured = f", of which {len(evaluation)} {'is' if len(evaluation) == 1 else 'are'} measured"
  return Task(
    name,
    lambda index: training[place(index)],
    evaluation,
    tuple(rewards),
    rows=list(zip(places, filled, strict=True)),
    description=split.describe() + measured * (len(evaluation) < len(split.held_out)),
  )


def subject(prompt: Any) -> str:
  """Returns what a row is about: its prompt, in one form for text and messages.

  >>> subject([{"role": "user", "content": "Hi"}])
  '[{"content": "Hi", "role": "user"}]'
  """
  if isinstance(prompt, str):
    return prompt
  said = [{key: value for key, value in message.items() if value is not None and key != "weight"} for message in prompt]
  return json.dumps(said, sort_keys=True, default=str)


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
  """Returns the rows of a `.jsonl` or `.parquet` file with their places in it, such as "line 3", as they stand there.

  Whoever reads a row's text calls `check_text` on it, once.

  Raises:
    ValueError: For another kind of file, or a broken line, by its number.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
  ...   _ = file.write('{"text": "Hi"}\\n')
  ...   file.flush()
  ...   read(Path(file.name))
  [('line 1', {'text': 'Hi'})]
  """
  readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
  if path.suffix not in readers:
    raise ValueError(f"data file {str(path)!r} must end in .jsonl or .parquet")
  return readers[path.suffix](path)


def check_text(value: Any, where: str) -> None:
  """Raises ValueError for text that no tokenizer can read: JSON may hold half of a surrogate pair.

  >>> check_text({"prompt": "\\ud83d"}, "line 3")
  Traceback (most recent call last):
  ...
  ValueError: line 3: text with half of a character, '\\ud83d', which is no Unicode
  """
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeEncodeError as error:
      raise ValueError(f"{where}: text with half of a character, {value[error.start]!r}, which is no Unicode") from None
  elif isinstance(value, dict):
    for part in (*value.keys(), *value.values()):
      check_text(part, where)
  elif isinstance(value, list | tuple):
    for part in value:
      check_text(part, where)


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
  check_text(row, where)
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


def is_empty(answer: Any) -> bool:
  """Whether an answer, text or messages, says nothing: no words, and no call of a tool.

  >>> is_empty(" "), is_empty([{"role": "assistant", "content": "Hi"}])
  (True, False)
  """
  if isinstance(answer, str):
    return not answer.strip()
  return not any((message.get("content") or "").strip() or message.get("tool_calls") for message in answer)


def _is_message(message: Any) -> bool:
  """A message has a role and says something, in words or by calling tools."""
  if not isinstance(message, dict) or not isinstance(message.get("role"), str):
    return False
  content = message.get("content")
  return isinstance(content, str) or (content is None and bool(message.get("tool_calls")))
