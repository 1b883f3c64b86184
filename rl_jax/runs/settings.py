"""Settings of an experiment, which are a frozen dataclass: from a command line, checks, and back to a command line."""

import argparse
import dataclasses
import inspect
import math
import os
import re
import shlex
import signal
import sys
import time
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from rl_jax.runs.directory import read_config

# What TRL and verl call a setting, and what it is called here, in one script or another; docs/from_trl.md says how they
# differ.
ELSEWHERE = {
  "num_generations": "group_size",
  "rollout_n": "group_size",
  "max_completion_length": "max_new_tokens",
  "max_response_length": "max_new_tokens",
  "max_prompt_length": "max_prompt_tokens",
  "max_length": "max_tokens",
  "max_seq_length": "max_tokens",
  "per_device_train_batch_size": "num_prompts num_pairs num_rankings num_rows",
  "train_batch_size": "num_prompts num_pairs num_rankings num_rows",
  "gradient_accumulation_steps": "microbatches",
  "num_iterations": "epochs",
  "ppo_epochs": "epochs",
  "num_ppo_epochs": "epochs",
  "num_mini_batches": "minibatches",
  "max_steps": "steps",
  "save_steps": "checkpoint_every",
  "eval_steps": "evaluations",
  "beta": "kl_coef",
  "epsilon": "clip_low",
  "epsilon_high": "clip_high",
  "cliprange": "clip_low",
  "clip_ratio_low": "clip_low",
  "clip_ratio_high": "clip_high",
  "kl_loss_coef": "kl_coef",
  "mask_truncated_completions": "mask_truncated",
  "reward_funcs": "rewards",
  "loss_type": "objective loss",
  "adv_estimator": "objective",
  "model_name_or_path": "model",
  "dataset_name": "task data",
  "output_dir": "run_dir",
  "resume_from_checkpoint": "resume",
  "lr": "learning_rate",
  "vf_coef": "value_coef",
  "cliprange_value": "value_clip",
  "gradient_checkpointing": "remat",
  "lora_r": "lora_rank",
  "report_to": "wandb",
  "logger": "wandb",
  "steps_per_generation": "minibatches",
  "ppo_mini_batch_size": "minibatches",
  "ppo_micro_batch_size": "microbatches",
  "loss_agg_mode": "objective",
  "enable_gradient_checkpointing": "remat",
  "save_freq": "checkpoint_every",
  "test_freq": "evaluations",
  "default_local_dir": "run_dir",
  "resume_mode": "resume",
  "n": "group_size",
}


