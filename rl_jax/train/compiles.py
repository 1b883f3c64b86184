"""Counts compiles, because a shape that changes every step costs more than anything else and shows nowhere."""

import functools
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable)


class CompileCounter:
  """Counts how often functions are traced, which is once a compile.

  >>> import jax
  >>> counter = CompileCounter()
  >>> double = jax.jit(counter.count(lambda x: 2 * x))
  >>> _ = double(1.0), double(2.0), double(3)
  >>> counter.total()
  2
  """

  def __init__(self):
    self._traces = 0

  def count(self, function: F) -> F:
    """Returns the function, counted; jit what comes back."""

    @functools.wraps(function)
    def counted(*args, **kwargs):
      self._traces += 1
      return function(*args, **kwargs)

    return counted  # type: ignore[return-value]

  def total(self) -> int:
    return self._traces
