"""Proximal Policy Optimization with a critic, a reference, and rewards from a reward model, functions, or both.

    python -m experiments.ppo                                                    # SmolLM2-135M and two-digit sums
    python -m experiments.ppo --reward-model runs/reward_model/model --critic reward --task prompts.jsonl
    python -m experiments.ppo --objective ppo_kl --beta-target 0.01              # a penalty that adapts, no clip
    python -m experiments.ppo --objective instruct_gpt --ptx-data text.jsonl     # PPO-ptx
    python -m experiments.ppo --objective rloo --epochs 1 --minibatches 1        # without a critic
    python -m experiments.ppo --objective my_module:objective                    # one of yours
    python -m experiments.ppo --model tiny --steps 2                             # a smoke test

Policy, critic and reference are functions of one dict of parameters. The KL to the reference is paid token by token in
the reward, or it is a term of the loss. Old log-probs are those that the sampler recorded: at a temperature without
filters they are those of the distribution that it samples from.
"""

from pathlib import Path

import jax

from experiments.configs import load_reward
from experiments.ppo_configs import Config, load_algorithm
from rl_jax import objectives
from rl_jax.devices import Devices
from rl_jax.models import presets
from rl_jax.rollouts import pretraining
from rl_jax.rollouts.experience import check_needs
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.settings import run_script
from rl_jax.sampling.samplers import SamplingParams
from rl_jax.tasks import rewards
from rl_jax.tasks.text import Prompts
from rl_jax.train import control, loop
from rl_jax.train.actors import Actors, Learner, LoadedReward, create_state, make_actors
from rl_jax.train.step import make_train_step
from rl_jax.train.text_rollouts import TextRollouts, make_text_rollouts

MODULE = "experiments.ppo"


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  config.check()
  algorithm, task = load_algorithm(config), config.load_task(config.seed)
  if "target_mask" in algorithm.needs and not config.ptx_data and task.solved is None:
    raise ValueError(f"objective {config.objective!r} imitates solved completions; task {task.name!r} knows of none")
  settings = {"data_fingerprint": task.fingerprint}
  if (texts := config.read_texts()) is not None:
    settings["ptx_fingerprint"] = texts.fingerprint
  directory = config.directory(**settings)
  model = config.load_model(max(config.max_tokens, config.ptx_tokens + 1))
  reader = config.make_reader(model)
  stream = config.make_stream(texts, reader, group_size=config.group_size, seed=config.seed)
  reward = load_reward(config, model)
  rewards.check_any(task.rewards, reward is not None)
  prompts = config.make_prompts(task, reader)
  with directory as run:
    return train(config, algorithm, prompts, stream, model, reward, run)


def train(
  config: Config,
  algorithm: objectives.Algorithm,
  prompts: Prompts,
  stream: pretraining.Stream | None,
  model: presets.Model,
  reward: LoadedReward | None,
  run: RunDirectory,
) -> Path:
  devices, learner = Devices(), config.make_learner(model)
  needs, critic = check_needs(algorithm), config.critic if algorithm.needs_values else "none"
  kinds = f"policy{', critic' * (critic != 'none')}{', reward model' * (reward is not None)}"
  size = f"{model.num_params / 1e6:.1f} M parameters"
  print(f"{config.model}: {size}; {kinds}; task {prompts.task.name}; {config.run_dir}", flush=True)

  # Actor and critic, the optimizer, and the update step.
  actors = make_actors(learner, critic, reward, temperature=config.temperature, bootstrap=config.bootstrap)
  part_rates = {"critic": config.critic_rate, "value_head": config.critic_rate}
  optimizer = config.make_optimizer(warmup_steps=config.warmup_steps, part_rates=part_rates)
  step = make_train_step(
    actors.forward, algorithm.objective, optimizer, microbatches=config.microbatches, frozen=learner.frozen
  )
  parts = config.microbatches * config.minibatches
  moves = control.make_control(actors.forward, config.controllers, microbatches=parts)

  # Rollouts: prompts in, completions with token rewards and advantages out. And evaluation, greedy.
  rollouts = make_rollouts(config, algorithm, prompts, learner, actors, reward, devices)
  collect = rollouts.collect if stream is None else pretraining.with_text(rollouts.collect, stream)

  # The state, built around the model's parameters, whose place it takes; then everything runs.
  create = create_state(
    learner,
    optimizer,
    init=actors.init,
    keep_reference="ref_logp" in algorithm.needs or config.kl_in_reward,
    coefficients=config.coefficients(algorithm),
    reward_moments=config.reward_moments,
    needs=needs,
  )
  state, model = devices.build(create, model.params, jax.random.key(config.seed)), model._replace(params=None)
  state, done = loop.train(
    state,
    run=run,
    evaluate=rollouts.evaluate,
    collect=collect,
    update=devices.step(step),
    schedule=config.schedule,
    stop_updates=loop.stop_above(config.target_kl) if config.target_kl else None,
    control=devices.jit(moves, donate_argnums=0) if config.controllers else None,
    **config.loop_settings(devices, learner),
  )
  return config.finish(MODULE, run, learner, state.policy.params, done)


def make_rollouts(
  config: Config,
  algorithm: objectives.Algorithm,
  prompts: Prompts,
  learner: Learner,
  actors: Actors,
  reward: LoadedReward | None,
  devices: Devices,
) -> TextRollouts:
  return make_text_rollouts(
    prompts,
    learner,
    algorithm,
    devices,
    sampling=SamplingParams(config.temperature),
    schedule=config.schedule,
    shaping=config.shaping(config.kl_function if config.kl_in_reward else None),
    reward_model=reward and config.make_reward_model(prompts, reward, devices),
    values=actors.values,
    mask_truncated=config.mask_truncated,
    **config.sizes,
  )


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
