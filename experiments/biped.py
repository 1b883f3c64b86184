"""A robot that learns to walk: PPO on 31 observations and 6 torques, by the same update as for language models.

    python -m experiments.biped                                                    # it walks after three minutes
    python -m experiments.biped --environment-options planar=true --steps 100      # held in the plane, a quick try
    python -m experiments.biped --objective grpo --num-starts 8 --group-size 8     # groups from one start, no critic
    python -m experiments.biped --objective reinforce --epochs 1 --minibatches 1   # with a running baseline
    python -m experiments.biped --environment cartpole --steps 40                  # in pure JAX
    python -m experiments.biped --environment gym --environment-options env_id=Walker2d-v5

An episode is a row, its steps are what tokens are elsewhere. At the end: curves, the agent, and for the biped a film
strip and an animation of the first and the last policy, and torques, gait and the reward's terms of the last one.
"""

import dataclasses
from pathlib import Path

import jax

from experiments.configs import Checked, OptimizerConfig, RunConfig, settings_given, with_options
from rl_jax import environments, objectives
from rl_jax.analysis import report, walking
from rl_jax.devices import Devices
from rl_jax.environments import agents
from rl_jax.environments.base import Discrete, Environment
from rl_jax.ops.moments import Moments
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.settings import exit_if_stopped, require_at_least, require_positive, run_script
from rl_jax.state import RLState
from rl_jax.tasks.load import parse_options
from rl_jax.train import control, episodes, loop
from rl_jax.train.schedule import Schedule
from rl_jax.train.step import make_train_step
from rl_jax.train.text_rollouts import check_algorithm

MODULE = "experiments.biped"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentConfig(Checked):
  environment: str = "biped"  # biped, cartpole, pendulum, or gym for those of Gymnasium
  environment_options: tuple[str, ...] = ()  # its settings, such as planar=true or sideways=-10.0
  num_starts: int = 64  # starts a rollout
  group_size: int = 1  # episodes from each start
  evaluation_episodes: int = 16  # episodes of an evaluation, greedy
  epochs: int = 6  # passes over a rollout
  minibatches: int = 8  # updates a pass
  widths: tuple[int, ...] = (64, 64)  # hidden units of each layer of policy and critic
  std: float = 0.5  # standard deviation of the first actions, of which 1 is the largest

  def check(self) -> None:
    require_at_least(self, 1, ("num_starts", "group_size", "evaluation_episodes", "epochs", "minibatches"))
    require_positive(self, ("std",))
    if not self.widths or min(self.widths) < 1:
      raise ValueError(f"widths must be one or more numbers from 1 on, got {self.widths}")
    super().check()

  @property
  def schedule(self) -> Schedule:
    """What each rollout is used for."""
    return Schedule(self.epochs, self.minibatches)

  def make_agent(self, environment: Environment, *, critic: bool) -> agents.Agent:
    """Returns an agent for the environment's observations and actions."""
    size, actions = environment.observation_size, environment.actions
    if isinstance(actions, Discrete):
      return agents.categorical(size, actions.count, widths=self.widths, critic=critic)
    return agents.gaussian(size, actions.size, widths=self.widths, critic=critic, std=self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig, OptimizerConfig, EnvironmentConfig):
  objective: str = "ppo"  # a name from `python -m rl_jax.objectives`, or my_module:objective
  objective_options: tuple[str, ...] = ()  # the objective's other settings, such as clip_high=0.3
  gamma: float | None = None  # discount a step; 0.99 by default, where the objective has one
  lam: float | None = None  # lambda of generalized advantage estimation; the objective's own by default, 0.95
  target_kl: float = 0.0  # leave out a rollout's other updates once approx_kl is above this; 0 for never
  beta_target: float = 0.0  # above 0, for ppo_kl: beta follows this KL of a rollout's updates, in nats a step
  entropy_target: float = 0.0  # above 0: the entropy bonus is on while the entropy is below this, in nats a step
  run_dir: str = "runs/biped"  # configuration, metrics, checkpoints, plots, pictures and the agent
  steps: int = 200  # rollouts
  checkpoint_every: int = 50  # steps between checkpoints, besides one at the end; 0 for none
  learning_rate: float = 6e-4  # learning rate of AdamW
  max_grad_norm: float = 0.5  # gradients are scaled down to this norm

  def check(self) -> None:
    require_at_least(self, 0, ("target_kl", "beta_target"))
    parts = self.minibatches * self.microbatches * jax.device_count()
    if self.num_starts % parts:
      raise ValueError(f"num_starts must be a multiple of minibatches * microbatches * devices = {parts}")
    super().check()

  @property
  def controllers(self) -> tuple[control.Controller, ...]:
    """What moves coefficients after every rollout."""
    beta = (control.adaptive_beta(target=self.beta_target),) if self.beta_target else ()
    return beta + ((control.adaptive_entropy(target=self.entropy_target),) if self.entropy_target else ())


def load_algorithm(config: Config) -> objectives.Algorithm:
  """The objective by name with its advantage and the settings that were given."""
  own = objectives.settings_of(config.objective)
  usual = {"gamma": 0.99, "kl_coef": 0.0, "value_clip": None}
  settings = {name: value for name, value in usual.items() if name in own} | settings_given(config, ("gamma", "lam"))
  moving = ("beta",) * (config.beta_target > 0) + ("entropy_coef",) * (config.entropy_target > 0)
  algorithm = objectives.load(config.objective, moving=moving, **with_options(settings, config.objective_options))
  check_algorithm(algorithm, config.schedule, config.group_size)
  return algorithm


def main(config: Config) -> Path:
  """Trains, and returns the agent's file."""
  config.check()
  algorithm = load_algorithm(config)
  environment = environments.load(config.environment, **parse_options(config.environment_options))
  with config.directory() as run:
    return train(config, environment, algorithm, run)


def train(config: Config, environment: Environment, algorithm: objectives.Algorithm, run: RunDirectory) -> Path:
  devices, agent = Devices(), config.make_agent(environment, critic=algorithm.needs_values)
  print(f"{environment.name}: {environment.observation_size} observations, {environment.actions}; {config.run_dir}")

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
    **config.loop_settings(devices),
  )
  exit_if_stopped(MODULE, config, done)
  saved = agents.save(run.folder, state.policy.params, state.running.observation_moments)
  report.show(run.folder)
  if config.environment == "biped":
    show_walks(environment, agent, agent.init(init_key), state, run.folder)
  print(f"the agent: {saved}")
  return saved


def show_walks(environment: Environment, agent: agents.Agent, first: dict, last: RLState, folder: Path) -> None:
  """Draws what the first and the last policy do from one start."""
  key, moments = jax.random.key(0), last.running.observation_moments
  walks = {
    "first policy": walking.record(environment, agent, first, None, key),
    "last policy": walking.record(environment, agent, last.policy.params, moments, key),
  }
  print(f"torques and gait: {walking.draw_gait(walks['last policy'], folder / 'gait.png')}")
  try:
    print(f"film strip: {walking.draw_film(walks, folder / 'film.png')}")
    print(f"animation: {walking.save_animation(list(walks.values()), folder / 'walk.gif')}")
  except ValueError as error:
    print(f"no pictures of the robot: {error}")


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
