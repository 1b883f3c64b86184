"""The settings of experiments.ppo: what they are, which of them go together, and the parts that they choose."""

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import optax

from rl_jax import objectives
from rl_jax.objectives.base import Objective, add, kl_penalty, scale
from rl_jax.ops import aggregation, controllers, kl
from rl_jax.train import estimates
from rl_jax.train.settings import check_adapters, refuse, require_at_least, require_one_of, require_positive


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "smollm2"  # smollm2, tiny, small, a folder in Hugging Face's format, or a .gguf file
  task: str = "arithmetic"  # arithmetic, reasoning_gym/<dataset>, or a .jsonl or .parquet file
  task_options: tuple[str, ...] = ()  # the task's settings, such as digits=3
  rewards: tuple[str, ...] = ()  # reward functions, such as my_module:reward; they replace the task's own
  reward_weights: tuple[float, ...] = ()  # one a reward function, 0 to log it alone; all 1 by default
  reward_model: str = ""  # folder of a model from experiments.reward_model, whose score is added; none by default
  process: str = ""  # text of one token that ends a step: the reward is the sum of the reward model's scores of steps
  critic: str = "own"  # own: a copy of the policy; reward: of the reward model; fresh; shared: a head on the policy
  objective: str = "ppo"  # a name from `python -m rl_jax.objectives`; those without a critic train none
  run_dir: str = "runs/ppo"  # configuration, metrics, samples, checkpoints, plot and the trained model
  resume: bool = False  # go on with the run in run_dir
  steps: int = 32  # rollouts
  prompts: int = 16  # prompts a rollout
  group_size: int = 4  # completions a prompt
  max_prompt_tokens: int = 512  # longer prompts are passed over
  max_new_tokens: int = 5  # longest completion
  stop: tuple[str, ...] = ()  # texts of one token that end a completion; they replace the task's own
  temperature: float = 1.0  # of sampling and of every log-prob
  learning_rate: float = 8e-6  # of AdamW for the policy, after warm-up
  critic_rate: float = 2e-5  # of AdamW for the critic
  warmup: int = 3  # updates over which the learning rates rise
  max_grad_norm: float = 1.0  # gradients are scaled down to this norm
  clip: float | None = None  # the ratio's gradient stops outside 1 - clip and 1 + clip; the objective's own by default
  value_coef: float | None = None  # weight of the critic's regression; the objective's own by default
  value_clip: float | None = None  # how far a value may move in an update; 0: no limit; the objective's own by default
  gamma: float = 1.0  # discount a token
  lam: float = 0.95  # of generalised advantage estimation
  whiten: bool = True  # normalise the critic's advantages over the batch
  kl_coef: float = 0.05  # weight of the KL to the initial model, at the beginning; 0 for none
  kl_place: str = "reward"  # reward: every token pays its KL; loss: the KL is a term of the loss
  kl_estimator: str = "k1"  # k1, k2 or k3; in the loss k2, whose gradient is that of the KL, or k3
  kl_control: str = "fixed"  # fixed; adaptive: towards kl_target; band: keeps the KL within kl_low and kl_high
  kl_target: float = 6.0  # nats a completion
  kl_horizon: float = 10000.0  # completions over which the adaptive weight may change by a fifth
  kl_low: float = 3.0  # nats a completion, below which the weight halves
  kl_high: float = 12.0  # nats a completion, above which it doubles
  spread: float = 0.0  # above 0: a score is spread over the tokens, with this discount going back; 0: at the end
  normalize_rewards: bool = False  # scores minus their running mean, over their running deviation
  reward_clip: float = 0.0  # scores are clipped to plus or minus this; 0 for no limit
  missing_eos_penalty: float = 0.0  # taken from completions that were cut off
  bootstrap: bool = False  # a completion that was cut off is worth the critic's value of where it stopped
  mask_truncated: bool = False  # leave completions that were cut off out of the loss
  ptx_data: str = ""  # .jsonl or .parquet with a column text, for objective instruct_gpt
  ptx_prompts: int = 4  # rows of group_size pieces of that text a rollout
  ptx_tokens: int = 64  # longest piece; completions are padded to it
  ptx_start: str = ""  # text of one token before every piece; by default the tokenizer's beginning of sequence, or end
  ptx_coef: float | None = None  # weight of their likelihood; the objective's own by default
  lora_rank: int = 0  # above 0: adapters of this rank in place of all weights of the policy
  lora_alpha: float = 32.0  # the adapters' update is multiplied by alpha / rank
  epochs: int = 2  # passes over a rollout
  minibatches: int = 2  # updates a pass
  max_kl: float = 0.0  # leave out a rollout's other updates once approx_kl is above this; 0 for never
  microbatches: int = 1  # slices an update's gradient is accumulated over, to save memory
  remat: bool = False  # compute activations again in the backward pass, to save memory
  checkpoint_every: int = 16  # rollouts between checkpoints, besides one at the end; 0 for none
  seed: int = 0  # of data and sampling


