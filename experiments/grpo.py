"""Train a language model by GRPO on a task with verifiable rewards.

    python -m experiments.grpo                                     # SmolLM2-135M learns two-digit sums, on a CPU
    python -m experiments.grpo --model tiny --steps 2              # a smoke test
    python -m experiments.grpo --model path/to/folder --task reasoning_gym/chain_sum --max-new-tokens 64
    python -m experiments.grpo --task data.jsonl --rewards my_module:reward
    python -m experiments.grpo --run-dir runs/grpo --resume        # go on with a run that was stopped

How it differs from the paper (arXiv:2402.03300): smaller batches, a larger learning rate and a smaller KL weight.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import optax

from experiments.actors import create_state, make_learner
from rl_jax import tasks
from rl_jax.analysis import report
from rl_jax.models import presets
from rl_jax.objectives import grpo
from rl_jax.sampling import samplers
from rl_jax.sampling.generate import make_generate
from rl_jax.tasks import rewards
from rl_jax.train import loop, parallel, rollout, text
from rl_jax.train.compiles import CompileCounter
from rl_jax.train.evaluate import Evaluation, evaluate
from rl_jax.train.metrics_io import RunDirectory
from rl_jax.train.score import make_score
from rl_jax.train.settings import (
  check_adapters,
  command_line,
  exit_if_stopped,
  require_at_least,
  require_positive,
  run_script,
)
from rl_jax.train.state import RLState
from rl_jax.train.step import make_train_step

MODULE = "experiments.grpo"


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "smollm2"  # smollm2, tiny, a folder in Hugging Face's format, or a .gguf file
  task: str = "arithmetic"  # arithmetic, reasoning_gym/<dataset>, or a .jsonl or .parquet file
  task_options: tuple[str, ...] = ()  # the task's settings, such as digits=3
  rewards: tuple[str, ...] = ()  # reward functions, such as my_module:reward; they replace the task's own
  reward_weights: tuple[float, ...] = ()  # one a reward function; all 1 by default
  run_dir: str = "runs/grpo"  # configuration, metrics, samples, checkpoints, plot and the trained model
  resume: bool = False  # go on with the run in run_dir
  steps: int = 32  # rollouts
  prompts: int = 16  # prompts a rollout
  group_size: int = 8  # completions a prompt
  max_prompt_tokens: int = 512  # longer prompts are passed over
  max_new_tokens: int = 5  # longest completion
  stop: tuple[str, ...] = ()  # texts of one token that end a completion; they replace the task's own
  temperature: float = 1.0  # of sampling and of every log-prob
  top_k: int | None = None  # sample from the k likeliest tokens only
  top_p: float | None = None  # sample from the likeliest tokens that add up to this probability only
  min_p: float | None = None  # sample only tokens at least this likely, relative to the likeliest
  lora_rank: int = 0  # above 0: train adapters of this rank alone
  lora_alpha: float = 32.0  # the adapters' update is multiplied by alpha / rank
  learning_rate: float = 8e-6  # of AdamW, after warm-up; about 1e-4 for adapters
  warmup: int = 3  # updates over which the learning rate rises
  weight_decay: float = 0.0  # of AdamW
  max_grad_norm: float = 1.0  # gradients are scaled down to this norm
  clip_low: float = 0.2  # the ratio's gradient stops below 1 - clip_low
  clip_high: float = 0.2  # and above 1 + clip_high
  kl_coef: float = 0.01  # weight of the KL to the initial model; above 0 a copy of it is kept
  epochs: int = 1  # passes over a rollout
  minibatches: int = 2  # updates a pass
  microbatches: int = 1  # slices an update's gradient is accumulated over, to save memory
  recompute_old_logp: bool = False  # with several updates a rollout: old log-probs from a pass, not from the sampler
  max_draws: int = 1  # above 1: draw prompts up to so many times, until all groups have rewards that differ
  mask_truncated: bool = False  # leave completions that were cut off out of the loss
  remat: bool = False  # compute activations again in the backward pass, to save memory
  checkpoint_every: int = 16  # rollouts between checkpoints, besides one at the end; 0 for none
  seed: int = 0  # of data and sampling


def main(config: Config) -> None:
  sampler = samplers.Sampler(config.temperature, config.top_k, config.top_p, config.min_p)
  samplers.check(sampler)
  check(config)
  functions = rewards.from_paths(config.rewards, config.reward_weights)
  task = tasks.load(config.task, config.task_options, rewards=functions, seed=config.seed)
  settings = dataclasses.asdict(config) | {"data": task.fingerprint}
  directory = RunDirectory(config.run_dir, settings, resume=config.resume)
  model = presets.load(config.model, remat=config.remat)
  presets.check_context(model, config.max_prompt_tokens + config.max_new_tokens)
  with directory as run:
    train(config, sampler, task, model, run)


def check(config: Config) -> None:
  """Raises ValueError for settings that cannot work, alone or together."""
  positive = (
    "steps",
    "prompts",
    "max_prompt_tokens",
    "max_new_tokens",
    "max_draws",
    "epochs",
    "minibatches",
    "microbatches",
  )
  require_at_least(config, 1, positive)
  not_negative = ("warmup", "checkpoint_every", "seed", "learning_rate", "weight_decay", "kl_coef")
  require_at_least(config, 0, not_negative)
  require_positive(config, ("max_grad_norm",))
  check_adapters(config)
  if config.group_size < 2 or config.temperature == 0:
    raise ValueError("group_size must be at least 2 and temperature positive: equal completions have no advantage")
  parts = config.minibatches * config.microbatches * jax.device_count()
  if config.prompts % parts:
    raise ValueError(f"prompts must be a multiple of minibatches * microbatches * devices = {parts}")


def train(config: Config, sampler: samplers.Sampler, task: tasks.Task, model: presets.Model, run: RunDirectory) -> None:
  mesh, counter = parallel.make_mesh(), CompileCounter()
  place = partial(parallel.shard_rows, mesh=mesh)
  size = f"{model.num_params / 1e6:.1f} M parameters"
  print(f"{config.model}: {size} on {mesh.size} device(s); task {task.name}; {config.run_dir}", flush=True)

  # The objective, the optimiser that minimises it, and the update step over all devices.
  objective = grpo.objective(clip_low=config.clip_low, clip_high=config.clip_high, kl_coef=config.kl_coef)
  rate = optax.linear_schedule(config.learning_rate / (config.warmup + 1), config.learning_rate, config.warmup)
  adamw = optax.adamw(rate, weight_decay=config.weight_decay)
  tx = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)
  learner = make_learner(config.model, config.lora_rank, config.lora_alpha)
  plain_score = make_score(model.policy, temperature=config.temperature)
  score, initial_score = learner.on(plain_score), jax.jit(counter.count(plain_score))
  step = make_train_step(score, objective, tx, microbatches=config.microbatches, frozen=learner.frozen)

  # Rollouts: prompts in, completions with advantages out. And evaluation, greedy, one completion a prompt.
  sizes: Any = dict(max_new_tokens=config.max_new_tokens, pad_token=text.pad_token(model.tokenizer))
  sample, answer = (
    jax.jit(counter.count(learner.on(make_generate(model.policy, group_size=size, **sizes))))
    for size in (config.group_size, 1)
  )
  stop_tokens = text.stop_tokens(model.tokenizer, config.stop or task.stop, model.eos_tokens)
  prompts: Any = dict(
    task=task, tokenizer=model.tokenizer, stop_tokens=stop_tokens, max_prompt_tokens=config.max_prompt_tokens
  )
  collect = rollout.make_collect(
    generate=sample,
    score=jax.jit(counter.count(score)),
    reference=lambda state, sequences: initial_score(learner.initial(state), sequences).logp,
    objective=objective,
    sampler=sampler,
    prompts_per_batch=config.prompts,
    on_policy=config.epochs * config.minibatches == 1,
    recompute_old_logp=config.recompute_old_logp,
    mask_truncated=config.mask_truncated,
    max_draws=config.max_draws,
    place=place,
    **prompts,
  )

  def test(state: RLState) -> Evaluation:
    return evaluate(state.policy.params, generate=answer, **prompts)

  # The state, built around the model's parameters, whose place it takes; then everything runs.
  create = partial(create_state, learner=learner, tx=tx, with_reference="ref_logp" in objective.needs)
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
  )
  exit_if_stopped(MODULE, config, done)
  learner.save(run.folder, model, state.policy.params)
  report.show(run.folder)
  harder = dict(task_options=("digits=3",), max_new_tokens=6) if config.task == "arithmetic" else {}
  further = dict(model=f"{run.folder}/model", run_dir=f"{run.folder}-next", resume=False)
  print(f"next:\n  {command_line(MODULE, config, **further, **harder)}")


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
