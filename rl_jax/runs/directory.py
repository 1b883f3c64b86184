"""What a run leaves on disk: its configuration, metrics, samples and evaluations, as JSON, and for trackers."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rl_jax.runs import provenance, tracking
from rl_jax.runs.results import Result

# What may change when a run is resumed.
_FREE = frozenset({"run_dir", "resume", "steps", "checkpoint_every", "evaluations", "snapshots", "wandb", "data"})
_LOCK = ".lock"


class RunDirectory:
  """One run's folder; a context manager.

  config.json   provenance.json   metrics.jsonl   samples.jsonl   evaluation.jsonl   evaluation_samples.jsonl
  tensorboard/   checkpoints/   snapshots/   model/   curves.png   report.html
  """

  def __init__(
    self, folder: str | Path, config: Mapping[str, Any], *, resume: bool, fixed: Iterable[str] = (), wandb: str = ""
  ):
    """Checks that the folder is free, or holds the same run. A run that never began counts as none.

    Entering the context makes the folder, saves the configuration, and locks the folder against other processes.

    Args:
      folder: The folder, made where it does not exist.
      config: JSON values, saved, and compared on resuming; how long, where and how closely watched may differ, and
        where the data lies, whose fingerprint may not.
      resume: Whether a run that is there goes on. Where there is none, it starts.
      fixed: Those of the free ones that may not differ, such as `steps` where the learning rate falls over them.
      wandb: A project of Weights & Biases that is written to as well; empty for none.

    Raises:
      ValueError: If the folder holds another run or other files, or one with more steps; nothing is changed then.
    """
    check_free(folder, resume=resume)
    self.folder = Path(folder)
    self.config = dict(config)
    path = self.folder / "config.json"
    if path.exists() and _has_begun(self.folder):
      free = _FREE | {"task"} if config.get("data_fingerprint") else _FREE  # a file of rows may lie elsewhere
      _check_same(_parse_config(path), json.loads(json.dumps(config)), self.folder, free - set(fixed))
      _check_steps(self.folder, config.get("steps"))
    if wandb:
      tracking.check_wandb()
    self._wandb = wandb
    self._trackers: list[tracking.Tracker] | None = None
    self._lock = FileLock(self.folder / _LOCK)

  def __enter__(self) -> "RunDirectory":
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      self._lock.acquire(timeout=0)
      _replace(self.folder / "config.json", json.dumps(self.config, indent=2) + "\n")
      starts = [*read_provenance(self.folder), provenance.describe()]
      _replace(self.folder / "provenance.json", json.dumps(starts, indent=2) + "\n")
    except Timeout:
      raise ValueError(f"run directory {str(self.folder)!r} is in use by another process") from None
    except OSError as error:
      raise ValueError(f"run directory {str(self.folder)!r} cannot be written ({error.strerror})") from None
    return self

  def __exit__(self, *_) -> None:
    for tracker in self._trackers or ():
      tracker.close()
    self._lock.release()

  def write_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends one line to metrics.jsonl."""
    self._append("metrics.jsonl", [{"step": step, **metrics}])
    for tracker in self._seen_by(step):
      tracker.scalars(step, {name: value for name, value in metrics.items() if math.isfinite(value)})

  def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
    """Appends completions with their prompts and rewards, or episodes, to samples.jsonl."""
    self._append("samples.jsonl", [{"step": step, **sample} for sample in samples])
    for tracker in self._seen_by(step):
      tracker.histograms(step, tracking.distributions(samples))
      tracker.samples(step, "samples", tracking.shown(samples))

  def write_evaluation(self, step: int, evaluation: Result) -> None:
    """Appends the completions to evaluation_samples.jsonl, and then the result to evaluation.jsonl."""
    self._append("evaluation_samples.jsonl", [{"step": step, **sample} for sample in evaluation.samples])
    result = {name: value for name, value in evaluation._asdict().items() if name != "samples"}
    self._append("evaluation.jsonl", [{"step": step, **result}])
    for tracker in self._seen_by(step):
      tracker.scalars(step, {f"evaluation/{name}": value for name, value in evaluation.numbers().items()})
      tracker.samples(step, "evaluation/samples", tracking.shown(evaluation.samples))

  def has_evaluation(self, step: int) -> bool:
    """Returns whether the policy at `step` was evaluated."""
    return any(row["step"] == step for row in read_lines(self.folder, "evaluation.jsonl"))

  def set_aside(self) -> bool:
    """Renames the logs of a run that starts again to `*.jsonl.old`; returns whether there were any."""
    logs = list(self.folder.glob("*.jsonl"))
    for path in logs:
      os.replace(path, path.with_suffix(".jsonl.old"))
    return bool(logs)

  def rewind(self, step: int) -> None:
    """Drops lines written after `step`, and a last one that a killed run left unfinished."""
    for path in self.folder.glob("*.jsonl"):
      kept = [line for line in _lines(path, errors="replace") if _step(line) <= step]  # a kill may cut a character
      _replace(path, "".join(line + "\n" for line in kept))
    path = self.folder / "evaluation_samples.jsonl"
    if path.exists():  # of an evaluation that was cut off before its result, which will be made again
      whole = {row["step"] for row in read_lines(self.folder, "evaluation.jsonl")}
      _replace(path, "".join(line + "\n" for line in _lines(path) if _step(line) in whole))

  def _seen_by(self, step: int) -> list[tracking.Tracker]:
    if self._trackers is None:
      self._trackers = tracking.open_trackers(self.folder, self.config, first=step, wandb=self._wandb)
    return self._trackers

  def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows, with null for NaN and infinities, which JSON does not have; no file where there are none."""
    lines = "".join(json.dumps(_jsonable(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    if lines:
      with (self.folder / name).open("a", encoding="utf-8") as file:
        file.write(lines)


def check_free(folder: str | Path, *, resume: bool) -> None:
  """Raises ValueError if a folder holds other files, or a run that is not to be resumed.

  >>> check_free("no-such-folder", resume=False)
  """
  if not str(folder):
    raise ValueError("run directory must have a name, got ''")
  path = Path(folder)
  if path.exists() and not path.is_dir():
    raise ValueError(f"run directory {str(folder)!r} is a file")
  if (path / "config.json").exists():
    if _has_begun(path) and not resume:
      raise ValueError(
        f"run directory {str(folder)!r} holds another run; choose a new --run-dir, or go on with it: --resume {folder}"
      )
  elif path.exists() and any(file.name != _LOCK for file in path.iterdir()):
    raise ValueError(f"run directory {str(folder)!r} is not empty and holds no run; choose a new --run-dir")


def read_lines(folder: str | Path, name: str) -> list[dict[str, Any]]:
  """Returns the rows of one of a run's JSONL files; none where there is no such file.

  >>> read_lines("no-such-folder", "metrics.jsonl")
  []
  """
  path = Path(folder) / name
  return [json.loads(line) for line in _lines(path)] if path.exists() else []


def _lines(path: Path, errors: str = "strict") -> list[str]:
  """Splits at line feeds alone: a completion may hold any of the other characters that `splitlines` splits at."""
  return [line for line in path.read_text(encoding="utf-8", errors=errors).split("\n") if line]


def _replace(path: Path, content: str) -> None:
  """Writes a file so that a kill at any instant leaves the old content or the new."""
  temporary = path.with_suffix(".tmp")
  temporary.write_text(content, encoding="utf-8")
  os.replace(temporary, path)


def _jsonable(row: Mapping[str, Any]) -> dict[str, Any]:
  return {key: _jsonable_value(value) for key, value in row.items()}


def _jsonable_value(value: Any) -> Any:
  if isinstance(value, Mapping):
    return _jsonable(value)
  return None if isinstance(value, float) and not math.isfinite(value) else value


def read_config(folder: str | Path) -> dict[str, Any]:
  """Returns the settings that a run was started with; none where there is no such file.

  >>> read_config("no-such-folder")
  {}
  """
  path = Path(folder) / "config.json"
  return _parse_config(path) if path.exists() else {}


def read_provenance(folder: str | Path) -> list[dict[str, Any]]:
  """Returns what the run was started with, once for each start; none where there is no such file, or it is damaged.

  >>> read_provenance("no-such-folder")
  []
  """
  path = Path(folder) / "provenance.json"
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, json.JSONDecodeError):
    return []


def _parse_config(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise ValueError(f"{str(path)!r} is not JSON ({error.msg}); the run in this folder cannot be resumed") from None


def _has_begun(folder: Path) -> bool:
  """A run that ended before its first evaluation or step left nothing that a new one could harm."""
  return any((folder / name).exists() for name in ("evaluation.jsonl", "metrics.jsonl", "results", "results.npz"))


def _step(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except json.JSONDecodeError:
    return math.inf


def _check_same(saved: Mapping[str, Any], config: Mapping[str, Any], folder: Path, free: frozenset[str]) -> None:
  changed = [
    f"{key} was {saved.get(key)!r}, is {config.get(key)!r}"
    for key in sorted(set(saved) | set(config))
    if key not in free and saved.get(key) != config.get(key)
  ]
  if changed:
    policy = folder / "model" / "config.json"
    starts = policy.is_file() and "SequenceClassification" not in policy.read_text(encoding="utf-8")
    other = f"; a new run may start from its model: --model {folder}" if starts else ""
    raise ValueError(f"run directory {str(folder)!r} holds a run with other settings: {'; '.join(changed)}{other}")


def _check_steps(folder: Path, steps: int | None) -> None:
  path = folder / "metrics.jsonl"
  made = [_step(line) for line in _lines(path, errors="replace")] if path.exists() else []
  done = max((step for step in made if step < math.inf), default=0)  # a kill may have cut a line
  if steps is not None and steps < done:
    raise ValueError(f"steps must be at least {done}, which the run in {str(folder)!r} has made; got {steps}")
