"""Tasks that run on the device: prompts, verifiers and demonstrations in pure JAX, one task a module.

The modules are the registry: a new file with a function `load(...) -> Task` is a new task.
"""

import pkgutil
from typing import Any

from rl_jax import dotted
from rl_jax import options as options_lib
from rl_jax.tasks.on_device.base import Task


def names() -> list[str]:
  """Returns the names of all tasks.

  >>> names()
  ['addition', 'copying', 'countdown', 'modular', 'parity', 'sorting', 'stopping']
  """
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", "host"))


def load(name: str, **options: Any) -> Task:
  """Returns a task by its module's name, or by the path of a function of one's own.

  Args:
    name: One of `names()`, or such as `my_module:load` or `folder/file.py:load`.
    **options: Arguments of the task's `load`.

  Raises:
    ValueError: If there is no such task or option, or an option is of another type.

  >>> load("addition", digits=3).name
  'addition-3'
  """
  if ":" not in name and name not in names():
    raise ValueError(
      f"unknown on-device task {name!r}; there are {', '.join(names())}, and paths such as my_module:load"
    )
  loader = dotted.load(name if ":" in name else f"rl_jax.tasks.on_device.{name}:load", "task")
  return options_lib.call(loader, options, f"task {name!r}", Task)
