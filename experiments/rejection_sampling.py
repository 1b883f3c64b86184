"""Learn from the best of a policy's own samples: rejection sampling (expert iteration), or online DPO.

    python -m experiments.rejection_sampling                                     # imitate the best of 8
    python -m experiments.rejection_sampling --method prefer                     # online DPO: best over worst
    python -m experiments.rejection_sampling --reward-model runs/reward_model/model --task prompts.jsonl
    python -m experiments.rejection_sampling --model tiny --steps 2

Every rollout samples a group of completions to each prompt and judges them by reward functions, a reward model, or
both.

References: H. Dong et al., "RAFT", arXiv:2304.06767; S. Guo et al., "Direct Language Model Alignment from Online AI
Feedback", arXiv:2402.04792.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax

from experiments.actors import create_state, load_reward_model, make_learner
from rl_jax import tasks
from rl_jax.analysis import report
from rl_jax.models import heads, presets
from rl_jax.objectives import dpo, sft
from rl_jax.sampling import samplers
from rl_jax.sampling.generate import make_generate
from rl_jax.tasks import rewards
from rl_jax.train import loop, parallel, rollout, selected, text
from rl_jax.train.compiles import CompileCounter
from rl_jax.train.evaluate import Evaluation, evaluate
from rl_jax.train.metrics_io import RunDirectory
from rl_jax.train.score import RewardModel, make_last_value, make_score
from rl_jax.train.settings import (
  check_adapters,
  exit_if_stopped,
  refuse,
  require_at_least,
  require_one_of,
  require_positive,
  run_script,
)
from rl_jax.train.state import RLState
from rl_jax.train.step import make_train_step

MODULE = "experiments.rejection_sampling"


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "smollm2"  # smollm2, tiny, small, a folder in Hugging Face's format, or a .gguf file
  task: str = "arithmetic"  # arithmetic, reasoning_gym/<dataset>, or a .jsonl or .parquet file
  task_options: tuple[str, ...] = ()  # the task's settings, such as digits=3
  rewards: tuple[str, ...] = ()  # reward functions, such as my_module:reward; they replace the task's own
  reward_weights: tuple[float, ...] = ()  # one a reward function; all 1 by default
  reward_model: str = ""  # folder of a model from experiments.reward_model, whose score is added; none by default
  method: str = "imitate"  # imitate: cross-entropy on the best; prefer: DPO on the best and the worst
  best: int = 1  # completions of a group to imitate
  above: float = float("-inf")  # imitate only completions with a higher reward than this
  beta: float = 0.1  # of DPO: strength of the pull towards the initial model
  run_dir: str = "runs/rejection_sampling"  # configuration, metrics, samples, checkpoints, plot and the trained model
  resume: bool = False  # go on with the run in run_dir
  steps: int = 32  # rollouts
  prompts: int = 16  # prompts a rollout
  group_size: int = 8  # completions a prompt
  max_prompt_tokens: int = 512  # longer prompts are passed over
  max_new_tokens: int = 5  # longest completion
  stop: tuple[str, ...] = ()  # texts of one token that end a completion; they replace the task's own
  temperature: float = 1.0  # of sampling and of every log-prob
  lora_rank: int = 0  # above 0: train adapters of this rank alone
  lora_alpha: float = 32.0  # the adapters' update is multiplied by alpha / rank
  learning_rate: float = 8e-6  # of AdamW, after warm-up; about 1e-4 for adapters
  warmup: int = 3  # updates over which the learning rate rises
  max_grad_norm: float = 1.0  # gradients are scaled down to this norm
  epochs: int = 1  # passes over a rollout
  minibatches: int = 1  # updates a pass
  microbatches: int = 1  # slices an update's gradient is accumulated over, to save memory
  remat: bool = False  # compute activations again in the backward pass, to save memory
  checkpoint_every: int = 16  # rollouts between checkpoints, besides one at the end; 0 for none
  seed: int = 0  # of data and sampling


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  require_at_least(
    config,
    1,
    ("steps", "prompts", "max_prompt_tokens", "max_new_tokens", "epochs", "minibatches", "microbatches", "best"),
  )
  require_at_least(config, 0, ("warmup", "checkpoint_every", "seed", "learning_rate"))
  require_positive(config, ("temperature", "beta", "max_grad_norm"))
  check_adapters(config)
  require_one_of(config, {"method": ("imitate", "prefer")})
  refuse(config, ("beta",) if config.method == "imitate" else ("best", "above"), f"method {config.method!r}")
  if config.group_size < max(2, config.best):
    raise ValueError(f"group_size must be at least 2 and no less than best, got {config.group_size}")
  parts = config.minibatches * config.microbatches * jax.device_count()
  if config.prompts % parts:
    raise ValueError(f"prompts must be a multiple of minibatches * microbatches * devices = {parts}")
  functions = rewards.from_paths(config.rewards, config.reward_weights)
  task = tasks.load(config.task, config.task_options, rewards=functions, seed=config.seed)
  settings = dataclasses.asdict(config) | {"data": task.fingerprint, "above": str(config.above)}
  if config.reward_model:
    settings["reward_model"] = [config.reward_model, heads.fingerprint(config.reward_model)]
  directory = RunDirectory(config.run_dir, settings, resume=config.resume)
  model = presets.load(config.model, remat=config.remat)
  length = config.max_prompt_tokens + config.max_new_tokens
  presets.check_context(model, length)
  judge = None
  if config.reward_model:
    reward = load_reward_model(config.reward_model, model.tokenizer, max_tokens=length)
    judge = partial(jax.jit(make_last_value(reward.model)), reward.params)
  rewards.check_any(task.rewards, judge is not None)
  with directory as run:
    return train(config, task, model, judge, run)


def train(config: Config, task: tasks.Task, model: presets.Model, judge: RewardModel | None, run: RunDirectory) -> Path:
  mesh, counter = parallel.make_mesh(), CompileCounter()
  place = partial(parallel.shard_rows, mesh=mesh)
  objective = sft.objective() if config.method == "imitate" else dpo.objective(beta=config.beta)
  rate = optax.linear_schedule(config.learning_rate / (config.warmup + 1), config.learning_rate, config.warmup)
  tx = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adamw(rate, weight_decay=0.0))
  learner = make_learner(config.model, config.lora_rank, config.lora_alpha)
  plain_score = make_score(model.policy, temperature=config.temperature)
  score, initial_score = learner.on(plain_score), jax.jit(counter.count(plain_score))
  step = make_train_step(score, objective, tx, microbatches=config.microbatches, frozen=learner.frozen)

  # Rollouts: a group of completions with rewards, and of these what is learnt. And evaluation, greedy.
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
    objective=sft.objective(),  # what is sampled needs no other pass
    sampler=samplers.Sampler(config.temperature),
    prompts_per_batch=config.prompts,
    place=place,
    reward_model=judge,
    **prompts,
  )
  if config.method == "imitate":
    collect = selected.imitate(collect, n=config.best, above=config.above)
  else:
    collect = selected.prefer(collect, lambda state, chosen: initial_score(learner.initial(state), chosen).logp)

  def test(state: RLState) -> Evaluation:
    return evaluate(state.policy.params, generate=answer, reward_model=judge, **prompts)

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
  return run.folder / "model"


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
