"""Curves of a run as a picture: `python -m rl_jax.analysis.plots RUN_DIR`."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from rl_jax.analysis import curves
from rl_jax.analysis.figures import pyplot
from rl_jax.analysis.run import RunData, read


def draw(folder: str | Path) -> Path:
  """Draws `curves.png` into a run's folder and returns its path.

  Raises:
    ValueError: If matplotlib is not installed, or the run has no metrics yet.

  >>> draw("no-such-folder")
  Traceback (most recent call last):
  ...
  ValueError: 'no-such-folder' holds no run: it has none of config.json, metrics.jsonl and evaluation.jsonl
  """
  return draw_run(read(folder))


def draw_run(run: RunData) -> Path:
  """As `draw`, of a run that was read."""
  if not run.metrics:
    raise ValueError(f"{str(run.folder)!r} holds no metrics.jsonl with steps")
  plt, panels = pyplot(), curves.panels(run)
  columns = 3
  height = -(-len(panels) // columns)
  figure, axes = plt.subplots(height, columns, figsize=(4 * columns, 2.6 * height), squeeze=False)
  for axis, panel in zip(axes.flat, panels, strict=False):
    _draw_panel(axis, panel)
  for axis in list(axes.flat)[len(panels) :]:
    axis.set_visible(False)
  figure.suptitle(run.folder.name)
  figure.tight_layout()
  target = run.folder / "curves.png"
  figure.savefig(target, dpi=120)
  figure.clear()
  plt.close(figure)
  return target


def _draw_panel(axis: Any, panel: curves.Panel) -> None:
  """Smoothed lines over faint raw ones, and evaluations as points with intervals."""
  for place, curve in enumerate(panel.curves):
    color = f"C{place}"
    axis.plot(curve.steps, curve.values, color=color, alpha=0.25, linewidth=0.9)
    axis.plot(curve.steps, curve.smooth, color=color, linewidth=1.6, label=curve.name)
  if panel.points:
    steps, values, lows, highs = np.array(panel.points, float).T
    errors = np.maximum(np.nan_to_num(np.stack([values - lows, highs - values])), 0)
    axis.errorbar(steps, values, errors, fmt="o", color="black", markersize=4, capsize=3, label="evaluation", zorder=3)
  axis.set_title(panel.title, fontsize=10)
  axis.set_xlabel("step", fontsize=8)
  axis.xaxis.get_major_locator().set_params(integer=True)
  axis.ticklabel_format(axis="y", useOffset=False)
  axis.grid(alpha=0.3)
  if len(panel.curves) + bool(panel.points) > 1:  # a panel of one metric says in its title which
    axis.legend(fontsize=8)


if __name__ == "__main__":
  if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python -m rl_jax.analysis.plots RUN_DIR")
  try:
    print(draw(sys.argv[1]))
  except ValueError as error:
    sys.exit(f"error: {error}")
