"""Tasks that run on the device: prompts, verifiers and demonstrations in pure JAX, one task a module.

The modules are the registry: a new file with a function `load(...) -> Task` is a new task.
"""

import importlib
import inspect
import pkgutil
from typing import Any

from rl_jax.tasks.on_device.base import Task


def names() -> list[str]:
  """Returns the names of all tasks.

  >>> names()
  ['addition', 'copying', 'countdown', 'modular', 'parity', 'sorting', 'stopping']
  """
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", "host"))


def load(name: str, **options: Any) -> Task:
  """Returns a task by its module's name.

  Args:
    name: One of `names()`.
    **options: Arguments of the task's `load`.

  Raises:
    ValueError: If there is no such task or option, or an option is of another type.

  >>> load("addition", digits=3).name
  'addition-3'
  """
  if name not in names():
    raise ValueError(f"unknown on-device task {name!r}; there are {', '.join(names())}")
  module = importlib.import_module(f"rl_jax.tasks.on_device.{name}")
  parameters = inspect.signature(module.load).parameters
  for key, value in options.items():
    if key not in parameters:
      raise ValueError(f"task {name!r} has no option {key!r}; it has {', '.join(parameters)}")
    default = parameters[key].default
    kinds = int if default is None else (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
      raise ValueError(f"option {key} of task {name!r} must be like {default!r}, got {value!r}")
  return module.load(**options)
