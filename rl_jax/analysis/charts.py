"""Charts as SVG, drawn here so that a page shows them without a script; a script adds numbers where one points."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from rl_jax.analysis.curves import Panel, Point

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 8, 26


class Scale(NamedTuple):
  """From numbers to places, linear."""

  low: float
  high: float
  start: float
  end: float

  def __call__(self, value: float) -> float:
    return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, *, count: int = 4) -> list[float]:
  """Returns about `count` round numbers between two.

  >>> ticks(0.0, 1.0), ticks(3.0, 47.0)
  ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [10.0, 20.0, 30.0, 40.0])
  """
  raw = (high - low) / count
  magnitude = 10.0 ** math.floor(math.log10(raw))
  step = next(magnitude * nice for nice in (1, 2, 5, 10) if magnitude * nice >= raw * 0.75)
  first = math.ceil(low / step - 1e-9)
  return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
  """Returns a number as an axis has it.

  >>> [label(value) for value in (0.0, 0.25, 1500.0, 2e-7)]
  ['0', '0.25', '1500', '2e-7']
  """
  text = f"{value:.4g}"
  mantissa, sign, exponent = text.partition("e")
  return f"{mantissa}e{int(exponent)}" if sign else text


def curves(panel: Panel, *, x_name: str = "step", names: Sequence[str] | None = None) -> Markup:
  """Draws curves, faint where they are raw, and evaluations as points with intervals.

  Args:
    panel: What is drawn.
    x_name: What the x axis counts.
    names: Labels of x = 0, 1, 2, ..., in place of numbers.
  """
  xs = sorted({x for curve in panel.curves for x in curve.steps} | {point.step for point in panel.points})
  values = [value for curve in panel.curves for value in curve.values]
  values += [value for point in panel.points for value in point[1:] if math.isfinite(value)]
  x, y = _scales(xs, values)
  drawn = [_axes(x, y, x_name, names)]
  series = []
  for place, curve in enumerate(panel.curves):
    pairs = list(zip(curve.steps, curve.values, strict=True))
    series.append({"name": curve.name, "of": {str(step): value for step, value in pairs}})
    if curve.smooth:
      drawn.append(_path(curve.steps, curve.values, x, y, f"raw c{place}"))
    else:
      drawn += [f'<circle class="dot c{place}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>' for a, b in pairs]
    drawn.append(_path(curve.steps, curve.smooth or curve.values, x, y, f"line c{place}"))
  drawn += [_point(point, x, y) for point in panel.points]
  if panel.points:
    series.append({"name": "evaluation", "of": {str(point.step): point.value for point in panel.points}})
  data = {"x": xs, "places": [round(x(value), 1) for value in xs], "names": names, "x_name": x_name, "series": series}
  legend = [curve.name for curve in panel.curves] if len(panel.curves) > 1 else []
  return _figure(panel.title, "".join(drawn), legend, points=bool(panel.points), data=data)


def bars(title: str, edges: Sequence[str], groups: Mapping[str, Sequence[float]]) -> Markup:
  """Draws bars side by side, such as how often each happened before and after.

  Args:
    title: What they are.
    edges: The name of each place.
    groups: Numbers by group, one a place.
  """
  highest = max((value for values in groups.values() for value in values), default=0) or 1
  x, y = Scale(0, len(edges), LEFT, WIDTH - RIGHT), Scale(0, highest, HEIGHT - BOTTOM, TOP)
  wide = (x(1) - x(0)) * 0.8 / len(groups)
  drawn = [_axes(x, y, "", None, x_ticks=False)]
  for place, values in enumerate(groups.values()):
    for at, value in enumerate(values):
      left = x(at + 0.1) + place * wide
      drawn.append(
        f'<rect class="bar c{place}" x="{left:.1f}" y="{y(value):.1f}" width="{wide:.1f}" '
        f'height="{max(y(0) - y(value), 0):.1f}"/>'
      )
  every = -(-len(edges) // 8)
  drawn += [
    f'<text class="tick" x="{x(at + 0.5):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(name)}</text>'
    for at, name in enumerate(edges)
    if at % every == 0
  ]
  series = [
    {"name": name, "of": {str(at): value for at, value in enumerate(values)}} for name, values in groups.items()
  ]
  places = [round(x(at + 0.5), 1) for at in range(len(edges))]
  data = {"x": list(range(len(edges))), "places": places, "names": list(edges), "x_name": "", "series": series}
  return _figure(title, "".join(drawn), list(groups) if len(groups) > 1 else [], points=False, data=data)


def scatter(title: str, x_name: str, groups: Mapping[str, Sequence[tuple[float, float]]], *, diagonal: bool) -> Markup:
  """Draws points of several groups, joined in order, and where asked the line of equal numbers."""
  points = [point for group in groups.values() for point in group]
  x, y = _scales([a for a, _ in points], [b for _, b in points])
  if diagonal:
    x, y = Scale(0, 1, LEFT, WIDTH - RIGHT), Scale(0, 1, HEIGHT - BOTTOM, TOP)
  drawn = [_axes(x, y, x_name, None)]
  if diagonal:
    drawn.append(f'<line class="axis" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}" stroke-dasharray="4 4"/>')
  for place, (name, group) in enumerate(groups.items()):
    drawn.append(_path([a for a, _ in group], [b for _, b in group], x, y, f"raw c{place}"))
    drawn += [
      f'<circle class="dot c{place}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="4">'
      f"<title>{html.escape(name)}: {label(a)}, {label(b)}</title></circle>"
      for a, b in group
    ]
  return _figure(title, "".join(drawn), list(groups) if len(groups) > 1 else [], points=False, data=None)


def _scales(xs: Sequence[float], ys: Sequence[float]) -> tuple[Scale, Scale]:
  def spread(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    wide = (high - low) or abs(high) or 1.0
    return (low - margin * wide, high + margin * wide) if high > low else (low - 0.5 * wide, high + 0.5 * wide)

  return Scale(*spread(xs, 0.02), LEFT, WIDTH - RIGHT), Scale(*spread(ys, 0.06), HEIGHT - BOTTOM, TOP)


def _axes(x: Scale, y: Scale, x_name: str, names: Sequence[str] | None, *, x_ticks: bool = True) -> str:
  drawn = []
  for value in ticks(y.low, y.high):
    drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
    drawn.append(f'<text class="tick" x="{LEFT - 5}" y="{y(value) + 3.5:.1f}" text-anchor="end">{label(value)}</text>')
  if x_ticks:
    marks = list(enumerate(names)) if names else [(value, label(value)) for value in ticks(x.low, x.high, count=5)]
    drawn += [
      f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - 11}" text-anchor="middle">{html.escape(str(name))}</text>'
      for value, name in marks
    ]
  drawn.append(
    f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">{html.escape(x_name)}</text>'
  )
  return "".join(drawn)


def _path(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale, kind: str) -> str:
  places = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys, strict=True))
  return f'<polyline class="{kind}" points="{places}"/>'


def _point(point: Point, x: Scale, y: Scale) -> str:
  bar = ""
  if math.isfinite(point.low):
    at = f"{x(point.step):.1f}"
    bar = f'<line class="interval" x1="{at}" x2="{at}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
  return f'{bar}<circle class="evaluated" cx="{x(point.step):.1f}" cy="{y(point.value):.1f}" r="3.5"/>'


def _figure(title: str, drawn: str, legend: Sequence[str], *, points: bool, data: dict | None) -> Markup:
  keys = [f'<span class="key c{place}">{html.escape(name)}</span>' for place, name in enumerate(legend)]
  keys += ['<span class="key evaluated">evaluation</span>'] if points else []
  told = json.dumps(data).replace("<", "\\u003c") if data is not None else ""
  script = f'<script type="application/json">{told}</script>' if told else ""
  return Markup(
    f'<figure class="chart"><figcaption>{html.escape(title)} {"".join(keys)}</figcaption>'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{drawn}'
    f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>{script}</figure>'
  )
