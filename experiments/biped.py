"""A robot that learns to walk: PPO on 31 observations and 6 torques, by the same update as for language models.

    python -m experiments.biped                                                    # it walks after three minutes
    python -m experiments.biped --environment-options planar=true --steps 100      # held in the plane, a quick try
    python -m experiments.biped --objective grpo --num-starts 8 --group-size 8     # groups from one start, no critic
    python -m experiments.biped --objective reinforce --epochs 1 --minibatches 1 --learning-rate 3e-3
    python -m experiments.biped --environment cartpole --steps 40                  # in pure JAX
    python -m experiments.biped --environment gym --environment-options env_id=Walker2d-v5

An episode is a row, its steps are what tokens are elsewhere. At the end: curves, the agent, and for the biped a film
strip and an animation of the first and the last policy, and torques, gait and the reward's terms of the last one.
"""

import dataclasses
from pathlib import Path

import jax

from experiments.configs import OptimizerConfig, RunConfig, show_run
from experiments.environment_configs import EnvironmentConfig
from rl_jax import objectives
from rl_jax.analysis import walking
from rl_jax.devices import Devices
from rl_jax.environments import agents
from rl_jax.environments.base import Environment
from rl_jax.ops.moments import Moments
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.settings import exit_if_stopped, require_at_least, run_script
from rl_jax.state import RLState
from rl_jax.train import control, episodes, loop
from rl_jax.train.step import make_train_step

MODULE = "experiments.biped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig, OptimizerConfig, EnvironmentConfig):
  target_kl: float = 0.0  # leave out a rollout's other updates once approx_kl is above this; 0 for never
  run_dir: str = "runs/biped"  # configuration, metrics, checkpoints, plots, pictures and the agent
  steps: int = 300  # rollouts
  checkpoint_every: int = 50  # steps between checkpoints, besides one at the end; 0 for none
  learning_rate: float = 5e-4  # learning rate of AdamW
  max_grad_norm: float = 0.5  # gradients are scaled down to this norm

  def check(self) -> None:
    require_at_least(self, 0, ("target_kl",))
    parts = self.minibatches * self.microbatches * jax.device_count()
    if self.num_starts % parts:
      raise ValueError(f"num_starts must be a multiple of minibatches * microbatches * devices = {parts}")
    super().check()


def main(config: Config) -> Path:
  """Trains, and returns the agent's file."""
  config.check()
  algorithm, environment = config.load_algorithm(), config.load_environment()
  with config.directory() as run:
    return train(config, environment, algorithm, run)


def train(config: Config, environment: Environment, algorithm: objectives.Algorithm, run: RunDirectory) -> Path:
  devices, agent = Devices(), config.make_agent(environment, critic=algorithm.needs_values)
  print(f"{environment.name}: {environment.observation_size} observations, {environment.actions}; {config.run_dir}")
  print("a step of an episode is what tables and options call a token", flush=True)

  # Rollouts and evaluation, the optimizer and the update step.
  rollouts = episodes.make_episode_rollouts(
    environment,
    agent,
    algorithm,
    devices,
    num_starts=config.num_starts,
    group_size=config.group_size,
    schedule=config.schedule,
    evaluation_episodes=config.evaluation_episodes,
  )
  optimizer, forward = config.make_optimizer(), episodes.make_forward(agent)
  step = make_train_step(forward, algorithm.objective, optimizer, microbatches=config.microbatches)
  moves = control.make_control(forward, config.controllers)

  # The state; then everything runs.
  def create(params: dict, key: jax.Array) -> RLState:
    return RLState.create(
      params,
      optimizer,
      key,
      keep_reference="ref_logp" in algorithm.needs,
      coefficients=control.initial(config.controllers, algorithm.coefficients, config.schedule),
      reward_baseline=0.0 if "reward_baseline" in algorithm.from_rewards().needs else None,
      observation_moments=Moments.zero((environment.observation_size,)),
    )

  init_key, key = jax.random.split(jax.random.key(config.seed))
  state = devices.build(create, agent.init(init_key), key)
  state, done = loop.train(
    state,
    run=run,
    evaluate=rollouts.evaluate,
    collect=rollouts.collect,
    update=devices.step(step),
    schedule=config.schedule,
    stop_updates=loop.stop_above(config.target_kl) if config.target_kl else None,
    control=devices.jit(moves, donate_argnums=0) if config.controllers else None,
    save=lambda folder, state: agents.save(folder, state.policy.params, state.running.observation_moments),
    **config.loop_settings(devices),
  )
  exit_if_stopped(MODULE, config, done)
  saved = agents.save(run.folder, state.policy.params, state.running.observation_moments)
  show_run(run.folder, tokens=False)
  if config.environment == "biped":
    show_walks(environment, agent, agent.init(init_key), state, run.folder)
  print(f"the agent: {saved}")
  return saved


def show_walks(environment: Environment, agent: agents.Agent, first: dict, last: RLState, folder: Path) -> None:
  """Draws what the first and the last policy do from one start."""
  key, moments = jax.random.key(0), last.running.observation_moments
  walks = {
    "first policy": walking.record(environment, agent, first, Moments.zero((environment.observation_size,)), key),
    "last policy": walking.record(environment, agent, last.policy.params, moments, key),
  }
  try:
    print(f"torques and gait: {walking.draw_gait(walks['last policy'], folder / 'gait.png')}")
    print(f"film strip: {walking.draw_film(walks, folder / 'film.png')}")
    print(f"animation: {walking.save_animation(list(walks.values()), folder / 'walk.gif')}")
  except ValueError as error:
    print(f"no pictures of the robot: {error}")


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