def run_script(
  main: Callable[[Any], Any], config: type, *, module: str, description: str | None, default: Any = None, kept: str = ""
) -> None:
  """Runs `main` with settings from the command line; a ValueError and Ctrl-C end the process with one line.

  Args:
    main: Takes the settings.
    config: Dataclass of the settings, whose fields become flags.
    module: The script's module, such as "experiments.grpo".
    description: What `--help` begins with.
    default: A configuration whose values stand for those that are not given; by default the dataclass's own.
    kept: What Ctrl-C leaves behind; by default what there is of checkpoints.
  """
  signal.signal(signal.SIGINT, signal.default_int_handler)
  settings, began = None, time.time()
  try:
    title = module.rpartition(".")[2]
    settings = parse(config, default, title=title, prog=f"python -m {module}", description=description)
    main(settings)
  except ValueError as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    print(f"interrupted; {kept or _left(module, settings, began)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # all is closed by now; threads that still compile would crash on the interpreter's way out


def _left(module: str, config: Any, began: float) -> str:
  """What an interrupted run, which began at that time, can go on from: another one may lie in its folder."""
  folder = Path(getattr(config, "run_dir", "nowhere")) / "checkpoints"
  saved = [path for path in folder.glob("*") if path.name.isdigit()]
  if not any(getattr(config, "resume", False) or path.stat().st_mtime >= began for path in saved):
    return "there is no checkpoint yet to go on from: the same command starts again"
  return f"go on from the last checkpoint with\n  {command_line(module, config, resume=True)}"


def parse(
  config: type, default: Any = None, *, title: str = "own", args: Sequence[str] | None = None, **options: Any
) -> Any:
  """Returns the settings of a command line; `--help` has a group for each class that they are inherited from.

  Args:
    config: A dataclass whose fields become flags, each explained by the comment behind it. One with `resume` takes
      `--resume FOLDER`, by which a run's own settings stand for those that are not given.
    default: A configuration whose values stand for those that are not given; by default the dataclass's own.
    title: The group of the fields that are not inherited.
    args: Arguments to parse; by default the process's.
    **options: Other arguments of `tyro.cli`.

  Raises:
    ValueError: If there is no run in the folder.

  >>> @dataclasses.dataclass(frozen=True, kw_only=True)
  ... class RunConfig:
  ...   steps: int = 8
  >>> @dataclasses.dataclass(frozen=True, kw_only=True)
  ... class Config(RunConfig):
  ...   clip: float = 0.2
  >>> parse(Config, args=["--steps", "3"])
  Config(steps=3, clip=0.2)
  """
  types, fields = typing.get_type_hints(config), {field.name: field for field in dataclasses.fields(config)}
  args, folder = _resumed(sys.argv[1:] if args is None else args) if "resume" in fields else (args, None)
  if folder is not None:
    default = of_run(config, folder)
  check_names(args or (), fields)
  groups = {}
  for base in config.__mro__:  # a field stands in the group of the class that declares it first
    names = [name for name in getattr(base, "__annotations__", {}) if name in fields]
    names = [name for name in names if not any(name in vars(b).get("__annotations__", {}) for b in base.__mro__[1:])]
    if names:
      name_of_group = base.__name__.removesuffix("Config").lower() or title
      flags = [_flag(config, fields[name], types[name], default) for name in names]
      groups[name_of_group] = dataclasses.make_dataclass(name_of_group, flags, frozen=True, kw_only=True)
      groups[name_of_group].__doc__ = ""
  whole = dataclasses.make_dataclass("Settings", [(title, tyro.conf.OmitArgPrefixes[g]) for title, g in groups.items()])
  parsed = tyro.cli(whole, args=args, **options)
  values = {name: value for title in groups for name, value in vars(getattr(parsed, title)).items()}
  if folder is not None and Path(values["run_dir"]) != Path(folder):
    raise ValueError(f"run_dir is that of the run which goes on, {folder!r}; got {values['run_dir']!r}")
  return config(**values | ({"resume": folder is not None} if "resume" in fields else {}))


def check_names(args: Sequence[str], known: Collection[str]) -> None:
  """Raises ValueError for a flag that another system has, if it is known under another name.

  >>> check_names(["--num-generations", "8"], ["group_size"])
  Traceback (most recent call last):
  ...
  ValueError: --num-generations is called --group-size here; docs/from_trl.md has the others, and how they differ
  """
  for word in args:
    name = word.partition("=")[0].removeprefix("--").replace("-", "_").rpartition(".")[2]  # verl's have dots
    here = next((each for each in ELSEWHERE.get(name, "").split() if each in known), None)
    if here is not None and word.startswith("--") and name not in known:
      flag = here.replace("_", "-")
      raise ValueError(
        f"{word.partition('=')[0]} is called --{flag} here; docs/from_trl.md has the others, and how they differ"
      )


def of_run(config: type, folder: str) -> Any:
  """Returns the settings that a run was started with, to go on with it.

  Raises:
    ValueError: If there is no run, or it is one of other settings.

  >>> of_run(type("Config", (), {}), "nowhere")
  Traceback (most recent call last):
  ...
  ValueError: no run to go on with in 'nowhere': it has no config.json
  """
  if not folder:
    raise ValueError("--resume takes the folder of the run to go on with, got ''")
  saved, types = read_config(folder), typing.get_type_hints(config)
  if not saved or not isinstance(saved, dict):
    raise ValueError(f"no run to go on with in {folder!r}: it has no config.json")
  if missing := [field.name for field in dataclasses.fields(config) if field.name not in saved]:
    raise ValueError(f"{folder!r} holds no run of this script: its config.json has no {missing[0]!r}")
  try:
    own = {name: _restored(value, types[name]) for name, value in saved.items() if name in types}
    return config(**own | {"run_dir": folder, "resume": True})
  except TypeError as error:
    raise ValueError(f"{folder!r} holds no run of this script ({error})") from None


def _restored(value: Any, kind: Any) -> Any:
  """A setting as it was before it was JSON."""
  if isinstance(value, list):
    return tuple(value)
  return float(value) if kind is float else value


def _resumed(args: Sequence[str]) -> tuple[list[str], str | None]:
  """A command line without `--resume FOLDER`, and the folder; None without."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
  parser.add_argument("--resume", default=None)
  try:
    found, others = parser.parse_known_args(list(args))
  except argparse.ArgumentError:
    raise ValueError("--resume takes the folder of the run to go on with") from None
  return others, found.resume


def _flag(config: type, field: dataclasses.Field, kind: Any, default: Any) -> tuple:
  """A field with its help as tyro wants it."""
  resumes = field.name == "resume"  # whose folder `parse` has read
  value = field.default if default is None else getattr(default, field.name)
  value = "" if resumes else value
  nothing = value is None or value is False or value in ("", ())
  explained = _explained(str if resumes else kind, _comment(config, field.name), nothing)
  missing = value is dataclasses.MISSING
  return (field.name, explained) if missing else (field.name, explained, dataclasses.field(default=value))


def _explained(kind: Any, text: str, nothing: bool) -> Any:
  """A type with its help; a default of nothing is not shown."""
  if nothing:
    return Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint="")]
  return Annotated[kind, tyro.conf.arg(help=text)]


def _comment(config: type, name: str) -> str:
  """The comment behind a field, of the class that declares it last."""
  for base in config.__mro__:
    if name in vars(base).get("__annotations__", {}):
      try:
        source = inspect.getsource(base)
      except OSError:
        return ""
      found = re.search(rf"^ *{name}: .*?  # (.*)$", source, re.MULTILINE)
      if found:
        return found[1]
  return ""


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
  """Returns the command that runs a module with a configuration: what differs from its defaults, or what resumes it.

  Args:
    module: The script's module, such as "experiments.grpo".
    config: A dataclass whose fields tyro has made flags of.
    **changes: Fields to replace first.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Config:
  ...   steps: int = 8
  ...   stop: tuple[str, ...] = ()
  ...   resume: bool = False
  ...   run_dir: str = "runs/a"
  >>> command_line("my.module", Config(stop=("a", "b c"))).partition(" -m ")[2]
  "my.module --stop a 'b c'"
  >>> command_line("my.module", Config(), resume=True).partition(" -m ")[2]
  'my.module --resume runs/a'
  """
  config = dataclasses.replace(config, **changes)
  words = [sys.executable, "-m", module]
  if getattr(config, "resume", False):
    return shlex.join([*words, "--resume", str(config.run_dir)])
  for field in dataclasses.fields(config):
    value, flag = getattr(config, field.name), field.name.replace("_", "-")
    if value == field.default:
      continue
    if isinstance(value, bool):
      words.append(f"--{flag}" if value else f"--no-{flag}")
    else:
      words += [f"--{flag}", *(str(item) for item in (value if isinstance(value, tuple) else (value,)))]
  return shlex.join(words)
