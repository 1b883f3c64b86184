"""Settings that experiments in environments share: the world, the agent, and what it learns by."""

import dataclasses

from experiments.configs import ControlConfig, settings_given, with_options
from rl_jax import environments, objectives
from rl_jax.environments import agents
from rl_jax.environments.base import Environment
from rl_jax.runs.settings import require_at_least, require_positive
from rl_jax.tasks.load import parse_options
from rl_jax.train.schedule import Schedule, check_algorithm

# What is usual for control, where an objective has the setting.
USUAL = {"gamma": 0.99, "kl_coef": 0.0, "value_coef": 0.5, "value_clip": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentConfig(ControlConfig):
  environment: str = "biped"  # biped, cartpole, pendulum, or gym for those of Gymnasium
  environment_options: tuple[str, ...] = ()  # its settings, such as planar=true or sideways=-10.0
  num_starts: int = 64  # starts a rollout
  group_size: int = 1  # episodes from each start
  evaluation_episodes: int = 16  # episodes of an evaluation, greedy
  epochs: int = 6  # passes over a rollout
  minibatches: int = 4  # updates a pass
  widths: tuple[int, ...] = (64, 64)  # hidden units of each layer of policy and critic
  std: float = 0.5  # standard deviation of the first actions, of which 1 is the largest
  objective: str = "ppo"  # a name from `python -m rl_jax.objectives`, or my_module:objective
  objective_options: tuple[str, ...] = ()  # the objective's other settings, such as clip_high=0.3
  gamma: float | None = None  # discount a step; 0.99 by default, where the objective has one
  lam: float | None = None  # lambda of generalized advantage estimation; the objective's own by default, 0.95

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

  def load_environment(self) -> Environment:
    """Loads the world."""
    return environments.load(self.environment, **parse_options(self.environment_options))

  def load_algorithm(self) -> objectives.Algorithm:
    """Returns the objective by name with its advantage and the settings that were given."""
    own = objectives.settings_of(self.objective)
    usual = {name: value for name, value in USUAL.items() if name in own}
    given = with_options(settings_given(self, ("gamma", "lam")), self.objective_options)
    algorithm = objectives.load(self.objective, moving=self.moving, **usual | given)
    check_algorithm(algorithm, self.schedule, self.group_size)
    return algorithm

  def make_agent(self, environment: Environment, *, critic: bool) -> agents.Agent:
    """Returns an agent for the environment's observations and actions."""
    return agents.for_environment(environment, widths=self.widths, critic=critic, std=self.std)
