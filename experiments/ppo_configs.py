"""The settings of experiments.ppo: in groups, each with its check, and the objective that they choose."""

import dataclasses
import math
from typing import Any

import jax

from experiments.configs import (
  Checked,
  ControlConfig,
  ModelConfig,
  OptimizerConfig,
  RolloutConfig,
  RunConfig,
  pinned,
  settings_given,
  source_options,
  with_options,
)
from rl_jax import objectives
from rl_jax.devices import Devices
from rl_jax.objectives.base import Objective, add, kl_penalty, scale
from rl_jax.ops import aggregation, kl, ratios
from rl_jax.ops.kl import Estimator
from rl_jax.ops.moments import Moments
from rl_jax.ops.shaping import Shaping
from rl_jax.rollouts import pretraining
from rl_jax.runs.settings import refuse, require_at_least, require_one_of, require_positive
from rl_jax.state import RewardModel
from rl_jax.tasks import forms, reading, sources, text
from rl_jax.train import control
from rl_jax.train.actors import LoadedReward
from rl_jax.train.schedule import check_algorithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLConfig(Checked):
  kl_coef: float = 0.05  # weight of the KL to the initial model, at the beginning; 0 for none
  kl_place: str = "reward"  # reward: every token pays its KL; loss: the KL is a term of the loss
  kl_estimator: str = "k1"  # k1, k2 or k3; in the loss k2, whose gradient is that of the KL, or k3
  kl_correction: bool = False  # in the loss: weigh each token's KL by its ratio to the old policy, exact after updates
  kl_control: str = "fixed"  # fixed; adaptive: towards kl_target; band: keeps the KL within kl_low and kl_high
  kl_target: float = 6.0  # KL that the adaptive weight aims at, in nats a completion
  kl_horizon: float = 10000.0  # completions over which the adaptive weight may change by a fifth
  kl_low: float = 3.0  # KL in nats a completion, below which the weight halves
  kl_high: float = 12.0  # KL in nats a completion, above which the weight doubles

  def check(self) -> None:
    require_at_least(self, 0, ("kl_coef", "kl_low"))
    require_at_least(self, 1, ("kl_horizon",))
    require_positive(self, ("kl_target",))
    choices = {"kl_place": ("reward", "loss"), "kl_estimator": ("k1", "k2", "k3")}
    require_one_of(self, choices | {"kl_control": ("fixed", "adaptive", "band")})
    if self.kl_control != "fixed" and not self.kl_in_reward:
      raise ValueError(f"kl_control {self.kl_control!r} needs a KL in the reward, with a kl_coef above 0 to begin with")
    if self.kl_place == "reward":
      refuse(self, ("kl_correction",), "kl_place 'reward'")
    if self.kl_place == "loss" and self.kl_estimator == "k1" and not self.kl_correction:
      raise ValueError("kl_estimator 'k1' has no gradient in the mean as a term of the loss; k2 has that of the KL")
    if not self.kl_low < self.kl_high < math.inf:
      raise ValueError(f"kl_low must be below kl_high, got {self.kl_low} and {self.kl_high}")
    if self.kl_coef == 0:
      refuse(self, ("kl_place", "kl_estimator", "kl_correction"), "kl_coef 0")
    if self.kl_control != "adaptive":
      refuse(self, ("kl_target", "kl_horizon"), f"kl_control {self.kl_control!r}")
    if self.kl_control != "band":
      refuse(self, ("kl_low", "kl_high"), f"kl_control {self.kl_control!r}")
    super().check()

  @property
  def kl_in_reward(self) -> bool:
    """Whether every token pays its KL to the initial model."""
    return self.kl_coef > 0 and self.kl_place == "reward"

  @property
  def kl_function(self) -> Estimator:
    """The estimator of the KL."""
    return getattr(kl, self.kl_estimator)

  def kl_term(self) -> Objective:
    """The KL as a term of the loss."""
    ratio = ratios.token() if self.kl_correction else None
    if ratio is not None and self.kl_estimator == "k2":  # whose gradient is that of the KL by itself
      ratio = ratios.detached(ratio)
    return scale(self.kl_coef, kl_penalty(self.kl_function, aggregation.token_mean(), ratio=ratio))

  def kl_controllers(self, samples: int) -> tuple[control.Controller, ...]:
    """What moves `kl_coef` after a rollout of so many completions."""
    if self.kl_control == "adaptive":
      return (control.adaptive_kl(target=self.kl_target, horizon=self.kl_horizon, samples=samples),)
    if self.kl_control == "band":
      return (control.kl_band(low=self.kl_low, high=self.kl_high),)
    return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(Checked):
  reward_model: str = ""  # folder of a model from experiments.reward_model, whose score is added; none by default
  process: str = ""  # text of one token that ends a step: the reward is the sum of the reward model's scores of steps
  spread: float = 0.0  # above 0: a reward is spread over the tokens, with this discount going back; 0: at the end
  standardize_rewards: bool = False  # rewards minus their running mean, over their running deviation
  reward_clip: float = 0.0  # rewards are clipped to plus or minus this; 0 for no limit
  missing_eos_penalty: float = 0.0  # what is taken from completions that were truncated

  def check(self) -> None:
    require_at_least(self, 0, ("spread", "reward_clip", "missing_eos_penalty"))
    if self.spread > 1:
      raise ValueError(f"spread must be at most 1, got {self.spread}")
    if self.process and not self.reward_model:
      raise ValueError("process needs a reward_model")
    if self.process and (self.standardize_rewards or self.spread):
      raise ValueError(
        "process rewards stand at the steps' ends: neither standardize_rewards nor spread goes with them"
      )
    super().check()

  def make_reward_model(self, prompts: text.Prompts, reward: LoadedReward, devices: Devices) -> RewardModel:
    """The reward model's scores, of completions or of the steps in them."""
    end = text.one_token(prompts.tokenizer, self.process, "process") if self.process else None
    return reward.make_reward_model(devices, step_end=end, ending=prompts.ending)

  @property
  def reward_moments(self) -> Moments | None:
    """Where the running moments of rewards begin."""
    return Moments.zero() if self.standardize_rewards else None

  def shaping(self, kl_estimator: Estimator | None) -> Shaping:
    """How rewards of completions become rewards of tokens."""
    return Shaping(
      spread=self.spread or None,
      kl=kl_estimator,
      missing_eos_penalty=self.missing_eos_penalty,
      clip=self.reward_clip or None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingConfig(Checked):
  ptx_data: str = ""  # rows with a column text, a file or a data set's name on the hub, for objective instruct_gpt
  ptx_options: tuple[str, ...] = ()  # config=, split= of a data set on the hub; rename=old:new,... of columns
  ptx_prompts: int = 4  # rows of group_size pieces of that text a rollout
  ptx_tokens: int = 64  # longest piece; completions are padded to it
  ptx_start: str = ""  # text of one token before every piece; by default the tokenizer's beginning of sequence, or end

  def check(self) -> None:
    require_at_least(self, 1, ("ptx_prompts", "ptx_tokens"))
    if not self.ptx_data:
      refuse(self, ("ptx_options", "ptx_prompts", "ptx_tokens", "ptx_start"), "a run without ptx_data")
    super().check()

  def read_texts(self) -> sources.Rows | None:
    """Reads the pretraining text; None where there is none."""
    if not self.ptx_data:
      return None
    return sources.read(pinned(self, self.ptx_data, "ptx_fingerprint"), **source_options(self.ptx_options, "ptx_data"))

  def make_stream(
    self, texts: sources.Rows | None, reader: reading.Reader, *, group_size: int, seed: int
  ) -> pretraining.Stream | None:
    """Pieces of the pretraining text; None where there is none."""
    if texts is None:
      return None
    read = sources.as_form(texts, forms.TEXTS, forms.text_of)
    print(f"pretraining: {read.description}", flush=True)
    return pretraining.make_stream(
      read.rows,
      reader,
      num_prompts=self.ptx_prompts,
      group_size=group_size,
      length=self.ptx_tokens,
      seed=seed,
      first=text.one_token(reader.tokenizer, self.ptx_start, "ptx_start") if self.ptx_start else None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
  RunConfig, ModelConfig, OptimizerConfig, RolloutConfig, RewardConfig, KLConfig, ControlConfig, PretrainingConfig
):
  objective: str = "ppo"  # a name from `python -m rl_jax.objectives`, or my_module:objective; few need a critic
  objective_options: tuple[str, ...] = ()  # the objective's other settings, such as huber=1.0
  critic: str = "own"  # own: copy of the policy; reward: copy of the reward model; fresh; shared: a head on the policy
  critic_rate: float = 2e-5  # learning rate of AdamW for the critic
  clip_low: float | None = None  # the ratio's gradient stops below 1 - clip_low; the objective's own by default
  clip_high: float | None = None  # the ratio's gradient stops above 1 + clip_high; the objective's own by default
  value_coef: float | None = None  # weight of the critic's regression; the objective's own by default
  value_clip: float | None = None  # how far a value may move in an update; 0: no limit; the objective's own by default
  ptx_coef: float | None = None  # weight of the pretraining text's likelihood; the objective's own by default
  gamma: float | None = None  # discount a token; the objective's own by default, 1
  lam: float | None = None  # lambda of generalized advantage estimation; the objective's own by default, 0.95
  whiten: bool | None = None  # normalize the critic's advantages over the batch; the objective's own by default, yes
  bootstrap: bool = False  # a completion that was truncated is worth the critic's value of where it stopped
  target_kl: float = 0.0  # leave out a rollout's other updates once approx_kl is above this; 0 for never
  run_dir: str = "runs/ppo"  # configuration, metrics, samples, checkpoints, plot and the trained model
  group_size: int = 4  # completions a prompt
  epochs: int = 2  # passes over a rollout
  minibatches: int = 2  # updates a pass

  def check(self) -> None:
    names = ("value_coef", "value_clip", "ptx_coef", "gamma", "lam")
    require_at_least(self, 0, tuple(name for name in names if getattr(self, name) is not None))
    require_at_least(self, 0, ("critic_rate", "target_kl"))
    require_positive(self, tuple(name for name in ("clip_low", "clip_high") if getattr(self, name) is not None))
    if max(self.gamma or 0, self.lam or 0) > 1:
      raise ValueError(f"gamma and lam must be at most 1, got {self.gamma} and {self.lam}")
    require_one_of(self, {"critic": ("own", "reward", "fresh", "shared")})
    if self.critic == "reward" and not self.reward_model:
      raise ValueError("critic 'reward' needs a reward_model")
    if bool(self.ptx_data) != (self.objective == "instruct_gpt"):
      raise ValueError("objective 'instruct_gpt' needs ptx_data, a file of pretraining text, and no other one takes it")
    if self.ptx_data and self.temperature != 1:
      raise ValueError(f"ptx_data needs temperature 1, that of the model's own likelihood, got {self.temperature}")
    super().check()
    self.check_parts(self.microbatches)

  def check_parts(self, microbatches: int) -> None:
    extra, parts = self.ptx_prompts if self.ptx_data else 0, microbatches * jax.device_count()
    even = not self.num_prompts % self.minibatches and not extra % self.minibatches
    if not even or self.num_prompts % jax.device_count() or (self.num_prompts + extra) // self.minibatches % parts:
      raise ValueError(
        f"num_prompts and ptx_prompts must each be a multiple of minibatches = {self.minibatches}, and together of "
        f"minibatches * microbatches * devices = {self.minibatches * parts}"
      )

  def coefficients(self, algorithm: objectives.Algorithm) -> dict[str, Any]:
    """Initial values of what controllers move."""
    paid = {"kl_coef": self.kl_coef} if self.kl_in_reward else {}
    return control.initial(self.controllers, {**algorithm.coefficients, **paid}, self.schedule)

  @property
  def controllers(self) -> tuple[control.Controller, ...]:
    """What moves coefficients after every rollout."""
    return self.kl_controllers(samples=self.num_prompts * self.group_size) + super().controllers


def load_algorithm(config: Config) -> objectives.Algorithm:
  """The objective by name, with its advantage, the settings that were given, and the KL where it is wanted."""
  names = ("clip_low", "clip_high", "value_coef", "value_clip", "ptx_coef", "gamma", "lam", "whiten")
  settings = settings_given(config, names)
  if config.value_clip == 0:
    settings["value_clip"] = None
  settings = with_options(settings, config.objective_options)
  options: Any = dict(fallback={"length": config.max_new_tokens}, moving=config.moving)
  algorithm = objectives.load(config.objective, **options, **settings)
  needs = algorithm.from_rewards().needs
  check_algorithm(algorithm, config.schedule, config.group_size)
  parts = algorithm.objective(algorithm.coefficients).parts
  if config.beta_target and not any(key == "kl" and value.endswith(" to old") for key, value in parts):
    raise ValueError(f"objective {config.objective!r} has no penalty on the update for beta_target to move")
  if "ref_logp" in algorithm.needs:  # the KL to the initial model has one place, which kl_place names
    if "kl_coef" in settings or "kl_coef" not in objectives.settings_of(config.objective):
      if config.kl_coef:
        raise ValueError(f"objective {config.objective!r} has a KL to the reference in its loss: kl_coef must be 0")
    else:
      print(f"the KL of {config.objective} is off: --kl-coef and --kl-place say where it is paid", flush=True)
      algorithm = objectives.load(config.objective, **options, **settings, kl_coef=0)
  if "old_logp" not in algorithm.needs:
    refuse(config, ("target_kl",), f"objective {config.objective!r}")
  if not algorithm.needs_values:
    refuse(config, ("critic", "critic_rate", "bootstrap"), f"objective {config.objective!r}")
  if "token_rewards" not in needs:
    refuse(config, ("spread",), f"objective {config.objective!r}")
  if config.kl_coef and config.kl_place == "loss":
    loss = algorithm.objective
    algorithm = algorithm._replace(objective=lambda c: add(rl=loss(c), kl=config.kl_term()))
  return algorithm
