"""A run in a few lines and a picture, and as a page: `python -m rl_jax.analysis.report RUN_DIR [--html]`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_jax.analysis import changes, page, plots, run
from rl_jax.analysis.run import RunData, column, prompt_text
from rl_jax.errors import reason


def show(folder: str | Path, *, samples: int = 5, console: Console | None = None) -> None:
  """Prints the evaluation before and after, some completions, and where everything is; draws the curves.

  Raises:
    ValueError: If the folder holds no run that was evaluated.

  >>> show("no-such-folder")
  Traceback (most recent call last):
  ...
  ValueError: 'no-such-folder' holds no run: it has none of config.json, metrics.jsonl and evaluation.jsonl
  """
  console, data = console or Console(), run.read(folder)
  if not data.evaluations:
    raise ValueError(f"{str(folder)!r} holds no evaluation.jsonl: no finished run")
  (first, before), (last, after), steps = data.evaluated[0], data.evaluated[-1], data.metrics
  alone = len(data.evaluated) == 1
  for title, result in [("before", before)] + ([] if alone else [(f"after {last} steps", after)]):
    console.print(f"{title}: {result.describe()}", highlight=False, soft_wrap=True)
  if alone and steps:
    console.print(f"stopped after {len(steps)} steps, before its last evaluation", highlight=False)
  elif (table := _samples(data, first, last, samples)).row_count:
    console.print(table)
  if steps:
    minutes, peaks = sum(column(steps, "seconds")[1]) / 60, column(steps, "peak_gib")[1]
    memory = f"; peak memory {max(peaks):.1f} GiB" if peaks else ""
    console.print(f"{len(steps)} steps took {minutes:.1f} minutes{memory}", highlight=False)
  for finding in data.findings:
    console.print(f"warning: from step {finding.step} on, {finding.describe()}", style="yellow", highlight=False)
  try:
    console.print(f"curves: {plots.draw_run(data)}", highlight=False, soft_wrap=True)
  except ValueError as error:
    console.print(f"no curves: {error}", highlight=False)
  console.print(f"metrics, samples and checkpoints: {folder}", highlight=False, soft_wrap=True)
  if (Path(folder) / "model").is_dir():
    console.print(f"the model, which transformers loads: {Path(folder) / 'model'}", highlight=False, soft_wrap=True)


def _samples(data: RunData, first: int, last: int, count: int) -> Table:
  before, after = (data.answers_at(step)[:count] for step in (first, last))
  table = Table("prompt (its end)", "before", "reward", "after", "reward", title="held-out problems, greedy")
  for old, new in zip(before, after, strict=False):
    prompt = prompt_text(old)
    table.add_row(_cell(prompt[-40:].split("\n")[-1]), *_answer(old), *_answer(new))
  return table


def _answer(row: dict[str, Any]) -> tuple[Text, str]:
  return _cell(row["completion"][:60]), "-" if row.get("reward") is None else f"{row['reward']:.2f}"


def _cell(content: str) -> Text:
  """Shows text as it is: what looks like console markup in it is the model's own."""
  return Text(repr(content))


def write(folder: str | Path, *, tokens: bool = True, problems: Sequence[int] = (), count: int = 64) -> Path:
  """Writes `report.html`, a page that needs nothing else, and what it says of tokens as `tokens.json` too.

  What there is not, a model that was not saved or answers that nobody sampled, is said on the page.

  Args:
    folder: A run's.
    tokens: Whether both models are loaded, and compared token by token.
    problems: Held-out problems whose answers are told token by token, by their number; some by default.
    count: How many of the held-out prompts are read by both models.

  Returns:
    The page's path.

  Raises:
    ValueError: If the folder holds no run.
  """
  data = run.read(folder)
  found, missing = None, []
  if tokens:
    try:
      found = changes.measure(data, count=count, shown=problems)
    except Exception as error:  # whatever the models' files or the memory of this machine do
      missing.append(f"no comparison of tokens: {reason(error)}")
  (data.folder / "tokens.json").unlink(missing_ok=True)
  if found is not None:
    content = json.dumps(found, ensure_ascii=False, indent=1)
    (data.folder / "tokens.json").write_text(content, encoding="utf-8")
  path = data.folder / "report.html"
  path.write_text(page.render(data, found, missing), encoding="utf-8")
  return path


def main(arguments: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(prog="python -m rl_jax.analysis.report", description=__doc__)
  parser.add_argument("run_dir", metavar="RUN_DIR", help="a run's folder")
  parser.add_argument("--html", action="store_true", help="write report.html, a page with everything, to the folder")
  parser.add_argument("--no-tokens", action="store_true", help="leave out what loads the models")
  parser.add_argument("--problems", type=int, nargs="*", default=(), help="held-out problems to show token by token")
  parser.add_argument("--count", type=int, default=64, help="held-out prompts that both models read")
  given = parser.parse_args(arguments)
  try:
    if not given.html:
      return show(given.run_dir)
    path = write(given.run_dir, tokens=not given.no_tokens, problems=given.problems, count=given.count)
    print(f"report: {path}")
  except ValueError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main(sys.argv[1:])
