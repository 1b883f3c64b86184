"""Tasks by name, as the command line gives them."""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl_jax import dotted, hub
from rl_jax import options as options_lib
from rl_jax.tasks import arithmetic, reasoning, rows
from rl_jax.tasks.base import Task, columns
from rl_jax.tasks.rewards import Reward, check_arguments
from rl_jax.tasks.verifiers import VERIFIERS, final_answer, right_answers

LONGEST = 256  # tokens of an answer


def load(name: str, options: Sequence[str] = (), *, rewards: Sequence[Reward] = (), seed: int = 0) -> Task:
  """Returns a task.

  Args:
    name: "arithmetic", "reasoning_gym/<dataset>", a .jsonl, .json, .csv (or one of them with .gz) or .parquet file, a
      data set's name on the hub, or the path of a function of one's own that returns a task, `my_module:load`.
    options: The task's own settings, each `"key=value"`, such as `"digits=3"`.
    rewards: Reward functions; they replace the task's own. A file has none of its own.
    seed: Seed of the order of the rows.

  Raises:
    ValueError: For an unknown name or option.

  >>> load("arithmetic", ["digits=3"]).name
  'arithmetic-3'
  >>> load("arithmetics")
  Traceback (most recent call last):
  ...
  ValueError: unknown task 'arithmetics'; there are arithmetic, reasoning_gym/<dataset>, files (.parquet, .jsonl, .json,
  .csv, .jsonl.gz, .json.gz, .csv.gz), data sets on the hub and paths such as my_module:load
  """
  settings = parse_options(options)
  for reserved in ("seed", "name", "path", "rewards"):
    if reserved in settings:
      raise ValueError(f"{reserved} is not a task option: the run sets it")
  if name == "arithmetic":
    task = _call(arithmetic.load, name, settings, seed=seed)
  elif name.startswith("reasoning_gym/"):
    task = reasoning.load(name.removeprefix("reasoning_gym/"), seed=seed, **settings)
  elif name.endswith(hub.ROWS) or hub.is_name(name) or Path(name).is_dir():
    task = _call(rows.load, name, settings, path=name, rewards=rewards, seed=seed)
  elif ":" in name:
    task = _call(dotted.load(name, "task"), name, settings, seed=seed)
  else:
    raise ValueError(
      f"unknown task {name!r}; there are arithmetic, reasoning_gym/<dataset>, files ({', '.join(hub.ROWS)}),"
      " data sets on the hub and paths such as my_module:load"
    )
  if not rewards:
    return task
  check_arguments(rewards, list(columns([task.row(0)])))
  return with_verifier(task._replace(rewards=tuple(rewards)))


def longest_answer(name: str, options: Sequence[str] = ()) -> int:
  """Returns how many tokens an answer to a task may have, where nobody says: few for sums, 256 for all others.

  >>> longest_answer("arithmetic", ["digits=3"]), longest_answer("rows.jsonl")
  (6, 256)
  """
  if name != "arithmetic":
    return LONGEST
  digits = parse_options(options).get("digits", 2)
  return digits + 3 if isinstance(digits, int) else LONGEST


def with_verifier(task: Task) -> Task:
  """Returns a task that cannot tell what is solved with the word of its first reward that can.

  Held-out rows that do not say what is right are left out: nobody could tell whether they are solved.

  >>> with_verifier(Task("t", lambda i: {}, [], (Reward(VERIFIERS["gsm8k"], 1.0, "gsm8k"),))).solved is None
  False
  """
  judge = next((reward.function for reward in task.rewards if reward.function in VERIFIERS.values()), None)
  if task.solved is not None or judge is None:
    return task

  def solved(**keywords: Any) -> list[bool]:
    return [reward == 1 for reward in judge(**keywords)]

  right = right_answers(columns(task.evaluation), len(task.evaluation)) if task.evaluation else []
  known = [row for row, answer in zip(task.evaluation, right, strict=True) if answer is not None]
  if task.evaluation and not known:
    return task
  lost = len(task.evaluation) - len(known)
  left_out = f"{lost} of these left out, which do not say what is right" if lost else ""
  told = "; ".join(filter(None, [task.description, left_out]))
  return task._replace(solved=solved, answer=final_answer, evaluation=known, description=told)


def parse_options(options: Sequence[str]) -> dict[str, Any]:
  """Returns a task's settings from `"key=value"` texts; values are JSON, or else texts.

  >>> parse_options(["digits=3", "operators=+-"])
  {'digits': 3, 'operators': '+-'}
  """
  found = [_option(text) for text in options]
  names = [name for name, _ in found]
  if twice := [name for name in names if names.count(name) > 1]:
    raise ValueError(f"option {twice[0]!r} is given twice")
  return dict(found)


def _call(loader: Callable[..., Task], name: str, settings: dict[str, Any], **fixed: Any) -> Task:
  parameters = inspect.signature(loader).parameters
  texts = [key for key in settings if key in parameters and isinstance(parameters[key].default, str)]
  settings = settings | {key: str(settings[key]) for key in texts}  # config=2021
  lists = [key for key in settings if isinstance(settings[key], list)]
  settings = settings | {key: tuple(settings[key]) for key in lists}
  return options_lib.call(loader, settings, f"task {name!r}", Task, **fixed)


def _option(text: str) -> tuple[str, Any]:
  key, equals, value = text.partition("=")
  if not equals:
    raise ValueError(f"task option {text!r} must read key=value")
  try:
    return key, json.loads(value)
  except json.JSONDecodeError:
    return key, value
