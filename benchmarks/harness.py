"""Measuring: a row is one thing timed in one process, so that its peak memory is its own."""

import dataclasses
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from rl_jax.runs import resources


@dataclasses.dataclass(frozen=True)
class Row:
  """One measurement.

  Attributes:
    name: Model and batch.
    mode: What was run.
    compile_s: The first call less a median one.
    median_s: Of the calls after the first.
    runs: How many those were.
    peak_gib: Of the device where it tells, else of the process, up to the end of this mode.
    device: Kind and number.
    versions: Of the libraries that matter.
  """

  name: str
  mode: str
  compile_s: float
  median_s: float
  runs: int
  peak_gib: float
  device: str
  versions: str


def measure(name: str, mode: str, call: Callable[[], Any], *, runs: int) -> Row:
  """Times `call`, which must return what it computed."""
  seconds = []
  for _ in range(runs + 1):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  median = statistics.median(seconds[1:])
  return Row(name, mode, seconds[0] - median, median, runs, resources.peak_gib(), _device(), _versions())


def _device() -> str:
  return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _versions() -> str:
  return " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax"))


def emit(rows: list[Row]) -> None:
  """Prints rows as JSON lines, for the process that started this one."""
  for row in rows:
    print("ROW " + json.dumps(dataclasses.asdict(row)), flush=True)


def collect(module: str, cases: list[str]) -> list[Row]:
  """Runs `python -m module --case NAME` for each case in a process of its own and returns their rows.

  Raises:
    SystemExit: If a case fails, after showing what it printed.
  """
  rows = []
  for case in cases:
    print(f"running {case} ...", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", module, "--case", case], capture_output=True, text=True)
    if done.returncode:
      sys.exit(f"case {case} failed:\n{done.stdout}{done.stderr}")
    lines = [line.removeprefix("ROW ") for line in done.stdout.splitlines() if line.startswith("ROW ")]
    rows += [Row(**json.loads(line)) for line in lines]
  return rows


def show(rows: list[Row]) -> None:
  """Prints a table on the console."""
  table = Table("name", "mode", "median [s]", "compile [s]", "peak [GiB]", "runs")
  for row in rows:
    table.add_row(
      row.name, row.mode, f"{row.median_s:.3f}", f"{row.compile_s:.1f}", f"{row.peak_gib:.2f}", str(row.runs)
    )
  console = Console()
  console.print(table)
  console.print(f"{rows[0].device}; {rows[0].versions}", highlight=False)
