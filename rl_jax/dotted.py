"""What users name by a dotted path, such as `my_module:reward`; the working directory is searched too."""

import importlib
import os
import sys
from typing import Any

from rl_jax.errors import reason


def load(path: str, kind: str) -> Any:
  """Imports the attribute that a path such as `"my_module:reward"` names.

  Args:
    path: A module, a colon, and one of its attributes.
    kind: What it is, for errors, such as "reward".

  Raises:
    ValueError: If the path is of another form, cannot be imported, or names what is not callable.

  >>> load("math:fsum", "reward")([1, 2])
  3.0
  """
  module, colon, attribute = path.partition(":")
  if not (colon and module and attribute):
    raise ValueError(f"{kind} {path!r} must read 'module:function'")
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  try:
    found = getattr(importlib.import_module(module), attribute)
  except (Exception, SystemExit) as error:  # whatever the user's module raises
    raise ValueError(f"{kind} {path!r} cannot be imported: {type(error).__name__}: {reason(error)}") from None
  if not callable(found):
    raise ValueError(f"{kind} {path!r} is not callable")
  return found
