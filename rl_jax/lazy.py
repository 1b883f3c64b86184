"""Packages whose modules are imported when they are first asked for, so that `import rl_jax` is quick."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any


def submodules(package: str, path: Iterable[str]) -> Callable[[str], Any]:
  """Returns a package's `__getattr__`, which imports the module that is asked for.

  Args:
    package: The package's `__name__`.
    path: The package's `__path__`.

  >>> import rl_jax as rl
  >>> rl.ops.kl.__name__
  'rl_jax.ops.kl'
  """

  def get(name: str) -> Any:
    if name not in {module.name for module in pkgutil.iter_modules(path)}:
      raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return importlib.import_module(f"{package}.{name}")

  return get
