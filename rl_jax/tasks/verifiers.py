r"""Reward functions by name: `math`, `gsm8k`, `format`, `length` and `json`.

What is right stands in the first of the columns `answer`, `solution`, `final_answer` and `ground_truth` that a row has,
or in `reward_model` as {"ground_truth": ...}: as it is, in `\boxed{...}`, or behind `####`.
"""

import atexit
import functools
import json
import os
import queue
import re
import select
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

COLUMNS = ("answer", "solution", "final_answer", "ground_truth")
SECONDS, STARTING = 10.0, 120.0  # for one answer, as large as a model likes; and for a process to start
_DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_UNIT = r"(?:[\s%a-zA-Z€£¥.,;:!?'\"]|(?<=[a-zA-Z])[-/](?=[a-zA-Z]))*"
_FRACTION = rf"{_DIGITS}(?:/{_DIGITS})?"
_NUMBER = re.compile(rf"(?<![\w./)])-?{_DIGITS}/{_DIGITS}(?![/\d])|(?<![\w.)])-?{_DIGITS}")
_MARKED = re.compile(rf"####[ \t]*([-+]?[ \t]?{_FRACTION})(?![\d/])")
_WHOLE = re.compile(rf"([-+]?)\s?({_DIGITS})(?:/({_DIGITS}))?{_UNIT}")
_THOUSANDS = re.compile(r"(?<![\d,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_SENTENCE = re.compile(r"[a-zA-Z]{2,}\s")
_WORDS = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}")
_INSIDE = r"(?:(?!</?(?:think|answer)>).)*"
_FORMAT = re.compile(rf"\s*<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*", re.DOTALL)
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL | re.IGNORECASE)


def text_of(completion: Any) -> str:
  """Returns a completion's text, which for prompts of chat is that of its last message.

  >>> text_of([{"role": "assistant", "content": "42"}])
  '42'
  """
  return completion if isinstance(completion, str) else completion[-1].get("content") or ""


def final_answer(text: str) -> str:
  r"""Returns what a text says in the end: in the last `\boxed{}`, behind the last `####`, its last number, or all.

  >>> [final_answer(text) for text in (r"so \boxed{\frac{1}{2}}.", "4 + 3\n#### 7 eggs", "It is $1,234.", " yes ")]
  ['\\frac{1}{2}', '7', '1,234', 'yes']
  """
  if "\\boxed{" in text:
    return _braced(text.rpartition("\\boxed{")[2])
  text = _plain(text)
  found = _MARKED.findall(text) or _NUMBER.findall(text)
  return found[-1] if found else text


def right_answer(gold: str) -> str:
  r"""Returns what a row says is right: behind `####`, in `\boxed{}`, or all of it.

  >>> [right_answer(gold) for gold in ("2 + 2\n#### 1,004", r"So \boxed{(1,2)}.", "1/2")]
  ['1,004', '(1,2)', '1/2']
  """
  if "####" in gold:
    return _plain(gold.rpartition("####")[2])
  return _braced(gold.rpartition("\\boxed{")[2]) if "\\boxed{" in gold else gold.replace("\\$", "").strip()


def _braced(text: str) -> str:
  """What stands before the brace that closes one which stood before the text."""
  depth = 1
  for place, character in enumerate(text):
    depth += {"{": 1, "}": -1}.get(character, 0)
    if not depth:
      return text[:place].strip()
  return text.strip()


def _plain(text: str) -> str:
  """Without signs of money, degrees, and the minus and the spaces of typesetters."""
  text = _WORDS.sub(r" \1", text).replace("−", "-").replace("{,}", ",").replace("\\!", "")
  text = re.sub(r"(?<![\d\w])–(?=\d)", "-", text)
  text = re.sub(r"(?<=\d)\\,(?=\d{3})", ",", text)
  text = re.sub(r"\\[ ,;:]|~", " ", re.sub(r"\^?\{?\\circ\}?|°", "", text))
  return re.sub(r"\\?[$€£¥]", "", text.replace("\\%", "%")).strip()


