"""What users name by a path, such as `my_module:reward` or `folder/file.py:reward`."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rl_jax.errors import reason


def load(path: str, kind: str) -> Any:
  """Imports the attribute that a path such as `"my_module:reward"` names; the working directory is searched too.

  Args:
    path: A module or a Python file, a colon, and one of its attributes. A file may import those beside it.
    kind: What it is, for errors, such as "reward".

  Raises:
    ValueError: If the path is of another form, cannot be imported, or names what is not callable.

  >>> load("math:fsum", "reward")([1, 2])
  3.0
  """
  module, colon, attribute = path.rpartition(":")
  if not (colon and module and attribute):
    raise ValueError(f"{kind} {path!r} must read 'module:function' or 'path/to/file.py:function'")
  try:
    found = getattr(_file(Path(module)) if module.endswith(".py") else _module(module), attribute)
  except (Exception, SystemExit) as error:  # whatever the user's module raises
    raise ValueError(f"{kind} {path!r} cannot be imported: {type(error).__name__}: {reason(error)}") from None
  if not callable(found):
    raise ValueError(f"{kind} {path!r} is not callable")
  return found


def _module(name: str) -> ModuleType:
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  return importlib.import_module(name)


def _file(path: Path) -> ModuleType:
  """The module of a file, named as it is when another file beside it imports it."""
  if not path.is_file():
    raise FileNotFoundError(f"there is no file {str(path)!r}")
  if str(path.parent.resolve()) not in sys.path:
    sys.path.append(str(path.parent.resolve()))
  known = sys.modules.get(path.stem)
  if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path.resolve():
    return known
  name = path.stem if known is None else f"{path.stem} of {path.resolve()}"  # math.py is not to replace math
  if name in sys.modules:
    return sys.modules[name]
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise
  return module
