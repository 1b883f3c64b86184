"""Settings by name for functions that are found by name, such as `load` of a task or of an environment."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any


def check(function: Callable[..., Any], options: Mapping[str, Any], who: str, *, fixed: Collection[str] = ()) -> None:
  """Raises ValueError if a function has no such argument with a default, or one whose default is of another type.

  Arguments that are `fixed` are no options; a function that takes any is asked for none.

  >>> def load(*, digits: int = 2): ...
  >>> check(load, {"digits": 3}, "task 'addition'")
  >>> check(load, {"digits": "three"}, "task 'addition'")
  Traceback (most recent call last):
  ...
  ValueError: option digits of task 'addition' must be like 2, got 'three'
  """
  everything = inspect.signature(function).parameters
  takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in everything.values())
  parameters = {n: p for n, p in everything.items() if p.default is not p.empty and n not in fixed}
  for key, value in options.items():
    if key not in parameters and takes_any and key not in fixed:
      continue
    if key not in parameters:
      raise ValueError(f"{who} has no option {key!r}; it has {', '.join(parameters) or 'none'}")
    default = parameters[key].default
    kinds = int if default is None else (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
      wanted = "true or false" if isinstance(default, bool) else f"like {default!r}"
      raise ValueError(f"option {key} of {who} must be {wanted}, got {value!r}")