def right_answers(columns: Mapping[str, Sequence[Any]], count: int) -> list[str | None]:
  """Returns what is right for each of `count` rows, None where a row does not say.

  >>> right_answers({"question": ["?"], "answer": ["2 + 2\\n#### 4"]}, 1)
  ['2 + 2\\n#### 4']
  """
  check_columns(columns)
  return [_right(columns, row) for row in range(count)]


def check_columns(columns: Any) -> None:
  """Raises ValueError if none of the columns says what is right."""
  if not {*COLUMNS, "reward_model"} & set(columns):
    raise ValueError(f"no column says what is right: there must be one of {', '.join(COLUMNS)}")


def _right(columns: Mapping[str, Sequence[Any]], row: int) -> str | None:
  found = [_said(columns[name][row]) for name in COLUMNS if name in columns]
  if "reward_model" in columns:
    found.append(_said(_ground_truth(columns["reward_model"][row])))
  return next((answer for answer in found if answer), None)


def _said(value: Any) -> str:
  """An answer as text; a list of one is that one, and NaN, which stands where a table has nothing, is none."""
  if isinstance(value, list | tuple):
    return _said(value[0]) if len(value) == 1 else ""
  return "" if value is None or value != value else str(value).strip()


def _ground_truth(value: Any) -> Any:
  """What DAPO-Math's column says, or JSON of it."""
  try:
    value = json.loads(value) if isinstance(value, str) else value
  except ValueError:
    return None
  return value.get("ground_truth") if isinstance(value, Mapping) else None


def gsm8k(completions: Sequence[Any], **columns: Any) -> list[float | None]:
  r"""1 where a completion's final number is the right one, else 0; None where a row does not say what is right.

  >>> gsm8k([r"\boxed{1,000}", "10"], answer=["... #### 1000", "... #### 11"])
  [1.0, 0.0]
  """
  right = right_answers(columns, len(completions))
  return [
    None if gold is None else float(_same(final_answer(text_of(each)), _right_number(gold)))
    for each, gold in zip(completions, right, strict=True)
  ]


def _right_number(gold: str) -> str:
  """What a row says is right; of a sentence with one number it is that one."""
  right = right_answer(gold)
  numbers = _NUMBER.findall(_plain(right)) if _SENTENCE.search(right) else []
  return numbers[0] if len(numbers) == 1 else right


def _same(one: str, other: str) -> bool:
  numbers = [_number(text) for text in (one, other)]
  if None in numbers:
    return _plain(one) == _plain(other)
  return numbers[0] == numbers[1]


def _number(text: str) -> float | None:
  """The number that a text is, with a unit or not; what is behind a last "=" counts."""
  found = _WHOLE.fullmatch(_plain(text).rpartition("=")[2].strip())
  if found is None:
    return None
  above, below = (float((part or "1").replace(",", "")) for part in found.group(2, 3))
  return (-above if found[1] == "-" else above) / below if below else None


def math(completions: Sequence[Any], **columns: Any) -> list[float | None]:
  """1 where a completion's answer is mathematically equal to the right one, else 0, by the library math-verify.

  None where a row does not say what is right, or what it says is no mathematics. An answer that takes too long is
  wrong. It runs in processes of its own (`tasks.math_worker`): parsing may hang, and nothing else would end it.

  Raises:
    ValueError: If math-verify is not installed, or no process of it starts.
  """
  right = right_answers(columns, len(completions))
  workers = _workers()

  def ask(pair: tuple[Any, str | None]) -> float | None:
    completion, gold = pair
    if gold is None:
      return None
    worker = workers.get()
    try:
      return worker.ask(_without_thousands(right_answer(gold)), text_of(completion))
    finally:
      workers.put(worker)

  with ThreadPoolExecutor(workers.maxsize) as threads:
    return list(threads.map(ask, zip(completions, right, strict=True)))