def check(config: Config) -> None:
  """Raises ValueError for settings that cannot work, alone or together, and for those that nothing would read."""
  positive = (
    "steps",
    "prompts",
    "group_size",
    "max_prompt_tokens",
    "max_new_tokens",
    "epochs",
    "minibatches",
    "microbatches",
    "ptx_prompts",
    "ptx_tokens",
    "kl_horizon",
  )
  require_at_least(config, 1, positive)
  not_negative = (
    "warmup",
    "checkpoint_every",
    "seed",
    "learning_rate",
    "critic_rate",
    "kl_coef",
    "spread",
    "reward_clip",
    "missing_eos_penalty",
    "max_kl",
    "kl_low",
  )
  optional = tuple(name for name in ("value_coef", "value_clip", "ptx_coef") if getattr(config, name) is not None)
  require_at_least(config, 0, not_negative + optional)
  require_positive(config, ("temperature", "max_grad_norm", "kl_target"))
  if config.clip is not None:
    require_positive(config, ("clip",))
  require_one_of(
    config,
    {
      "critic": ("own", "reward", "fresh", "shared"),
      "kl_place": ("reward", "loss"),
      "kl_estimator": ("k1", "k2", "k3"),
      "kl_control": ("fixed", "adaptive", "band"),
    },
  )
  check_adapters(config)
  if not (0 <= config.gamma <= 1 and 0 <= config.lam <= 1 and config.spread <= 1):
    raise ValueError(f"gamma, lam and spread must be at most 1, got {config.gamma}, {config.lam} and {config.spread}")
  if not config.reward_model and (config.critic == "reward" or config.process):
    raise ValueError("critic 'reward' and process need a reward_model")
  if config.process and (config.normalize_rewards or config.spread):
    raise ValueError("process rewards stand at the steps' ends: neither normalize_rewards nor spread goes with them")
  check_kl(config)
  if bool(config.ptx_data) != (config.objective == "instruct_gpt"):
    raise ValueError("objective 'instruct_gpt' needs ptx_data, a file of pretraining text, and no other one takes it")
  if not config.ptx_data:
    refuse(config, ("ptx_prompts", "ptx_tokens", "ptx_start"), f"objective {config.objective!r}")
  elif config.temperature != 1:
    raise ValueError(f"ptx_data needs temperature 1, that of the model's own likelihood, got {config.temperature}")
  check_rows(config)


def check_kl(config: Config) -> None:
  """Raises ValueError for settings of the KL that do not go together."""
  if config.kl_control != "fixed" and (config.kl_coef == 0 or config.kl_place == "loss"):
    raise ValueError(f"kl_control {config.kl_control!r} needs a KL in the reward, with a kl_coef above 0 to begin with")
  if config.kl_place == "loss" and config.kl_estimator == "k1":
    raise ValueError("kl_estimator 'k1' has no gradient in the mean as a term of the loss; k2 has that of the KL")
  if not config.kl_low < config.kl_high < math.inf:
    raise ValueError(f"kl_low must be below kl_high, got {config.kl_low} and {config.kl_high}")
  if config.kl_coef == 0:
    refuse(config, ("kl_place", "kl_estimator"), "kl_coef 0")
  if config.kl_control != "adaptive":
    refuse(config, ("kl_target", "kl_horizon"), f"kl_control {config.kl_control!r}")
  if config.kl_control != "band":
    refuse(config, ("kl_low", "kl_high"), f"kl_control {config.kl_control!r}")


def check_rows(config: Config) -> None:
  """Raises ValueError if a rollout's rows do not divide into minibatches, micro-batches and over the devices."""
  extra = config.ptx_prompts if config.ptx_data else 0
  parts, devices = config.microbatches * jax.device_count(), jax.device_count()
  even = not config.prompts % config.minibatches and not extra % config.minibatches
  if not even or config.prompts % devices or (config.prompts + extra) // config.minibatches % parts:
    raise ValueError(
      f"prompts and ptx_prompts must each be a multiple of minibatches = {config.minibatches}, and together of "
      f"minibatches * microbatches * devices = {config.minibatches * parts}"
    )


