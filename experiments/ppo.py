"""Train a language model by PPO: actor, critic, a frozen reference, and a reward model or reward functions or both.

    python -m experiments.ppo --reward-model runs/reward_model/model --task prompts.jsonl
    python -m experiments.ppo --task arithmetic --critic shared                  # reward functions, one trunk
    python -m experiments.ppo --objective instruct_gpt --ptx-data pages.jsonl    # PPO-ptx
    python -m experiments.ppo --objective reinforce_plus_plus                    # no critic
    python -m experiments.ppo --objective rloo --epochs 1 --minibatches 1        # reinforce, remax: no ratio either
    python -m experiments.ppo --model tiny --steps 2                             # a smoke test

The reward of a token is minus the KL to the initial model there, and the completion's score at its end, or with
`--process` that of each step at the step's end. What is trained together is one dict of parameters: `policy` (or `base`
and `adapters`), and `critic` or `value_head`.

How it differs from the papers (arXiv:1909.08593, 2203.02155): smaller batches and larger learning rates. Old log-probs
are those of the sampler, which computes them in float32 of the distribution that it samples from.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.actors import RewardModel, assemble, load_reward_model, make_learner
from experiments.ppo_settings import Config, check, choose, make_controller, make_enough, make_optimiser
from rl_jax import tasks
from rl_jax.analysis import report
from rl_jax.models import heads, presets
from rl_jax.objectives.base import Objective
from rl_jax.ops import kl
from rl_jax.ops.moments import Moments
from rl_jax.sampling import samplers
from rl_jax.sampling.generate import make_generate
from rl_jax.tasks import files, rewards
from rl_jax.train import estimates, loop, parallel, pretraining, rollout, text
from rl_jax.train.compiles import CompileCounter
from rl_jax.train.evaluate import Evaluation, evaluate
from rl_jax.train.metrics_io import RunDirectory
from rl_jax.train.score import Sequences, make_last_value, make_score, make_step_values
from rl_jax.train.settings import exit_if_stopped, run_script
from rl_jax.train.shaping import Shaping
from rl_jax.train.state import RLState
from rl_jax.train.step import make_train_step

MODULE = "experiments.ppo"


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  check(config)
  objective, estimate = choose(config)
  functions = rewards.from_paths(config.rewards, config.reward_weights)
  task = tasks.load(config.task, config.task_options, rewards=functions, seed=config.seed)
  settings = dataclasses.asdict(config) | {"data": task.fingerprint}
  if config.ptx_data:
    settings["ptx_data"] = files.fingerprint(Path(config.ptx_data))
  if "target_mask" in objective.needs and not config.ptx_data and task.solved is None:
    raise ValueError(f"objective {config.objective!r} imitates solved completions; task {task.name!r} knows of none")
  if config.reward_model:
    settings["reward_model"] = [config.reward_model, heads.fingerprint(config.reward_model)]
  directory = RunDirectory(config.run_dir, settings, resume=config.resume)
  model = presets.load(config.model, remat=config.remat)
  length = config.max_prompt_tokens + config.max_new_tokens
  presets.check_context(model, max(length, config.ptx_tokens + 1))
  reward, judge = None, None
  stop_tokens = text.stop_tokens(model.tokenizer, config.stop or task.stop, model.eos_tokens)
  if config.reward_model:
    reward = load_reward_model(config.reward_model, model.tokenizer, max_tokens=length, remat=config.remat)
    judge = make_judge(config, model, reward, stop_tokens)
  rewards.check_any(task.rewards, judge is not None)
  stream = make_stream(config, model) if config.ptx_data else None
  with directory as run:
    return train(config, objective, estimate, task, stream, model, reward, judge, run)


def make_stream(config: Config, model: presets.Model) -> pretraining.Stream:
  """Pieces of the pretraining text."""
  rows = files.read(Path(config.ptx_data))
  for place, row in rows:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
      raise ValueError(f"{config.ptx_data}, {place}: no column 'text'")
  first = text.one_token(model.tokenizer, config.ptx_start, "ptx_start") if config.ptx_start else None
  return pretraining.make_stream(
    [row["text"] for _, row in rows],
    model.tokenizer,
    prompts=config.ptx_prompts,
    group_size=config.group_size,
    length=config.ptx_tokens,
    seed=config.seed,
    first=first,
  )


def make_judge(
  config: Config, model: presets.Model, reward: RewardModel, stop_tokens: np.ndarray
) -> Callable[[Sequences], jax.Array]:
  """The reward model's scores, of completions or of the steps in them."""
  read = make_last_value(reward.model)
  if config.process:
    end = text.one_token(model.tokenizer, config.process, "process")
    read = make_step_values(reward.model, end=end, stop_tokens=stop_tokens.tolist())
  return partial(jax.jit(read), reward.params)


