"""Several variants of a compiled run, each over many seeds and hyperparameters in one program, saved as they finish."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from rl_jax.runs import resources
from rl_jax.train.whole_run import History, Run


class Variant(NamedTuple):
  """What is compared with others.

  Attributes:
    name: Name in tables and file names.
    build: `hyperparameters -> Run`; they come as traced scalars.
    grid: `{name: [n]}`, the values of each hyperparameter at n points, which are trained side by side; empty for a
      variant without any.
  """

  name: str
  build: Callable[[Mapping[str, Any]], Run]
  grid: Mapping[str, Sequence[float]] = {}

  @property
  def names(self) -> list[str]:
    """Names of its points, such as "dapo clip_high=0.28"."""
    points = zip(*self.grid.values(), strict=True) if self.grid else [()]
    settings = (zip(self.grid, point, strict=True) for point in points)
    return [" ".join([self.name, *(f"{name}={value:g}" for name, value in each)]) for each in settings]


def train(variants: Sequence[Variant], folder: Path, *, seeds: int, seed: int = 0) -> None:
  """Trains every variant that has no results in the folder yet, and saves `results/NAME.npz` for each of its points.

  All variants must begin in the same way (model, warm-up): the parameters are computed once, so that each seed's runs
  differ by the variant alone. What a variant keeps besides them (optimizer, coefficients) is its own.

  Args:
    variants: Variants with different names.
    folder: Folder of the results.
    seeds: Runs of each point.
    seed: Seed from which those of the runs are drawn.
  """
  results = folder / "results"
  results.mkdir(parents=True, exist_ok=True)
  missing = [v for v in variants if not all((results / f"{name}.npz").exists() for name in v.names)]
  if not missing:
    return
  keys = jax.random.split(jax.random.key(seed), seeds)
  with Progress() as progress:
    bar = progress.add_task("warm-up", total=None)
    state, first = jax.jit(jax.vmap(_at_first_point(missing[0]).start))(keys)
    beginning = jax.block_until_ready((state.policy.params, state.key))
    progress.remove_task(bar)
    for variant in missing:
      began = time.perf_counter()
      history = _train_one(variant, beginning, seeds, progress)
      _save(results, variant, first, history, seeds)
      progress.console.print(f"{variant.name}: done after {time.perf_counter() - began:.0f} s", highlight=False)


def _at_first_point(variant: Variant) -> Run:
  return variant.build({name: values[0] for name, values in variant.grid.items()})


def _train_one(variant: Variant, beginning: Any, seeds: int, progress: Progress) -> History:
  """Returns `{name: [points * seeds, time]}`; says what compiling took, and what memory is needed, before it starts."""
  points = len(variant.names)
  grid = {name: jnp.repeat(jnp.asarray(values, jnp.float32), seeds) for name, values in variant.grid.items()}
  repeated = jax.tree.map(lambda x: jnp.concatenate([x] * points), beginning)
  state = jax.jit(jax.vmap(lambda begun, grid: variant.build(grid).create(*begun)))(repeated, grid)
  chunks = _at_first_point(variant).chunks
  bar = progress.add_task(f"{variant.name} (compiling)", total=chunks)
  began = time.perf_counter()
  advance = jax.jit(jax.vmap(lambda state, grid: variant.build(grid).advance(state)), donate_argnums=0)
  program = advance.lower(state, grid).compile()
  note = f"compiled in {time.perf_counter() - began:.0f} s, needs {resources.needed_gib(program):.2f} GiB"
  progress.console.print(f"{variant.name}: {note}", highlight=False)
  progress.update(bar, description=variant.name)
  parts = []
  for _ in range(chunks):
    state, history = program(state, grid)
    parts.append(jax.device_get(history))
    progress.advance(bar)
  progress.remove_task(bar)
  train = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *(part.train for part in parts))
  evaluation = jax.tree.map(lambda *xs: np.stack(xs, axis=1), *(part.evaluation for part in parts))
  return History(train, evaluation)


def _save(results: Path, variant: Variant, first: Mapping[str, Any], history: History, seeds: int) -> None:
  for point, name in enumerate(variant.names):
    rows = slice(point * seeds, (point + 1) * seeds)
    arrays: dict[str, Any] = {f"train/{key}": values[rows] for key, values in history.train.items()}
    for key, values in history.evaluation.items():
      arrays[f"evaluation/{key}"] = np.concatenate([np.asarray(first[key])[:, None], values[rows]], axis=1)
    temporary = results / f"{name}.tmp"
    with temporary.open("wb") as file:
      np.savez(file, **arrays)
    os.replace(temporary, results / f"{name}.npz")


def load(folder: Path) -> dict[str, dict[str, np.ndarray]]:
  """Returns `{name: {"evaluation/reward": [seeds, 1 + chunks], "train/loss": [seeds, steps], ...}}` of a folder.

  Raises:
    ValueError: If there are no results.

  >>> load(Path("no-such-folder"))
  Traceback (most recent call last):
  ...
  ValueError: 'no-such-folder' holds no results
  """
  files = sorted((folder / "results").glob("*.npz"), key=lambda file: file.stat().st_mtime_ns)
  if not files:
    raise ValueError(f"{str(folder)!r} holds no results")
  loaded = {}
  for file in files:
    with np.load(file, allow_pickle=False) as arrays:
      loaded[file.stem] = dict(arrays)
  return loaded
