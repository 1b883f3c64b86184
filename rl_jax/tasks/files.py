"""Files of rows, and what may stand in a row."""

import csv
import gzip
import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any

from rl_jax.errors import reason


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
  if path.is_dir():
    raise ValueError(f"data file {str(path)!r} is a folder; a file in it may be meant")
  if not path.is_file():
    raise ValueError(f"data file {str(path)!r} does not exist")
  return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path) -> list[tuple[str, Any]]:
  """Returns a file's rows with their places in it, such as "line 3", as they stand there.

  Whoever reads a row's text calls `check_text` on it, once.

  Args:
    path: A `.jsonl`, `.json` (a list of rows, or one under the key "data", "rows" or "train"; lists by column; or a row
      a line), `.csv` or `.parquet` file; all but the last may be compressed, with `.gz` behind.

  Raises:
    ValueError: For another kind of file, or a broken line, by its number.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
  ...   _ = file.write('{"text": "Hi"}\\n')
  ...   file.flush()
  ...   read(Path(file.name))
  [('line 1', {'text': 'Hi'})]
  """
  if path.suffix == ".parquet":
    return _read_parquet(path)
  readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
  packed = path.suffix == ".gz"
  reader = readers.get(Path(path.stem).suffix if packed else path.suffix)
  if reader is None:
    raise ValueError(f"data file {str(path)!r} must end in .jsonl, .json, .csv (or one of them with .gz) or .parquet")
  try:
    return reader(path, gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise ValueError(f"data file {str(path)!r} is no whole gzip file ({error})") from None


def check_text(value: Any) -> None:
  """Raises ValueError for text that no tokenizer can read: JSON may hold half of a surrogate pair.

  >>> check_text({"prompt": "\\ud83d"})
  Traceback (most recent call last):
  ...
  ValueError: text with half of a character, '\\ud83d', which is no Unicode
  """
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeEncodeError as error:
      raise ValueError(f"text with half of a character, {value[error.start]!r}, which is no Unicode") from None
  elif isinstance(value, dict):
    for part in (*value.keys(), *value.values()):
      check_text(part)
  elif isinstance(value, list | tuple):
    for part in value:
      check_text(part)


def _read_jsonl(path: Path, content: bytes) -> list[tuple[str, Any]]:
  rows = []
  for number, line in enumerate(content.split(b"\n"), start=1):
    if not line.strip():
      continue
    try:
      rows.append((f"line {number}", json.loads(line)))
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
      raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
  return rows


def _read_json(path: Path, content: bytes) -> list[tuple[str, Any]]:
  try:
    found = json.loads(content)
  except (ValueError, RecursionError) as error:
    if "Extra data" in str(error):  # a row a line
      return _read_jsonl(path, content)
    raise ValueError(f"{path}: not JSON ({error})") from None
  if isinstance(found, dict):
    found = next((found[key] for key in ("data", "rows", "train") if _is_list_of_dicts(found.get(key))), found)
  columns = isinstance(found, dict) and [each for each in found.values() if not _is_list_of_dicts(each)]
  if columns and all(isinstance(each, list) for each in found.values()):
    if len(counts := {len(each) for each in found.values()}) > 1:
      raise ValueError(f"{path}: lists by column must be of one length, got {sorted(counts)}")
    found = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
  if not isinstance(found, list):
    raise ValueError(f"{path}: must hold a list of rows, got {type(found).__name__}")
  return [(f"row {number}", row) for number, row in enumerate(found, start=1)]


def _is_list_of_dicts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _read_csv(path: Path, content: bytes) -> list[tuple[str, Any]]:
  csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # a cell may be as long as the file
  try:
    lines = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    names = lines.fieldnames or []
    rows = [(f"row {number}", row) for number, row in enumerate(lines, start=1)]
  except (ValueError, csv.Error) as error:
    raise ValueError(f"{path}: no readable CSV ({error})") from None
  if twice := [name for name in names if names.count(name) > 1]:
    raise ValueError(f"{path}: two columns have the name {twice[0]!r}")
  if long := [place for place, row in rows if None in row or None in row.values()]:
    raise ValueError(f"{path}, {long[0]}: not as many columns as the first line names")
  return [(place, {name: value for name, value in row.items() if name}) for place, row in rows]  # pandas numbers rows


def _read_parquet(path: Path) -> list[tuple[str, Any]]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise ValueError("reading .parquet needs pyarrow: pip install 'rl-jax[tasks]'") from None
  try:
    table = pyarrow.parquet.read_table(path)
    return [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1)]
  except (pyarrow.ArrowInvalid, OSError, ValueError) as error:
    raise ValueError(f"data file {str(path)!r} is no readable Parquet file ({reason(error)})") from None


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
