"""Reward functions: `reward(prompts, completions, completion_ids, **columns) -> list[float | None]`.

They are called with keywords only and may be plain, async, or callable objects. Prompts and completions are strings, or
lists of chat messages for conversational prompts; the task's columns arrive by name. What they are given is their own:
nothing that they do to it is seen by others. None or NaN means "not applicable". Whatever goes wrong in one is reported
with its name and the row.
"""

import asyncio
import functools
import inspect
import math
import numbers
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_jax.errors import reason
from rl_jax.tasks.verifiers import VERIFIERS, check_columns

_SEARCH_SECONDS = 2.0
LARGEST = float(np.finfo(np.float32).max)


GIVEN = ("prompts", "completions", "completion_ids")  # arguments of every reward function, besides the columns


class Reward(NamedTuple):
  """A reward function with its weight and the name that metrics show."""

  function: Callable[..., Any]
  weight: float
  name: str


def check_any(rewards: Sequence[Reward], reward_model: bool) -> None:
  """Raises ValueError if nothing weighs what is learned: no reward function with a weight, and no reward model.

  >>> check_any([], reward_model=True)
  """
  if not reward_model and not any(reward.weight for reward in rewards):
    raise ValueError("there is nothing to learn from: give rewards with a weight (--rewards), or to PPO a reward model")


