r"""Reward functions by name: `math`, `gsm8k`, `format`, `length` and `json`.

What is right stands in the first of the columns `answer`, `solution`, `final_answer` and `ground_truth` that a row has,
or in `reward_model` as {"ground_truth": ...}: as it is, in `\boxed{...}`, or behind `####`.
"""

import atexit
import concurrent.futures
import functools
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

COLUMNS = ("answer", "solution", "final_answer", "ground_truth")
SECONDS = 10.0  # for one answer; a term may be as large as a model likes
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", re.DOTALL)


def text_of(completion: Any) -> str:
  """Returns a completion's text, which for prompts of chat is that of its last message.

  >>> text_of([{"role": "assistant", "content": "42"}])
  '42'
  """
  return completion if isinstance(completion, str) else completion[-1].get("content") or ""


def final_answer(text: str) -> str:
  r"""Returns what a text says in the end: behind the last `####`, in the last `\boxed{}`, its last number, or all.

  >>> [final_answer(text) for text in (r"so \boxed{\frac{1}{2}}.", "4 + 3\n#### 7", "It is 1,234.", " yes ")]
  ['\\frac{1}{2}', '7', '1234', 'yes']
  """
  if "####" in text:
    return text.rpartition("####")[2].strip().replace(",", "")
  if "\\boxed{" in text:
    return _braced(text.rpartition("\\boxed{")[2])
  numbers = _NUMBER.findall(text)
  return numbers[-1].replace(",", "").replace("$", "") if numbers else text.strip()


def _braced(text: str) -> str:
  """What stands before the brace that closes one which stood before the text."""
  depth = 1
  for place, character in enumerate(text):
    depth += {"{": 1, "}": -1}.get(character, 0)
    if not depth:
      return text[:place].strip()
  return text.strip()


def right_answers(columns: dict[str, Sequence[Any]], count: int) -> list[str | None]:
  """Returns what is right for each of `count` rows, None where a row does not say.

  >>> right_answers({"question": ["?"], "answer": ["2 + 2\\n#### 4"]}, 1)
  ['2 + 2\\n#### 4']
  """
  for name in COLUMNS:
    if name in columns:
      return [None if value is None else str(value) for value in columns[name]]
  if "reward_model" in columns:
    return [str(value["ground_truth"]) if isinstance(value, dict) else None for value in columns["reward_model"]]
  raise ValueError(f"no column says what is right: there must be one of {', '.join(COLUMNS)}")


def gsm8k(completions: Sequence[Any], **columns: Any) -> list[float | None]:
  r"""1 where a completion's final number is the right one, else 0; None where a row does not say what is right.

  >>> gsm8k([r"\boxed{1,000}", "10"], answer=["... #### 1000", "... #### 11"])
  [1.0, 0.0]
  """
  right = right_answers(columns, len(completions))
  return [
    None if gold is None else float(_same_number(final_answer(text_of(each)), final_answer(gold)))
    for each, gold in zip(completions, right, strict=True)
  ]


def _same_number(one: str, other: str) -> bool:
  try:
    return _number(one) == _number(other)
  except ValueError:
    return one == other


def _number(text: str) -> float:
  return float(text.replace(",", "").strip("$% ."))


def math(completions: Sequence[Any], **columns: Any) -> list[float | None]:
  """1 where a completion's answer is mathematically equal to the right one, else 0, by the library math-verify.

  None where a row does not say what is right, or what it says is no mathematics. An answer that takes too long is
  wrong. It runs in processes of its own: parsing may hang, and nothing else would end it.
  """
  right = right_answers(columns, len(completions))
  pool = _pool()
  jobs = [
    None if gold is None else pool.submit(_verify, gold, text_of(each))
    for each, gold in zip(completions, right, strict=True)
  ]
  return [None if job is None else _result(job) for job in jobs]


def _result(job: "concurrent.futures.Future[float | None]") -> float | None:
  try:
    return job.result(timeout=SECONDS)
  except (concurrent.futures.TimeoutError, concurrent.futures.process.BrokenProcessPool):
    _close_pool()  # the next batch gets a new one
    return 0.0
  except concurrent.futures.CancelledError:
    return 0.0


def _verify(gold: str, text: str) -> float | None:
  """Runs in a process of the pool."""
  from math_verify import parse, verify

  said = final_answer(gold) if "####" in gold else gold
  right = parse(said if "$" in said or "\\boxed" in said else f"${said}$") or parse(said)
  return float(verify(right, parse(text))) if right else None


@functools.cache
def _pool() -> concurrent.futures.ProcessPoolExecutor:
  """Processes that are spawned: a fork after JAX has started threads can wait for ever."""
  try:
    import math_verify as math_verify
  except ImportError:
    raise ValueError("reward 'math' needs math-verify: pip install 'rl-jax[tasks]'") from None
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(max(min((os.cpu_count() or 1) - 1, 8), 1), mp_context=context)
  atexit.register(_close_pool)
  return pool


def _close_pool() -> None:
  if _pool.cache_info().currsize:
    pool = _pool()
    _pool.cache_clear()
    for process in list((pool._processes or {}).values()):
      process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


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
    json.loads(fenced[1] if fenced else text)
  except ValueError:
    return False
  return True


REWARDS: dict[str, Callable[..., list]] = {
  "math": math,
  "gsm8k": gsm8k,
  "format": format,
  "length": length,
  "json": json_,
}
VERIFIERS = {"math": math, "gsm8k": gsm8k}  # those that say whether an answer is right
