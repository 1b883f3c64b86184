"""Environments for control, one a module: a robot on the host, small ones in pure JAX.

The modules are the registry: a new file with a function `load(...) -> Environment` is a new environment.
"""

import importlib
import pkgutil
from typing import Any

from rl_jax import options as options_lib
from rl_jax.environments.base import Environment

_PARTS = ("agents", "base", "physics")


def names() -> list[str]:
  """Returns the names of all environments.

  >>> names()
  ['biped', 'cartpole', 'gym', 'pendulum']
  """
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _PARTS)


def load(name: str, **options: Any) -> Environment:
  """Returns an environment by its module's name.

  Args:
    name: One of `names()`.
    **options: Arguments of the environment's `load`.

  Raises:
    ValueError: If there is no such environment or option, an option is of another type, or a package is missing.

  >>> load("cartpole", max_steps=200).max_steps
  200
  """
  if name not in names():
    raise ValueError(f"unknown environment {name!r}; there are {', '.join(names())}")
  module = importlib.import_module(f"rl_jax.environments.{name}")
  return options_lib.call(module.load, options, f"environment {name!r}", Environment)