def train(
  config: Config,
  objective: Objective,
  estimate: estimates.Estimate,
  task: tasks.Task,
  stream: pretraining.Stream | None,
  model: presets.Model,
  reward: RewardModel | None,
  judge: Callable[[Sequences], jax.Array] | None,
  run: RunDirectory,
) -> Path:
  mesh, counter = parallel.make_mesh(), CompileCounter()
  place = partial(parallel.shard_rows, mesh=mesh)
  critic = config.critic if {"values", "old_values"} & (objective.needs | estimate.needs) else "none"
  kinds = ["policy", *(["critic"] if critic != "none" else []), *(["reward model"] if reward else [])]
  size = f"{model.num_params / 1e6:.1f} M parameters"
  print(f"{config.model}: {size}; {', '.join(kinds)}; task {task.name}; {config.run_dir}", flush=True)

  # Actor and critic, the optimiser, and the update step over all devices.
  learner = make_learner(config.model, config.lora_rank, config.lora_alpha)
  actors = assemble(model, learner, critic, reward, temperature=config.temperature, bootstrap=config.bootstrap)
  tx = make_optimiser(config)
  step = make_train_step(actors.score, objective, tx, microbatches=config.microbatches, frozen=learner.frozen)
  plain_score = jax.jit(counter.count(make_score(model.policy, temperature=config.temperature)))

  # Rollouts: prompts in, completions with token rewards and advantages out.
  sizes: Any = dict(max_new_tokens=config.max_new_tokens, pad_token=text.pad_token(model.tokenizer))
  sample, answer = (
    jax.jit(counter.count(learner.on(make_generate(model.policy, group_size=group, **sizes))))
    for group in (config.group_size, 1)
  )
  stop_tokens = text.stop_tokens(model.tokenizer, config.stop or task.stop, model.eos_tokens)
  shared: Any = dict(
    tokenizer=model.tokenizer, stop_tokens=stop_tokens, max_prompt_tokens=config.max_prompt_tokens, reward_model=judge
  )
  kl_in_reward = config.kl_coef > 0 and config.kl_place == "reward"
  collect = rollout.make_collect(
    task=task,
    generate=sample,
    answer=answer,
    score=jax.jit(counter.count(actors.score)),
    objective=objective,
    estimator=estimate,
    shaping=Shaping(
      spread=config.spread or None,
      kl=getattr(kl, config.kl_estimator) if kl_in_reward else None,
      missing_eos_penalty=config.missing_eos_penalty,
      clip=config.reward_clip or None,
    ),
    reference=lambda state, sequences: plain_score(learner.initial(state), sequences).logp,
    values=None if actors.values is None else jax.jit(counter.count(actors.values)),
    control=make_controller(config),
    sampler=samplers.Sampler(config.temperature),
    prompts_per_batch=config.prompts,
    on_policy=config.epochs * config.minibatches == 1,
    mask_truncated=config.mask_truncated,
    place=place,
    **shared,
  )
  if stream is not None:
    collect = pretraining.with_text(collect, stream)
  # Rewards that are only logged are what evaluation shows, where there are no others.
  logged_only = not any(each.weight for each in task.rewards)
  measured = task._replace(rewards=tuple(e._replace(weight=1.0) for e in task.rewards)) if logged_only else task

  def test(state: RLState) -> Evaluation:
    return evaluate(state.policy.params, task=measured, generate=answer, **shared)

  def create(start: Any, key: jax.Array) -> RLState:
    build_key, run_key = jax.random.split(key)
    return RLState.create(
      actors.build(start, build_key),
      tx,
      run_key,
      reference=learner.policy,
      frozen=learner.frozen,
      keep_reference=not learner.frozen and ("ref_logp" in objective.needs or kl_in_reward),
      kl_coef=config.kl_coef if kl_in_reward else None,
      reward_moments=Moments.zero() if config.normalize_rewards else None,
    )

  # Everything runs; the state takes the place of the model's parameters.
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
    enough=make_enough(config),
  )
  exit_if_stopped(MODULE, config, done)
  learner.save(run.folder, model, state.policy.params)
  report.show(run.folder)
  return run.folder / "model"


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
