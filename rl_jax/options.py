"""Settings by name for functions that are found by name, such as `load` of a task or of an environment."""

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any


def check(function: Callable[..., Any], options: Mapping[str, Any], who: str, *, fixed: Collection[str] = ()) -> None:
  """Raises ValueError if a function has no such argument, one whose default is of another type, or one that is missing.

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
  parameters = {n: p for n, p in everything.items() if p.kind != p.VAR_KEYWORD and n not in fixed}
  if missing := [name for name, p in parameters.items() if p.default is p.empty and name not in options]:
    raise ValueError(f"{who} needs the option {missing[0]!r}")
  for key, value in options.items():
    if key not in parameters and takes_any and key not in fixed:
      continue
    if key not in parameters:
      raise ValueError(f"{who} has no option {key!r}; it has {', '.join(parameters) or 'none'}")
    default = parameters[key].default
    if default is parameters[key].empty:
      continue
    if default is None:
      kinds = _kinds(function, key)
      if not isinstance(value, kinds):
        raise ValueError(f"option {key} of {who} must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")
      continue
    kinds = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
      wanted = "true or false" if isinstance(default, bool) else f"like {default!r}"
      raise ValueError(f"option {key} of {who} must be {wanted}, got {value!r}")


def _kinds(function: Callable[..., Any], name: str) -> tuple[type, ...]:
  """The types that an argument may have by its annotation, besides None; any where it says nothing."""
  hint = typing.get_type_hints(function).get(name, object)
  return tuple(k for k in typing.get_args(hint) or (hint,) if isinstance(k, type) and k is not type(None)) or (object,)