def choose(config: Config) -> tuple[Objective, estimates.Estimate]:
  """The objective by name, with those of the settings that it takes, and its estimator.

  Raises:
    ValueError: If there is no such objective, or it makes no use of a setting that was given.
  """
  if config.objective not in objectives.names():
    raise ValueError(f"unknown objective {config.objective!r}; there are {', '.join(objectives.names())}")
  module = importlib.import_module(f"rl_jax.objectives.{config.objective}")
  if not hasattr(module, "estimator"):
    raise ValueError(f"objective {config.objective!r} does not learn from rewards")
  given = taken(module.objective, own_settings(config))
  objective = module.objective(**given)
  if "ref_logp" in objective.needs:  # the KL to the initial model has one place, which kl_place names
    objective = module.objective(**given, **taken(module.objective, {"kl_coef": 0}))
  if "old_logp" not in objective.needs and (config.epochs * config.minibatches > 1 or config.max_kl):
    raise ValueError(
      f"objective {config.objective!r} has no ratio to correct for older samples: epochs and minibatches must be 1, "
      "and max_kl 0"
    )
  discounts = taken(module.estimator, {"gamma": config.gamma, "lam": config.lam})
  estimate = estimates.adapt(partial(module.estimator, **discounts), whiten=config.whiten)

  used = {*given, *discounts, *(("clip",) if "clip_low" in given else ())}
  arguments = list(inspect.signature(module.estimator).parameters)
  if "values" in estimate.needs:
    used |= {"critic", "critic_rate", "whiten", "bootstrap", "spread"}
  if arguments[0] == "token_rewards":
    used |= {"spread"}
  optional = {
    "value_coef",
    "value_clip",
    "ptx_coef",
    "clip",
    "critic",
    "critic_rate",
    "whiten",
    "bootstrap",
    "gamma",
    "lam",
    "spread",
  }
  refuse(config, optional - used, f"objective {config.objective!r}")
  if config.kl_place == "loss":
    divergence = kl_penalty(getattr(kl, config.kl_estimator), aggregation.token_mean())
    objective = add(rl=objective, kl=scale(config.kl_coef, divergence))
  return objective, estimate


def own_settings(config: Config) -> dict[str, Any]:
  """What objectives may take as arguments, but for what is left to their own defaults."""
  given: dict[str, Any] = {"length": config.max_new_tokens}
  for name in ("value_coef", "ptx_coef"):
    if getattr(config, name) is not None:
      given[name] = getattr(config, name)
  if config.value_clip is not None:
    given["value_clip"] = config.value_clip or None
  if config.clip is not None:
    given |= dict(clip_low=config.clip, clip_high=config.clip)
  return given


def taken(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
  """Those of the given arguments that a function has."""
  return {name: value for name, value in given.items() if name in inspect.signature(function).parameters}


def make_optimiser(config: Config) -> optax.GradientTransformation:
  """AdamW with a rate for the policy and one for the critic."""

  def adamw(peak: float) -> optax.GradientTransformation:
    return optax.adamw(optax.linear_schedule(peak / (config.warmup + 1), peak, config.warmup), weight_decay=0.0)

  def labels(params: Any) -> dict[str, Any]:
    return {
      name: jax.tree.map(lambda _, name=name: "critic" if name in ("critic", "value_head") else "policy", entry)
      for name, entry in params.items()
    }

  rates: Any = {"policy": adamw(config.learning_rate), "critic": adamw(config.critic_rate)}
  return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.partition(rates, labels))


def make_controller(config: Config) -> Callable[[Any, Any], Any] | None:
  """`(kl_coef, nats a completion) -> kl_coef` after every rollout."""
  if config.kl_control == "adaptive":
    samples = config.prompts * config.group_size
    return partial(controllers.adaptive_kl, target=config.kl_target, horizon=config.kl_horizon, samples=samples)
  if config.kl_control == "band":
    return partial(controllers.kl_band, low=config.kl_low, high=config.kl_high)
  return None


def make_enough(config: Config) -> Callable[[dict[str, float]], bool] | None:
  """Whether an update has moved the policy so far that a rollout's other updates are left out."""

  def enough(metrics: dict[str, float]) -> bool:
    moved = [value for name, value in metrics.items() if name.endswith("approx_kl")]
    if not moved:
      raise ValueError(f"max_kl needs the metric approx_kl, which objective {config.objective!r} does not have")
    return max(moved) > config.max_kl

  return enough if config.max_kl else None
