"""Settings of an experiment, which are a frozen dataclass: checks, and back to a command line."""

import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import tyro


def run_script(
  main: Callable[[Any], Any],
  config: type,
  *,
  module: str,
  description: str | None,
  default: Any = None,
  kept: str = "finished checkpoints are kept, and --resume goes on from the last one",
) -> None:
  """Runs `main` with settings from the command line; a ValueError and Ctrl-C end the process with one line.

  Args:
    main: Takes the settings.
    config: Their dataclass, whose fields become flags.
    module: Such as "experiments.grpo".
    description: What `--help` begins with.
    default: A configuration whose values stand for those that are not given; by default the dataclass's own.
    kept: What Ctrl-C leaves behind.
  """
  try:
    main(tyro.cli(config, default=default, prog=f"python -m {module}", description=description))
  except ValueError as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    sys.exit(f"interrupted; {kept}")


def require_at_least(config: Any, least: float, names: Sequence[str]) -> None:
  """Raises ValueError if one of the named settings is below `least`, or not finite.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Config:
  ...   steps: int = 0
  >>> require_at_least(Config(), 1, ["steps"])
  Traceback (most recent call last):
  ...
  ValueError: steps must be at least 1 and finite, got 0
  """
  for name in names:
    if not least <= getattr(config, name) < math.inf:
      raise ValueError(f"{name} must be at least {least} and finite, got {getattr(config, name)}")


def require_positive(config: Any, names: Sequence[str]) -> None:
  """Raises ValueError if one of the named settings is not above 0, or not finite.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Config:
  ...   temperature: float = math.nan
  >>> require_positive(Config(), ["temperature"])
  Traceback (most recent call last):
  ...
  ValueError: temperature must be positive and finite, got nan
  """
  for name in names:
    if not 0 < getattr(config, name) < math.inf:
      raise ValueError(f"{name} must be positive and finite, got {getattr(config, name)}")


def require_one_of(config: Any, choices: Mapping[str, Sequence[str]]) -> None:
  """Raises ValueError if a setting is none of its choices.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Config:
  ...   method: str = "foo"
  >>> require_one_of(Config(), {"method": ("imitate", "prefer")})
  Traceback (most recent call last):
  ...
  ValueError: method must be one of imitate, prefer, got 'foo'
  """
  for name, among in choices.items():
    if getattr(config, name) not in among:
      raise ValueError(f"{name} must be one of {', '.join(among)}, got {getattr(config, name)!r}")


def refuse(config: Any, names: Iterable[str], who: str) -> None:
  """Raises ValueError if one of the named settings, of which `who` makes no use, differs from its default.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Config:
  ...   lam: float = 0.95
  ...   gamma: float = 1.0
  >>> refuse(Config(gamma=0.9), ["gamma", "lam"], "objective 'rloo'")
  Traceback (most recent call last):
  ...
  ValueError: objective 'rloo' makes no use of gamma
  """
  defaults = {field.name: field.default for field in dataclasses.fields(config)}
  if given := sorted(name for name in names if getattr(config, name) != defaults[name]):
    raise ValueError(f"{who} makes no use of {', '.join(given)}")


def check_adapters(config: Any) -> None:
  """Raises ValueError if `lora_rank` and `lora_alpha` make no adapters, or only one of them is given."""
  require_at_least(config, 0, ("lora_rank",))
  require_positive(config, ("lora_alpha",))
  if not config.lora_rank:
    refuse(config, ("lora_alpha",), "lora_rank 0")


def check_parts(rows: int, microbatches: int, name: str) -> None:
  """Raises ValueError if a batch's rows do not divide into micro-batches and over the devices.

  >>> check_parts(jax.device_count() * 4, 2, "pairs")
  """
  parts = microbatches * jax.device_count()
  if rows % parts:
    raise ValueError(f"{name} must be a multiple of microbatches * devices = {parts}, got {rows}")


def exit_if_stopped(module: str, config: Any, done: int) -> None:
  """Ends the process with the command that goes on, if fewer than the configuration's `steps` were done.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Config:
  ...   steps: int = 8
  ...   resume: bool = False
  >>> exit_if_stopped("my.module", Config(), 8)
  """
  if done < config.steps:
    resume = command_line(module, config, resume=True)
    sys.exit(f"stopped after {done} of {config.steps} steps; go on with\n  {resume}")


def command_line(module: str, config: Any, **changes: Any) -> str:
  """Returns the command that runs a module with a configuration: what differs from its defaults.

  Args:
    module: Such as "experiments.grpo".
    config: A dataclass whose fields tyro has made flags of.
    **changes: Fields to replace first.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Config:
  ...   steps: int = 8
  ...   stop: tuple[str, ...] = ()
  ...   resume: bool = False
  >>> command_line("my.module", Config(stop=("a", "b c")), resume=True).partition(" -m ")[2]
  "my.module --stop a 'b c' --resume"
  """
  config = dataclasses.replace(config, **changes)
  words = [sys.executable, "-m", module]
  for field in dataclasses.fields(config):
    value, flag = getattr(config, field.name), field.name.replace("_", "-")
    if value == field.default:
      continue
    if isinstance(value, bool):
      words.append(f"--{flag}" if value else f"--no-{flag}")
    else:
      words += [f"--{flag}", *(str(item) for item in (value if isinstance(value, tuple) else (value,)))]
  return shlex.join(words)