def _without_thousands(right: str) -> str:
  """What is right without the commas in its one number; a pair or a list, such as (1,100), keeps its own."""
  found = _THOUSANDS.findall(right)
  return right.replace(",", "") if len(found) == 1 and not re.search(r"[(\[{]", right) else right


class Worker:
  """A process that compares answers; started when it is asked, and anew after an answer that took too long."""

  def __init__(self):
    self._process: subprocess.Popen | None = None

  def ask(self, gold: str, text: str) -> float | None:
    """Returns what the process says, 0 where it says nothing in time."""
    process = self._process or self._start()
    try:
      process.stdin.write(json.dumps([gold, text]).encode() + b"\n")  # pyright: ignore[reportOptionalMemberAccess]
      line = _line(process, SECONDS)
    except OSError:  # somebody ended it
      line = b""
    if not line:
      self.close()
      return 0.0
    return json.loads(line)

  def _start(self) -> subprocess.Popen:
    file = Path(__file__).with_name("math_worker.py")
    process = subprocess.Popen(
      [sys.executable, str(file)],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True,
    )  # fmt: skip
    if not _line(process, STARTING):
      process.kill()
      process.communicate()
      raise ValueError("reward 'math' needs math-verify: pip install 'rl-jax[tasks]' (its process does not start)")
    self._process = process
    return process

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None:
      self._process.kill()
      self._process.communicate()
      self._process = None


def _line(process: subprocess.Popen, seconds: float) -> bytes:
  """The process's next line; empty where none comes in time, or it has ended."""
  out: Any = process.stdout
  ready, _, _ = select.select([out], [], [], seconds)
  return out.readline() if ready else b""


@functools.cache
def _workers() -> "queue.Queue[Worker]":
  count = max(min((os.cpu_count() or 1) - 1, 8), 1)
  workers: queue.Queue[Worker] = queue.Queue(count)
  for _ in range(count):
    workers.put(Worker())
  atexit.register(close_workers)
  return workers


def close_workers() -> None:
  """Ends the processes that compare answers; others are started when they are needed."""
  if _workers.cache_info().currsize:
    workers = _workers()
    _workers.cache_clear()
    while not workers.empty():
      workers.get().close()


def format(completions: Sequence[Any], **_: Any) -> list[float]:
  """1 for `<think>...</think><answer>...</answer>` and nothing else, else 0.

  >>> format(["<think>Hm.</think> <answer>4</answer>", "<answer>4</answer>"])
  [1.0, 0.0]

  Reference: DeepSeek-AI, "DeepSeek-R1", arXiv:2501.12948.
  """
  return [float(bool(_FORMAT.fullmatch(text_of(each)))) for each in completions]


def length(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
  """A thousandth less for every token: to be weighed against what is right.

  >>> length(completion_ids=[[5] * 250])
  [-0.25]
  """
  return [-len(tokens) / 1000 for tokens in completion_ids]


def json_(completions: Sequence[Any], **_: Any) -> list[float]:
  """1 for text that is JSON, in a fence of code or not, else 0.

  >>> json_(['{"a": [1, 2]}', '```json\\n{}\\n```', '{"a"'])
  [1.0, 1.0, 0.0]
  """
  return [float(_is_json(text_of(each))) for each in completions]


def _is_json(text: str) -> bool:
  fenced = _FENCE.fullmatch(text)
  try:
    json.loads(fenced[1] if fenced else text, parse_constant=_no_constant)
  except (ValueError, RecursionError):
    return False
  return True


def _no_constant(name: str) -> None:
  raise ValueError(f"{name} is no JSON")


REWARDS: dict[str, Callable[..., list]] = {
  "math": math,
  "gsm8k": gsm8k,
  "format": format,
  "length": length,
  "json": json_,
}
VERIFIERS = {"math": math, "gsm8k": gsm8k}  # those that say whether an answer is right
