"""Where a run is seen besides its own files: TensorBoard, where it is installed, and Weights & Biases, where asked."""

import importlib
import importlib.util
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rl_jax.errors import reason

SHOWN = 8  # completions of a step


class Tracker(Protocol):
  """What takes a run's numbers, texts and distributions as they come."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Takes numbers by name."""

  def histograms(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
    """Takes many numbers by name, of which the distribution is of interest."""

  def samples(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Takes rows with `prompt`, `completion` and `reward`."""

  def close(self) -> None:
    """Writes what is left."""


class TensorBoard:
  """A writer whose file tells TensorBoard to forget what an interrupted run wrote from step `first` on."""

  def __init__(self, folder: Path, first: int):
    self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder), purge_step=first)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def histograms(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
    for name, numbers in values.items():
      self._writer.add_histogram(name, list(numbers), step)

  def samples(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    shown = [
      f"{row['prompt']}\n--- reward {row['reward']}\n{row['completion']}".replace("\n", "\n    ") for row in rows
    ]
    self._writer.add_text(name, "\n\n---\n\n".join(f"    {text}" for text in shown), step)  # Markdown: as it is

  def close(self) -> None:
    self._writer.close()


class WeightsAndBiases:
  """A run of a project; resumed runs go on in it. WANDB_MODE=offline keeps it on this machine."""

  def __init__(self, project: str, folder: Path, config: Mapping[str, Any]):
    check_wandb()
    self._wandb: Any = importlib.import_module("wandb")
    identity = folder / "wandb_id"
    if not identity.exists():
      identity.write_text(uuid.uuid4().hex[:12])
    self._run = self._wandb.init(
      project=project,
      id=identity.read_text(),
      name=folder.name,
      dir=str(folder),
      config=dict(config),
      resume="allow",
      settings=self._wandb.Settings(console="off"),
    )
    # Its own counter only grows; a run that goes on from a checkpoint tells some steps again.
    self._run.define_metric("*", step_metric="step")

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log({"step": step, **values})

  def histograms(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
    self._run.log({"step": step} | {name: self._wandb.Histogram(list(numbers)) for name, numbers in values.items()})

  def samples(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = ["prompt", "completion", "reward"]
    data = [[str(row["prompt"]), row["completion"], row["reward"]] for row in rows]
    self._run.log({"step": step, name: self._wandb.Table(columns=columns, data=data)})

  def close(self) -> None:
    self._run.finish()


def check_wandb() -> None:
  """Raises ValueError if Weights & Biases is not installed, or nobody is logged in to it."""
  try:
    wandb: Any = importlib.import_module("wandb")
  except ImportError:
    raise ValueError("wandb needs the package wandb: pip install 'rl-jax[wandb]'") from None
  if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
    return
  try:
    known = wandb.login(prompt=False)
  except Exception as error:  # of its own, or of the network
    raise ValueError(f"wandb cannot log in ({reason(error)}); WANDB_MODE=offline keeps a run here") from None
  if not known:
    raise ValueError("wandb has no API key: run wandb login, or set WANDB_API_KEY or WANDB_MODE=offline")


def open_trackers(folder: Path, config: Mapping[str, Any], *, first: int, wandb: str = "") -> list[Tracker]:
  """Returns those that a run writes to.

  Args:
    folder: The run's.
    config: Its settings.
    first: The first step that is written.
    wandb: A project of Weights & Biases; empty for none.

  Raises:
    ValueError: If Weights & Biases is asked for and not installed.
  """
  trackers: list[Tracker] = []
  if importlib.util.find_spec("tensorboardX") is not None:
    trackers.append(TensorBoard(folder / "tensorboard", first))
  if wandb:
    trackers.append(WeightsAndBiases(wandb, folder, config))
  return trackers


def shown(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Returns the first rows that are completions of prompts with rewards.

  >>> shown([{"prompt": "1", "completion": "2", "reward": 0.5}, {"length": 3, "reward": 0.5}])
  [{'prompt': '1', 'completion': '2', 'reward': 0.5}]
  """
  return [row for row in rows if {"prompt", "completion", "reward"} <= row.keys()][:SHOWN]


def distributions(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
  """Returns the rewards and lengths of completions or episodes, as far as rows have them.

  >>> distributions([{"reward": 0.5, "tokens": 3}, {"reward": float("nan"), "tokens": 4}])
  {'distribution/reward': [0.5], 'distribution/length': [3.0, 4.0]}
  """
  found = {}
  for name, key in (("reward", "reward"), ("length", "tokens"), ("length", "length")):
    numbers = [float(row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    if numbers:
      found[f"distribution/{name}"] = numbers
  return found
