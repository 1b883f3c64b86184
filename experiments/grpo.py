"""Train a language model on a task with verifiable rewards, by GRPO or any other objective that needs no critic.

    python -m experiments.grpo                                     # SmolLM2-135M learns two-digit sums, on a CPU
    python -m experiments.grpo --model tiny --steps 2              # a smoke test
    python -m experiments.grpo --objective dapo --clip-high 0.3    # a name from `python -m rl_jax.objectives`
    python -m experiments.grpo --objective my_module:objective     # an objective of yours
    python -m experiments.grpo --model path/to/folder --task reasoning_gym/chain_sum --max-new-tokens 64
    python -m experiments.grpo --task data.jsonl --rewards my_module:reward
    python -m experiments.grpo --resume runs/grpo                  # go on with a run that was stopped

How it differs from the paper (arXiv:2402.03300): smaller batches, a larger learning rate and a smaller KL weight.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from experiments.configs import ModelConfig, OptimizerConfig, RolloutConfig, RunConfig, settings_given, with_options
from rl_jax import objectives
from rl_jax.devices import Devices
from rl_jax.models import presets
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.settings import command_line, refuse, require_at_least, require_positive, run_script
from rl_jax.sampling import samplers
from rl_jax.tasks import rewards
from rl_jax.tasks.load import parse_options
from rl_jax.tasks.text import Prompts
from rl_jax.train import loop
from rl_jax.train.actors import create_state
from rl_jax.train.schedule import check_algorithm, reads_old_logp
from rl_jax.train.step import make_train_step
from rl_jax.train.text_rollouts import make_text_rollouts

MODULE = "experiments.grpo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig, ModelConfig, OptimizerConfig, RolloutConfig):
  objective: str = "grpo"  # a name from `python -m rl_jax.objectives`, or the path of one's own, my_module:objective
  objective_options: tuple[str, ...] = ()  # the objective's other settings, such as tau_pos=1.2
  clip_low: float | None = None  # the ratio's gradient stops below 1 - clip_low; the objective's own by default
  clip_high: float | None = None  # the ratio's gradient stops above 1 + clip_high; the objective's own by default
  kl_coef: float | None = None  # weight of the objective's KL; its own by default, and 0.01 for grpo
  kl_correction: bool = False  # weigh each token's KL by its ratio to the old policy: exact when updates are several
  top_k: int | None = None  # sample from the k likeliest tokens only
  top_p: float | None = None  # sample from the likeliest tokens that add up to this probability only
  min_p: float | None = None  # sample only tokens at least this likely, relative to the likeliest
  recompute_old_logp: bool = False  # with several updates a rollout: old log-probs from a pass, not from the sampler
  max_draws: int = 1  # above 1: draw prompts up to so many times, until all groups have rewards that differ
  run_dir: str = "runs/grpo"  # configuration, metrics, samples, checkpoints, plot and the trained model
  minibatches: int = 2  # updates a pass

  def check(self) -> None:
    require_at_least(self, 1, ("max_draws",))
    if self.kl_coef is not None:
      require_at_least(self, 0, ("kl_coef",))
    require_positive(self, [name for name in ("clip_low", "clip_high") if getattr(self, name) is not None])
    samplers.check(self.sampling)
    super().check()
    self.check_parts(self.microbatches)

  @property
  def sampling(self) -> samplers.SamplingParams:
    """Temperature and filters."""
    return samplers.SamplingParams(self.temperature, self.top_k, self.top_p, self.min_p)


def load_algorithm(config: Config) -> objectives.Algorithm:
  """The objective by name with its advantage and the settings that were given."""
  settings = settings_given(config, ["clip_low", "clip_high", "kl_coef"])
  if config.kl_correction:
    settings["kl_correction"] = True
  fallback: dict[str, Any] = {"length": config.max_new_tokens}
  if config.objective == "grpo":
    fallback["kl_coef"] = 0.01
  settings = with_options(settings, config.objective_options)
  algorithm = objectives.load(config.objective, fallback=fallback, **settings)
  check_algorithm(algorithm, config.schedule, config.group_size)
  if not reads_old_logp(algorithm, config.schedule, kl_in_reward=False):
    refuse(config, ("recompute_old_logp",), "one update a rollout")
  if algorithm.needs_values:
    raise ValueError(f"objective {config.objective!r} needs a critic: python -m experiments.ppo trains one")
  return algorithm


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  config.check()
  algorithm, task = load_algorithm(config), config.load_task(config.seed)
  rewards.check_any(task.rewards, reward_model=False)
  directory = config.directory(data_fingerprint=task.fingerprint)
  model = config.load_model(config.max_tokens)
  prompts = config.make_prompts(task, config.make_reader(model))
  with directory as run:
    return train(config, algorithm, prompts, model, run)


def train(
  config: Config, algorithm: objectives.Algorithm, prompts: Prompts, model: presets.Model, run: RunDirectory
) -> Path:
  devices, learner = Devices(), config.make_learner(model)
  size = f"{model.num_params / 1e6:.1f} M parameters"
  print(
    f"{config.model}: {size} on {devices.mesh.size} device(s); task {prompts.task.name}; {config.run_dir}", flush=True
  )

  # Rollouts: prompts in, completions with advantages out. And evaluation, greedy, one completion a prompt.
  rollouts = make_text_rollouts(
    prompts,
    learner,
    algorithm,
    devices,
    sampling=config.sampling,
    schedule=config.schedule,
    recompute_old_logp=config.recompute_old_logp,
    mask_truncated=config.mask_truncated,
    max_draws=config.max_draws,
    **config.sizes,
  )

  # The update step: what is minimized, and the optimizer that does it.
  optimizer = config.make_optimizer(warmup_steps=config.warmup_steps)
  forward = learner.forward(temperature=config.temperature)
  step = make_train_step(
    forward, algorithm.objective, optimizer, microbatches=config.microbatches, frozen=learner.frozen
  )

  # The state, built around the model's parameters, whose place it takes; then everything runs.
  needs = algorithm.from_rewards().needs
  create = create_state(learner, optimizer, keep_reference="ref_logp" in algorithm.needs, needs=needs)
  state, model = devices.build(create, model.params, jax.random.key(config.seed)), model._replace(params=None)
  state, done = loop.train(
    state,
    run=run,
    evaluate=rollouts.evaluate,
    collect=rollouts.collect,
    update=devices.step(step),
    schedule=config.schedule,
    **config.loop_settings(devices, learner),
  )
  folder = config.finish(MODULE, run, learner, state.policy.params, done)
  harder = {}
  if config.task == "arithmetic":
    digits = min(parse_options(config.task_options).get("digits", 2) + 1, 9)
    harder = dict(task_options=(f"digits={digits}",), max_new_tokens=digits + 3)
  further = dict(model=str(folder), base="", run_dir=f"{run.folder}-next", resume=False)
  print(f"next:\n  {command_line(MODULE, config, **further, **harder)}")
  return folder


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
