"""Matplotlib, which is optional, without a display."""

from typing import Any


def pyplot() -> Any:
  """Returns `matplotlib.pyplot`, drawing to files.

  Raises:
    ValueError: If matplotlib is not installed.

  >>> pyplot().get_backend().lower()
  'agg'
  """
  try:
    import matplotlib
  except ImportError:
    raise ValueError("plots need matplotlib: pip install 'rl-jax[plots]'") from None
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  return plt
