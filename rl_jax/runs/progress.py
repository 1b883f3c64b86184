"""The live view of a run: a progress bar over a table of the last steps on a terminal, plain lines elsewhere."""

import math
from collections import deque
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

# (heading, metric, format); a column appears once its metric has been seen.
COLUMNS = (
  ("epoch", "epoch", ".2f"),
  ("nll", "nll", ".4f"),
  ("accuracy", "accuracy", ".3f"),
  ("margin", "margin", ".3f"),
  ("chosen", "reward_chosen", ".3f"),
  ("rejected", "reward_rejected", ".3f"),
  ("reward", "reward", ".3f"),
  ("std", "reward_std", ".3f"),
  ("solved", "solved", ".2f"),
  ("0-var", "zero_variance", ".2f"),
  ("length", "length", ".1f"),
  ("entropy", "entropy", ".3f"),
  ("KL ref", "kl_ref", ".4f"),
  ("KL rew", "kl_reward", ".4f"),
  ("KL coef", "kl_coef", ".4f"),
  ("KL upd", "kl_update", ".4f"),
  ("beta", "beta", ".3f"),
  ("expl", "explained_variance", ".2f"),
  ("clip-", "clip_low", ".3f"),
  ("clip+", "clip_high", ".3f"),
  ("grad", "grad_norm", ".2f"),
  ("draws", "draws", ".0f"),
  ("tok/s", "tokens_per_second", ".0f"),
  ("s/step", "seconds", ".1f"),
)
_ROWS = 12


class LiveTable:
  """Shows steps as they finish; a context manager."""

  def __init__(self, steps: int, *, first: int = 0, console: Console | None = None):
    self.console = console or Console()
    self._rows: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=_ROWS)
    self._bar = Progress(
      TextColumn("step"),
      BarColumn(),
      MofNCompleteColumn(),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=self.console,
    )
    self._task = self._bar.add_task("steps", total=steps, completed=first)
    self._live = Live(self._view(), console=self.console, auto_refresh=False)

  def __enter__(self) -> "LiveTable":
    if self.console.is_terminal:
      self._live.start()
    return self

  def __exit__(self, *_) -> None:
    if self.console.is_terminal:
      self._live.stop()

  def add(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds a finished step."""
    self._rows.append((step, metrics))
    self._bar.advance(self._task)
    if self.console.is_terminal:
      self._live.update(self._view(), refresh=True)
    else:
      cells = "  ".join(f"{heading} {_cell(metrics, name, form)}" for heading, name, form in _shown([metrics]))
      self.console.print(f"step {step}  {cells}  left {_left(self._bar)}", highlight=False, soft_wrap=True)

  def warn(self, message: str) -> None:
    """Prints a line above the table."""
    self.console.print(f"warning: {message}", style="yellow", highlight=False)

  def _view(self) -> Group:
    table = Table(box=None, pad_edge=False)
    shown = _shown([metrics for _, metrics in self._rows])
    for heading in ("step", *(heading for heading, _, _ in shown)):
      table.add_column(heading, justify="right")
    for step, metrics in self._rows:
      table.add_row(str(step), *(_cell(metrics, name, form) for _, name, form in shown))
    return Group(table, self._bar)


def _shown(rows: list[Mapping[str, float]]) -> list[tuple[str, str, str]]:
  return [column for column in COLUMNS if any(column[1] in metrics for metrics in rows)]


def _cell(metrics: Mapping[str, float], name: str, form: str) -> str:
  value = metrics.get(name, math.nan)
  return "-" if math.isnan(value) else format(value, form)


def _left(bar: Progress) -> str:
  seconds = bar.tasks[0].time_remaining
  return "?" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
