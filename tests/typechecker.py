"""The checker of annotations that tests run under: shapes and types of arguments and results, at every call."""

import functools
import types
import typing

import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, beartype

_CONFIGURED = beartype(conf=BeartypeConf(is_pep484_tower=True))  # where a float is wanted, an int is as good


def _as_jax(x):
  return jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "biuf" else x


def _any_choice(hint):
  """The hint with `Literal["a", "b"]` as `str`: that another choice is refused, and how, is for the function itself."""
  if typing.get_origin(hint) is typing.Literal:
    return typing.Union[tuple(type(choice) for choice in typing.get_args(hint))]  # noqa: UP007
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return typing.Union[tuple(map(_any_choice, typing.get_args(hint)))]  # noqa: UP007
  return hint


def check(function):
  """Checks what a function is called with; as everywhere in JAX, an array of NumPy's is as good as one of JAX's."""
  function.__annotations__ = {name: _any_choice(hint) for name, hint in function.__annotations__.items()}
  checked = _CONFIGURED(function)
  if any(np.ndarray in (hint, *typing.get_args(hint)) for hint in function.__annotations__.values()):
    return checked  # NumPy's own

  @functools.wraps(function)
  def lenient(*args, **kwargs):
    return checked(*map(_as_jax, args), **{name: _as_jax(value) for name, value in kwargs.items()})

  return lenient
