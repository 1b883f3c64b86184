"""Settings by name for functions that are found by name, such as `load` of a task or of an environment."""

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

Made = TypeVar("Made")


def call(function: Callable[..., Any], options: Mapping[str, Any], who: str, kind: type[Made], **fixed: Any) -> Made:
  """Returns what a function makes of options that are checked.

  Args:
    function: A function that is found by name.
    options: Its settings, as its user gives them.
    who: What it makes, for messages.
    kind: What it must return.
    **fixed: Its other arguments, which are no options.

  Raises:
    ValueError: As `check` does; if it does not take what is fixed, or returns something else.

  >>> call(lambda *, digits: digits + 1, {"digits": 3}, "task 'addition'", int)
  4
  >>> call(lambda *, digits: None, {"digits": 3}, "task 'addition'", int)
  Traceback (most recent call last):
  ...
  ValueError: task 'addition' must return a builtins.int, got NoneType
  """
  check(function, options, who, fixed=fixed)
  parameters, takes_any = _parameters(function)
  if not takes_any and (unknown := [key for key in fixed if key not in parameters]):
    raise ValueError(f"{who} must take {unknown[0]}: the run sets it")
  made = function(**fixed, **options)
  if not isinstance(made, kind):
    raise ValueError(f"{who} must return a {kind.__module__}.{kind.__name__}, got {type(made).__name__}")
  return made


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
  everything, takes_any = _parameters(function)
  parameters = {name: parameter for name, parameter in everything.items() if name not in fixed}
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


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
  """Arguments by name, and whether a function takes any others."""
  everything = inspect.signature(function).parameters
  named = {name: parameter for name, parameter in everything.items() if parameter.kind != parameter.VAR_KEYWORD}
  return named, len(named) < len(everything)


def _kinds(function: Callable[..., Any], name: str) -> tuple[type, ...]:
  """The types that an argument may have by its annotation, besides None; any where it says nothing."""
  hint = typing.get_type_hints(function).get(name, object)
  return tuple(k for k in typing.get_args(hint) or (hint,) if isinstance(k, type) and k is not type(None)) or (object,)
