"""Settings that scripts share, each group with its own check and with the part of a run that it describes."""

import dataclasses
import datetime
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import optax

from rl_jax import hub, options, tasks
from rl_jax.analysis import report
from rl_jax.devices import Devices
from rl_jax.errors import reason
from rl_jax.models import presets, scorers
from rl_jax.runs.directory import RunDirectory, check_free, read_config
from rl_jax.runs.settings import exit_if_stopped, refuse, require_at_least, require_positive
from rl_jax.state import RLState
from rl_jax.tasks import examples, named_rewards, preferences, reading, sources
from rl_jax.tasks.held_out import Split, hold_out
from rl_jax.tasks.load import parse_options
from rl_jax.tasks.text import Prompts, make_prompts
from rl_jax.train import control
from rl_jax.train.actors import Learner, LoadedReward, load_reward_model, make_learner
from rl_jax.train.optimizers import make_optimizer
from rl_jax.train.schedule import Schedule

SHOWN = 300  # characters of a first row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
  """The end of every chain of checks."""

  def check(self) -> None:
    """Raises ValueError for settings that cannot work, alone or together, and for those that nothing would read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
  run_dir: str  # configuration, metrics, samples, checkpoints, plots and the trained model
  resume: bool = False  # go on with the run in run_dir; as a flag, the run's folder, whose settings are taken
  steps: int = 32  # rollouts, or updates where the data is fixed
  checkpoint_every: int = 16  # steps between checkpoints, besides one at the end; 0 for none
  evaluations: int = 2  # evaluations after the first one, evenly spaced, the last one at the end
  snapshots: int = 0  # models kept on the way, evenly spaced, in snapshots/
  seed: int = 0  # seed of data and sampling
  wandb: str = ""  # a project of Weights & Biases to write to as well; WANDB_MODE=offline keeps it here

  def check(self) -> None:
    require_at_least(self, 1, ("steps", "evaluations"))
    require_at_least(self, 0, ("checkpoint_every", "snapshots", "seed"))
    super().check()

  def directory(self, **settings: Any) -> RunDirectory:
    """Returns the run's directory; keyword arguments add to the settings that a resumed run must share."""
    settings = dataclasses.asdict(self) | _of_models(self) | settings
    return RunDirectory(self.run_dir, settings, resume=self.resume, wandb=self.wandb)

  def finish(
    self,
    module: str,
    run: RunDirectory,
    learner: Learner,
    params: Any,
    done: int,
    save: Callable[[Path], None] | None = None,
  ) -> Path:
    """Saves and shows what was trained, and returns the model's folder; ends the process if the run was stopped.

    Args:
      module: The script's.
      run: Where everything goes.
      learner: What was trained.
      params: Its parameters.
      done: Steps that were made.
      save: Saves the model to a folder, where it is not the learner's own.
    """
    exit_if_stopped(module, self, done)
    if save is None:
      learner.save(run.folder, params)
    else:
      save(run.folder / "model")
    show_run(run.folder)
    return run.folder / "model"

  def loop_settings(
    self, devices: Devices, learner: Learner | None = None, save: Callable[[Path, RLState], None] | None = None
  ) -> dict[str, Any]:
    """How long the loop goes on, how often it evaluates and saves, and how it saves a learner's model."""
    names = ("steps", "checkpoint_every", "evaluations", "snapshots")
    settings = {name: getattr(self, name) for name in names}
    if learner is not None:
      settings["save"] = save or (lambda folder, state: learner.save_model(folder, state.policy.params))
      settings["frozen"] = learner.frozen
    return settings | dict(put=devices.put, compiles=lambda: devices.compiles)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
  model: str = "smollm2"  # smollm2, tiny, small, a folder in Hugging Face's format, a .gguf file, or a name on the hub
  base: str = ""  # the model that the adapters in --model belong to; by default the one that their files name
  lora_rank: int = 0  # above 0: train adapters of this rank alone
  lora_alpha: float = 32.0  # the adapters' update is multiplied by alpha / rank
  remat: bool = False  # compute activations again in the backward pass, to save memory
  date: str = reading.DATE.isoformat()  # the day that chat templates which ask for it are told; fixed, to be repeatable

  def check(self) -> None:
    require_at_least(self, 0, ("lora_rank",))
    require_positive(self, ("lora_alpha",))
    if not self.lora_rank:
      refuse(self, ("lora_alpha",), "lora_rank 0")
    if self.lora_rank and self.base:
      raise ValueError("lora_rank with base: new adapters would name a base that is not theirs")
    try:
      datetime.date.fromisoformat(self.date)
    except ValueError:
      raise ValueError(f"date must read YYYY-MM-DD, got {self.date!r}") from None
    super().check()

  def load_model(self, max_tokens: int) -> presets.Model:
    """Loads the model, which must read sequences of `max_tokens`."""
    model = presets.load(pinned(self, self.model, "model_commit"), base=self.base, remat=self.remat)
    presets.check_context(model, max_tokens)
    return model

  def make_reader(self, model: presets.Model) -> reading.Reader:
    """Returns how the model reads text and conversations."""
    date = datetime.date.fromisoformat(self.date)
    return reading.Reader(model.tokenizer, model.eos_tokens, date, model.config.vocab_size)

  def make_learner(self, model: presets.Model) -> Learner:
    """Returns the model as it is trained."""
    base_model = str(Path(self.model).resolve()) if Path(self.model).exists() else self.model
    return make_learner(model, base_model=base_model, lora_rank=self.lora_rank, lora_alpha=self.lora_alpha)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
  learning_rate: float = 8e-6  # learning rate of AdamW, after warm-up; about 1e-4 for adapters
  weight_decay: float = 0.0  # weight decay of AdamW
  max_grad_norm: float = 1.0  # gradients are scaled down to this norm
  microbatches: int = 1  # slices an update's gradient is accumulated over, to save memory

  def check(self) -> None:
    require_at_least(self, 1, ("microbatches",))
    require_at_least(self, 0, ("learning_rate", "weight_decay"))
    require_positive(self, ("max_grad_norm",))
    super().check()

  def make_optimizer(self, **options: Any) -> optax.GradientTransformation:
    """Returns AdamW; keyword arguments are those of `make_optimizer` that differ between scripts."""
    return make_optimizer(
      self.learning_rate, weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm, **options
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig(Checked):
  task: str = "arithmetic"  # arithmetic, reasoning_gym/<dataset>, a .jsonl, .json, .csv or .parquet file, or a hub name
  task_options: tuple[str, ...] = ()  # its settings: digits=3; of rows config=main rename=q:prompt evaluation_size=99
  rewards: tuple[str, ...] = ()  # math, gsm8k, format, length, json, module:function, file.py:function, a reward model
  reward_weights: tuple[float, ...] = ()  # one a reward function, 0 to log it alone; all 1 by default
  num_prompts: int = 16  # prompts a rollout
  group_size: int = 8  # completions a prompt
  max_prompt_tokens: int = 512  # longer prompts are passed over
  max_new_tokens: int = 0  # longest completion; 0 for the task's own: digits + 3 for arithmetic, 256 for all others
  stop: tuple[str, ...] = ()  # texts of one token that end a completion; they replace the task's own
  temperature: float = 1.0  # temperature of sampling and of every log-prob
  epochs: int = 1  # passes over a rollout
  minibatches: int = 1  # updates a pass
  warmup_steps: int = 3  # updates over which the learning rate rises
  mask_truncated: bool = False  # leave completions that were truncated out of the loss
  evaluation_samples: int = 16  # answers an evaluation samples to each of 64 held-out prompts, for pass@k; 0 for none
  keep_special_tokens: bool = False  # rewards and samples have special tokens as text, such as <|im_end|>

  def __post_init__(self):
    if not self.max_new_tokens:
      object.__setattr__(self, "max_new_tokens", tasks.longest_answer(self.task, self.task_options))

  def check(self) -> None:
    names = ("num_prompts", "group_size", "max_prompt_tokens", "max_new_tokens", "epochs", "minibatches")
    require_at_least(self, 1, names)
    require_at_least(self, 0, ("warmup_steps", "evaluation_samples"))
    require_positive(self, ("temperature",))
    super().check()

  def check_parts(self, microbatches: int) -> None:
    """Raises ValueError if prompts do not divide into minibatches, micro-batches and over the devices."""
    parts = self.minibatches * microbatches * jax.device_count()
    if self.num_prompts % parts:
      raise ValueError(
        f"num_prompts must be a multiple of minibatches * microbatches * devices = {parts}, got {self.num_prompts}"
      )

  @property
  def max_tokens(self) -> int:
    """Tokens of the longest prompt with its completion."""
    return self.max_prompt_tokens + self.max_new_tokens

  @property
  def schedule(self) -> Schedule:
    """What each rollout is used for."""
    return Schedule(self.epochs, self.minibatches)

  @property
  def sizes(self) -> dict[str, Any]:
    """The shape of a rollout, and of an evaluation."""
    names = ("num_prompts", "group_size", "max_new_tokens", "evaluation_samples")
    return {name: getattr(self, name) for name in names}

  def load_task(self, seed: int) -> tasks.Task:
    """Loads the task, with the reward functions that were named."""
    names = [pinned(self, name, "reward_commits") for name in self.rewards]
    functions = named_rewards.load(names, self.reward_weights)
    task = tasks.load(pinned(self, self.task, "data_fingerprint"), self.task_options, rewards=functions, seed=seed)
    if task.description:
      print(f"{task.name}: {task.description}", flush=True)
    return task

  def make_prompts(self, task: tasks.Task, reader: reading.Reader) -> Prompts:
    """Returns the task's prompts for a model, and shows the first one as the model reads it."""
    prompts = make_prompts(
      task,
      reader,
      stop=self.stop,
      max_prompt_tokens=self.max_prompt_tokens,
      keep_special_tokens=self.keep_special_tokens,
    )
    print(f"the first prompt reads {reader.tokenizer.decode(prompts.encode(task.row(0)))[:SHOWN]!r}", flush=True)
    return prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlConfig(Checked):
  beta_target: float = 0.0  # above 0, for ppo_kl: beta follows this KL of a rollout's updates, in nats a token
  entropy_target: float = 0.0  # above 0: the entropy bonus is on while the entropy is below this, in nats a token

  def check(self) -> None:
    require_at_least(self, 0, ("beta_target", "entropy_target"))
    super().check()

  @property
  def moving(self) -> tuple[str, ...]:
    """The objective's settings that controllers move."""
    return ("beta",) * (self.beta_target > 0) + ("entropy_coef",) * (self.entropy_target > 0)

  @property
  def controllers(self) -> tuple[control.Controller, ...]:
    """What moves coefficients after every rollout."""
    beta = (control.adaptive_beta(target=self.beta_target),) if self.beta_target else ()
    return beta + ((control.adaptive_entropy(target=self.entropy_target),) if self.entropy_target else ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedConfig(RunConfig, ModelConfig, OptimizerConfig):
  data: str  # a .jsonl, .json, .csv or .parquet file, or a data set's name on the hub
  data_options: tuple[str, ...] = ()  # config=, split= of a data set on the hub; rename=old:new,... of columns
  steps: int = 100  # updates; the learning rate falls to 0 over them along a cosine
  epochs: float = 0.0  # above 0: passes over the data, in place of steps
  max_tokens: int = 512  # longer rows are left out
  held_out: float = 0.1  # share of the data to measure on, of prompts that are not trained on
  checkpoint_every: int = 50  # updates between checkpoints, besides one at the end; 0 for none

  def check(self) -> None:
    require_at_least(self, 1, ("max_tokens",))
    require_at_least(self, 0, ("epochs",))
    check_free(self.run_dir, resume=self.resume)
    if not 0 < self.held_out < 1:
      raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}")
    super().check()

  def read_rows(self) -> sources.Rows:
    """Reads the data."""
    return sources.read(pinned(self, self.data, "data_fingerprint"), **source_options(self.data_options, "data"))

  def check_parts(self, rows: int, name: str) -> None:
    """Raises ValueError if a batch's rows do not divide into micro-batches and over the devices."""
    parts = self.microbatches * jax.device_count()
    if rows % parts:
      raise ValueError(f"{name} must be a multiple of microbatches * devices = {parts}, got {rows}")

  def for_rows(self, rows: int, name: str) -> Self:
    """Returns the settings for so many rows to train on: batches that they fill, and epochs as steps.

    Args:
      rows: Rows.
      name: The setting that says how many a batch has.

    Raises:
      ValueError: If there are fewer rows than micro-batches and devices.
    """
    parts = self.microbatches * jax.device_count()
    wanted, whole = getattr(self, name), rows - rows % parts
    if not whole:
      raise ValueError(f"the data has {rows} rows for training, fewer than microbatches * devices = {parts}")
    if whole < wanted:
      print(f"{name} is {whole} in place of {wanted}: there are {rows} rows to train on", flush=True)
    size = min(wanted, whole)
    steps = math.ceil(self.epochs * rows / size) if self.epochs else self.steps
    given_anew = self.resume and read_config(self.run_dir).get("epochs") != self.epochs  # which is told of as such
    if self.epochs and not given_anew and self.steps not in (steps, type(self).steps):
      raise ValueError(f"steps is given beside epochs, which make {steps}; leave one of them out")
    return dataclasses.replace(self, steps=steps, **{name: size})

  def directory(self, **settings: Any) -> RunDirectory:
    settings = dataclasses.asdict(self) | _of_models(self) | settings
    return RunDirectory(self.run_dir, settings, resume=self.resume, fixed=("steps",), wandb=self.wandb)


def source_options(given: Sequence[str], who: str) -> dict[str, str]:
  """Returns how data is read, from `key=value` texts."""
  found = {name: str(value) for name, value in parse_options(given).items()}
  options.check(sources.read, found, who, fixed=("source",))
  return found


def _of_models(config: Any) -> dict[str, Any]:
  """What a resumed run must share of models: commits of those from the hub, and which training reward models are of."""
  name = pinned(config, getattr(config, "model", ""), "model_commit")
  found: dict[str, Any] = {"model_commit": hub.model_folder(name).name} if hub.is_name(name) else {}
  judges = named_rewards.reward_models(getattr(config, "rewards", ()))
  judges += filter(None, [getattr(config, "reward_model", "")])
  pins = {name: pinned(config, name, "reward_commits") for name in judges}
  if commits := {name: hub.model_folder(pin).name for name, pin in pins.items() if hub.is_name(pin)}:
    found["reward_commits"] = commits
  return found | ({"reward_fingerprints": [scorers.fingerprint(pin) for pin in pins.values()]} if pins else {})


def pinned(config: Any, name: str, key: str) -> str:
  """Returns a name on the hub with the commit that a run which goes on began with; any other name as it is."""
  if not (getattr(config, "resume", False) and hub.is_name(name) and "@" not in name):
    return name
  saved = read_config(config.run_dir).get(key, "")
  commit = str(saved.get(name) if isinstance(saved, dict) else saved).partition(" ")[0]
  return f"{name}@{commit}" if re.fullmatch("[0-9a-f]{40}", commit) else name


def load_rankings(
  config: SupervisedConfig,
  rows: sources.Rows,
  model: presets.Model,
  *,
  answers: Sequence[int] = (),
  whole: bool = False,
) -> Split:
  """Returns preferences as the model reads them, some held out by prompt; says what was left out.

  Args:
    config: The settings.
    rows: The data.
    model: The model.
    answers: How many answers a row may have; 2 or more by default.
    whole: As in `examples.encode_rankings`.
  """
  data = preferences.from_rows(rows.placed)
  count = len(data.rankings[0].answers)
  if count not in (answers or (count,)) or (count == 1 and 1 not in answers):
    kind = "single answers with a label, which loss 'kto' learns from" if count == 1 else f"rankings of {count} answers"
    raise ValueError(f"data must be {'pairs' if answers else 'preferences'}; {config.data!r} has {kind}")
  reader = config.make_reader(model)
  encoded, problems = examples.encode_rankings(reader, data, max_tokens=config.max_tokens, whole=whole)
  print(f"{data.describe()}; as tokens: {examples.describe(problems)}", flush=True)
  show_first(model, [*encoded[0].prompt, *encoded[0].answers[0].tokens])
  split = hold_out(encoded, config.held_out, seed=config.seed, key=lambda each: each.subject)
  print(split.describe(), flush=True)
  return split


def show_first(model: presets.Model, tokens: Sequence[int]) -> None:
  """Prints the first row as the model reads it."""
  print(f"the first row reads {model.tokenizer.decode(tokens)[:SHOWN]!r}", flush=True)


def show_run(folder: Path, *, tokens: bool = True) -> None:
  """Prints what came of a run, and writes its page: all is saved by then, and nothing that fails here undoes it."""
  try:
    report.show(folder)
    print(f"report: {report.write(folder, tokens=tokens)}", flush=True)
  except Exception as error:  # of a library that draws, or the disk
    print(f"no report: {type(error).__name__}: {reason(error)}", flush=True)


def settings_given(config: Any, names: Iterable[str]) -> dict[str, Any]:
  """Returns those of an objective's settings that are not None."""
  return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def with_options(settings: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
  """Returns settings with those of `--objective-options` beside them.

  Raises:
    ValueError: If one is given by a flag of its own too.
  """
  found = parse_options(options)
  if twice := sorted(settings.keys() & found.keys()):
    raise ValueError(f"{twice[0]} is given twice, by a flag of its own and in objective_options")
  return settings | found


def load_reward(config: Any, model: presets.Model) -> LoadedReward | None:
  """Loads the run's reward model, which must read the policy's tokens; None where there is none."""
  if not config.reward_model:
    return None
  name = pinned(config, config.reward_model, "reward_commits")
  return load_reward_model(name, model.tokenizer, max_tokens=config.max_tokens, remat=config.remat)