def check_arguments(rewards: Sequence[Reward], columns: Sequence[str]) -> None:
  """Raises ValueError if a reward function cannot be called with a task's columns.

  Args:
    rewards: Reward functions.
    columns: The columns that every one of them gets, besides `prompts`, `completions` and `completion_ids`.

  >>> check_arguments([Reward(lambda completions, target: [], 1.0, "near")], ["answer"])
  Traceback (most recent call last):
  ...
  ValueError: reward function 'near' needs the argument 'target', which is no column of the task; it has answer
  """
  _check_names(columns)
  given = {*GIVEN, *columns}
  for reward in rewards:
    if reward.function in VERIFIERS.values():
      check_columns(columns)
    try:
      parameters = inspect.signature(reward.function).parameters.values()
    except (TypeError, ValueError):  # some that are built in do not tell
      continue
    needed = [
      p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if lacking := [name for name in needed if name not in given]:
      has = ", ".join(columns) or "none"
      raise ValueError(
        f"reward function {reward.name!r} needs the argument {lacking[0]!r}, which is no column of the task;"
        f" it has {has}"
      )
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
      taken = {p.name for p in parameters}
      if extra := sorted(given - taken):
        raise ValueError(f"reward function {reward.name!r} must take **_ too: it is also given {', '.join(extra)}")


def _check_names(columns: Iterable[str]) -> None:
  if taken := sorted({*GIVEN, "self"} & set(columns)):
    raise ValueError(f"column {taken[0]!r} has the name of an argument that every reward function gets: rename it")


def judge(
  rewards: Sequence[Reward],
  *,
  prompts: Sequence[Any],
  completions: Sequence[Any],
  completion_ids: Sequence[Sequence[int]],
  columns: Mapping[str, Sequence[Any]],
) -> dict[str, np.ndarray]:
  """Calls every reward function on n completions; async ones run at the same time.

  Returns:
    One `[n]` array a function, by name, without its weight; NaN where it did not apply.

  Raises:
    ValueError: Naming the function, and the row where there is one, if it raises, or returns a wrong length or type.

  >>> length = Reward(lambda completions, **_: [len(c) for c in completions], 0.5, "length")
  >>> judge([length], prompts=["a"], completions=["bcd"], completion_ids=[[1]], columns={})
  {'length': array([3.])}
  """
  _check_names(columns)
  keywords = {**columns, "prompts": prompts, "completions": completions, "completion_ids": completion_ids}
  count = len(completions)
  returned = _call_all(rewards, keywords, count)
  return {r.name: _checked(r.name, values, count) for r, values in zip(rewards, returned, strict=True)}


def _call_all(rewards: Sequence[Reward], keywords: Mapping[str, Any], count: int) -> list[Any]:
  """Calls plain functions in this thread and awaits async ones together."""
  returned = [_call(reward, keywords, count) for reward in rewards]
  pending = [i for i, value in enumerate(returned) if inspect.isawaitable(value)]
  if not pending:
    return returned

  for i, value in zip(pending, _await_all([returned[i] for i in pending]), strict=True):
    if isinstance(value, BaseException):
      raise _failure(rewards[i].name, value, _where(rewards[i], keywords, count)) from value
    returned[i] = value
  return returned


def _await_all(awaitables: Sequence[Any]) -> list[Any]:
  """Awaits together and returns results and exceptions."""

  async def gather() -> list[Any]:
    return await asyncio.gather(*awaitables, return_exceptions=True)

  return asyncio.run_coroutine_threadsafe(gather(), _event_loop()).result()


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
  """One loop for the whole run, in a thread of its own: locks and connections that rewards keep belong to a loop."""
  event_loop = asyncio.new_event_loop()
  threading.Thread(target=event_loop.run_forever, daemon=True, name="async rewards").start()
  return event_loop


def _call(reward: Reward, keywords: Mapping[str, Any], count: int) -> Any:
  try:
    return _returned(reward, keywords)
  except KeyboardInterrupt:
    raise
  except BaseException as error:
    raise _failure(reward.name, error, _where(reward, keywords, count)) from error


def _returned(reward: Reward, keywords: Mapping[str, Any]) -> Any:
  """What a function gives for copies of its arguments; what it makes one by one is made here."""
  returned = reward.function(**_copied(keywords))
  return list(returned) if isinstance(returned, Iterator) else returned


def _copied(value: Any) -> Any:
  """A copy of all lists, mappings and arrays in it, each of its own; text and numbers nobody can change."""
  if isinstance(value, Mapping):
    return {key: _copied(part) for key, part in value.items()}
  if type(value) in (list, tuple):
    return type(value)(_copied(part) for part in value)
  return value.copy() if isinstance(value, np.ndarray) else value


def _failure(name: str, error: BaseException, where: str) -> ValueError:
  frames = traceback.extract_tb(error.__traceback__)
  place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
  return ValueError(f"reward function {name!r} raised {type(error).__name__} on {where}: {reason(error)}{place}")


def _where(reward: Reward, keywords: Mapping[str, Any], count: int) -> str:
  """Names the first row that a function fails on by itself, if it is found soon: a call may be slow, or cost money."""
  start = time.monotonic()
  for row in range(count):
    if time.monotonic() - start > _SEARCH_SECONDS:
      break
    try:
      value = _returned(reward, {name: values[row : row + 1] for name, values in keywords.items()})
      failed = inspect.isawaitable(value) and isinstance(_await_all([value])[0], BaseException)
    except KeyboardInterrupt:
      raise
    except BaseException:
      failed = True
    if failed:
      return f"row {row} of the batch"
  return f"a batch of {count} rows"


def _checked(name: str, values: Any, count: int) -> np.ndarray:
  try:
    if isinstance(values, str | Mapping | Set):
      raise TypeError
    values = list(values)
  except TypeError:
    raise ValueError(
      f"reward function {name!r} must return a list of {count} numbers, got {type(values).__name__}"
    ) from None
  if len(values) != count:
    raise ValueError(f"reward function {name!r} returned {len(values)} rewards for {count} completions")
  return np.array([_number(name, row, value) for row, value in enumerate(values)], np.float64)


def _number(name: str, row: int, value: Any) -> float:
  if value is None:
    return math.nan
  if getattr(value, "ndim", None) == 0:  # scalars of numpy, jax and torch
    value = value.item()
  if not isinstance(value, numbers.Real):
    raise ValueError(f"reward function {name!r} returned {type(value).__name__} for row {row}, expected a number")
  try:
    number = float(value)
  except OverflowError:
    number = math.inf
  if abs(number) > LARGEST:
    raise ValueError(f"reward function {name!r} returned {str(value)[:20]} for row {row}, more than a float32 holds")
  return number
