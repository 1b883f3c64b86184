"""Train a language model by PPO: actor, critic, a frozen reference, and a reward model or reward functions or both.

    python -m experiments.ppo --reward-model runs/reward_model/model --task prompts.jsonl
    python -m experiments.ppo --task arithmetic --critic shared                  # reward functions, one trunk
    python -m experiments.ppo --objective instruct_gpt --ptx-data pages.jsonl    # PPO-ptx
    python -m experiments.ppo --objective reinforce_plus_plus                    # also remax, rloo, ...: no critic
    python -m experiments.ppo --model tiny --steps 2                             # a smoke test

The reward of a token is minus the KL to the initial model there, and the completion's score at its end. What is trained
together is one dict of parameters: `policy` (or `base` and `adapters`), and `critic` or `value_head`.

How it differs from the papers (arXiv:1909.08593, 2203.02155): smaller batches and larger learning rates.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax

from experiments.actors import RewardModel, assemble, load_reward_model
from rl_jax import objectives, tasks
from rl_jax.analysis import report
from rl_jax.models import lora, presets, weights
from rl_jax.objectives.base import Objective
from rl_jax.ops import controllers, kl, returns
from rl_jax.ops.moments import Moments
from rl_jax.sampling import samplers
from rl_jax.sampling.generate import make_generate
from rl_jax.tasks import files, rewards
from rl_jax.train import estimates, loop, parallel, pretraining, rollout, text
from rl_jax.train.compiles import CompileCounter
from rl_jax.train.evaluate import Evaluation, evaluate
from rl_jax.train.metrics_io import RunDirectory
from rl_jax.train.score import Sequences, make_last_value, make_score
from rl_jax.train.settings import exit_if_stopped, require_at_least, run_script
from rl_jax.train.shaping import Shaping
from rl_jax.train.state import RLState
from rl_jax.train.step import make_train_step

MODULE = "experiments.ppo"


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "smollm2"  # smollm2, tiny, small, a folder in Hugging Face's format, or a .gguf file
  task: str = "arithmetic"  # arithmetic, reasoning_gym/<dataset>, or a .jsonl or .parquet file
  task_options: tuple[str, ...] = ()  # the task's settings, such as digits=3
  rewards: tuple[str, ...] = ()  # reward functions, such as my_module:reward; they replace the task's own
  reward_weights: tuple[float, ...] = ()  # one a reward function, 0 to log it alone; all 1 by default
  reward_model: str = ""  # folder of a model from experiments.reward_model, whose score is added; none by default
  critic: str = "own"  # own: a copy of the policy; reward: a copy of the reward model; shared: a head on the policy
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
  value_coef: float = 0.1  # weight of the critic's regression
  value_clip: float = 0.2  # how far a value may move in an update
  gamma: float = 1.0  # discount a token
  lam: float = 0.95  # of generalised advantage estimation
  whiten: bool = True  # normalise the critic's advantages over the batch
  kl_coef: float = 0.05  # weight of the KL in the reward, at the beginning; 0 for none
  kl_estimator: str = "k1"  # k1, k2 or k3
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
  ptx_coef: float = 1.0  # weight of their likelihood
  lora_rank: int = 0  # above 0: adapters of this rank in place of all weights of the policy
  lora_alpha: float = 32.0  # the adapters' update is multiplied by alpha / rank
  epochs: int = 2  # passes over a rollout
  minibatches: int = 2  # updates a pass
  max_kl: float = 0.0  # leave out a rollout's other updates once approx_kl is above this; 0 for never
  microbatches: int = 1  # slices an update's gradient is accumulated over, to save memory
  remat: bool = False  # compute activations again in the backward pass, to save memory
  checkpoint_every: int = 16  # rollouts between checkpoints, besides one at the end; 0 for none
  seed: int = 0  # of data and sampling


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  check(config)
  objective, estimator = choose(config)
  functions = rewards.from_paths(config.rewards, config.reward_weights)
  task = tasks.load(config.task, config.task_options, rewards=functions, seed=config.seed)
  texts = read_texts(config.ptx_data) if "target_mask" in objective.needs else []
  settings = dataclasses.asdict(config) | {"data": task.fingerprint}
  if texts:
    settings["ptx_data"] = files.fingerprint(Path(config.ptx_data))
  directory = RunDirectory(config.run_dir, settings, resume=config.resume)
  model = presets.load(config.model, remat=config.remat)
  presets.check_context(model, config.max_prompt_tokens + config.max_new_tokens)
  reward = load_reward_model(config.reward_model, model.tokenizer) if config.reward_model else None
  with directory as run:
    return train(config, objective, estimator, task, texts, model, reward, run)


def check(config: Config) -> None:
  """Raises ValueError for settings that cannot work, alone or together."""
  positive = ("steps", "prompts", "group_size", "max_prompt_tokens", "max_new_tokens", "epochs", "minibatches",
              "microbatches", "ptx_prompts", "kl_horizon")  # fmt: skip
  require_at_least(config, 1, positive)
  not_negative = ("warmup", "checkpoint_every", "seed", "learning_rate", "critic_rate", "max_grad_norm", "kl_coef",
                  "value_coef", "value_clip", "spread", "reward_clip", "missing_eos_penalty", "lora_rank",
                  "max_kl", "ptx_coef", "kl_low")  # fmt: skip
  require_at_least(config, 0, not_negative)
  for name, among in (("critic", ("own", "reward", "shared")), ("kl_estimator", ("k1", "k2", "k3")),
                      ("kl_control", ("fixed", "adaptive", "band"))):  # fmt: skip
    if getattr(config, name) not in among:
      raise ValueError(f"{name} must be one of {', '.join(among)}, got {getattr(config, name)!r}")
  if not (0 <= config.gamma <= 1 and 0 <= config.lam <= 1):
    raise ValueError(f"gamma and lam must be between 0 and 1, got {config.gamma} and {config.lam}")
  if config.temperature <= 0 or not config.kl_low < config.kl_high or config.kl_target <= 0:
    raise ValueError("temperature and kl_target must be positive, and kl_low below kl_high")
  if config.critic == "reward" and not config.reward_model:
    raise ValueError("critic 'reward' needs a reward_model to start from")
  if config.clip is not None and not config.clip > 0:
    raise ValueError(f"clip must be positive, got {config.clip}")
  if config.kl_control != "fixed" and config.kl_coef == 0:
    raise ValueError(f"kl_control {config.kl_control!r} needs a kl_coef above 0 to begin with")
  extra = config.ptx_prompts if config.objective == "instruct_gpt" else 0
  parts = config.minibatches * config.microbatches * jax.device_count()
  if (config.prompts + extra) % parts or config.prompts % jax.device_count():
    raise ValueError(f"prompts (and ptx_prompts) must be a multiple of minibatches * microbatches * devices = {parts}")


def choose(config: Config) -> tuple[Objective, estimates.Estimate]:
  """The objective by name, with those of the settings that it takes, and its estimator."""
  if config.objective not in objectives.names():
    raise ValueError(f"unknown objective {config.objective!r}; there are {', '.join(objectives.names())}")
  module = importlib.import_module(f"rl_jax.objectives.{config.objective}")
  if not hasattr(module, "estimator"):
    raise ValueError(f"objective {config.objective!r} does not learn from rewards")
  if config.objective == "vapo":
    raise ValueError("objective 'vapo' imitates solved completions, which only compiled runs know")
  if config.objective == "instruct_gpt" and not config.ptx_data:
    raise ValueError("objective 'instruct_gpt' needs ptx_data, a file of pretraining text")
  # A KL is paid in the reward, so none is in the loss.
  given = dict(value_coef=config.value_coef, value_clip=config.value_clip, ptx_coef=config.ptx_coef, kl_coef=0,
               length=config.max_new_tokens)  # fmt: skip
  if config.clip is not None:
    given |= dict(clip_low=config.clip, clip_high=config.clip)
  taken = inspect.signature(module.objective).parameters
  objective = module.objective(**{name: value for name, value in given.items() if name in taken})
  estimator = module.estimator
  if estimator is returns.gae:
    estimator = partial(estimator, gamma=config.gamma, lam=config.lam)
  return objective, estimates.adapt(estimator, whiten=config.whiten)


def read_texts(path: str) -> list[str]:
  rows = files.read(Path(path))
  for place, row in rows:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
      raise ValueError(f"{path}, {place}: no column 'text'")
  return [row["text"] for _, row in rows]


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


def train(
  config: Config, objective: Objective, estimate: estimates.Estimate, task: tasks.Task, texts: list[str],
  model: presets.Model, reward: RewardModel | None, run: RunDirectory,
) -> Path:  # fmt: skip
  mesh, counter = parallel.make_mesh(), CompileCounter()
  place = partial(parallel.shard_rows, mesh=mesh)
  critic = config.critic if {"values", "old_values"} & (objective.needs | estimate.needs) else "none"
  kinds = ["policy", *(["critic"] if critic != "none" else []), *(["reward model"] if reward else [])]
  size = f"{model.num_params / 1e6:.1f} M parameters"
  print(f"{config.model}: {size}; {', '.join(kinds)}; task {task.name}; {config.run_dir}", flush=True)

  # Actor and critic, the optimiser, and the update step over all devices.
  adapters: Any = dict(lora_rank=config.lora_rank, lora_alpha=config.lora_alpha)
  parts = assemble(model, critic, reward, temperature=config.temperature, **adapters)
  tx = make_optimiser(config)
  step = make_train_step(parts.score, objective, tx, microbatches=config.microbatches, frozen=parts.frozen)
  plain_score = jax.jit(counter.count(make_score(model.policy, temperature=config.temperature)))

  def reference(state: RLState, sequences: Sequences) -> Any:
    """The initial policy: a copy, or under adapters the base that they are added to."""
    return plain_score(state.policy.params["base"] if config.lora_rank else state.ref_params, sequences).logp

  # Rollouts: prompts in, completions with token rewards and advantages out. And evaluation, greedy.
  sizes: Any = dict(max_new_tokens=config.max_new_tokens, pad_token=text.pad_token(model.tokenizer))
  generators = [make_generate(model.policy, group_size=group, **sizes) for group in (config.group_size, 1)]
  sample, answer = (
    jax.jit(counter.count(lambda params, *rest, make=make: make(parts.policy(params), *rest))) for make in generators
  )
  stop_tokens = text.stop_tokens(model.tokenizer, config.stop or task.stop, model.eos_tokens)
  prompts: Any = dict(tokenizer=model.tokenizer, stop_tokens=stop_tokens, max_prompt_tokens=config.max_prompt_tokens)
  judge = None if reward is None else partial(jax.jit(make_last_value(reward.model)), reward.params)
  collect = rollout.make_collect(
    task=task,
    generate=sample,
    answer=answer,
    score=jax.jit(counter.count(parts.score)),
    objective=objective,
    estimator=estimate,
    shaping=Shaping(
      spread=config.spread or None,
      kl=getattr(kl, config.kl_estimator) if config.kl_coef else None,
      missing_eos_penalty=config.missing_eos_penalty,
      clip=config.reward_clip or None,
    ),
    reward_model=judge,
    reference=reference,
    values=None if parts.values is None else jax.jit(parts.values),
    last_value=jax.jit(parts.last_value) if config.bootstrap and parts.last_value is not None else None,
    control=make_controller(config),
    sampler=samplers.Sampler(config.temperature),
    prompts_per_batch=config.prompts,
    on_policy=config.epochs * config.minibatches == 1,
    mask_truncated=config.mask_truncated,
    place=place,
    **prompts,
  )
  if texts:
    stream: Any = dict(prompts=config.ptx_prompts, group_size=config.group_size, length=config.max_new_tokens)
    collect = pretraining.with_text(
      collect, pretraining.make_stream(texts, model.tokenizer, seed=config.seed, **stream)
    )
  # Rewards that are only logged are what evaluation shows, where there are no others.
  logged_only = not any(each.weight for each in task.rewards)
  measured = task._replace(rewards=tuple(e._replace(weight=1.0) for e in task.rewards)) if logged_only else task

  def test(state: RLState) -> Evaluation:
    return evaluate(state.policy.params, task=measured, generate=answer, **prompts)

  def create(start: Any, key: jax.Array) -> RLState:
    build_key, run_key = jax.random.split(key)
    return RLState.create(
      parts.build(start, build_key), tx, run_key,
      keep_reference=not config.lora_rank and ("ref_logp" in objective.needs or config.kl_coef > 0),
      reference=parts.policy, frozen=parts.frozen, kl_coef=config.kl_coef or None,
      reward_moments=Moments.zero() if config.normalize_rewards else None,
    )  # fmt: skip

  def enough(metrics: dict[str, float]) -> bool:
    return any(value > config.max_kl for name, value in metrics.items() if name.endswith("approx_kl"))

  state = parallel.build_replicated(create, mesh)(model.params, jax.random.key(config.seed))
  model = model._replace(params=None)
  state, done = loop.train(
    state,
    run=run,
    test=test,
    steps=config.steps,
    collect=collect,
    update=parallel.jit_step(counter.count(step), mesh),
    checkpoint_every=config.checkpoint_every,
    epochs=config.epochs,
    minibatches=config.minibatches,
    place=place,
    compiles=counter.total,
    enough=enough if config.max_kl else None,
  )
  exit_if_stopped(MODULE, config, done)
  if config.lora_rank:
    trained = state.policy.params["adapters"]
    lora.save_peft(run.folder / "adapters", trained, alpha=config.lora_alpha, base_model=config.model)
  weights.save_safetensors(
    run.folder / "model", jax.jit(parts.policy)(state.policy.params), model.config, model.hf, model.tokenizer,
    eos_tokens=model.eos_tokens,
  )  # fmt: skip
  report.show(run.folder)
  return run.folder / "model"


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
