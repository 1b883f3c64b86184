"""A whole training run in an environment as one compiled program, for those that are pure JAX.

    run = compiled_episodes(cartpole.load(), agent, objectives.load("ppo", gamma=0.99), optax.adam(1e-3), Config())
    states, histories = jax.jit(jax.vmap(run))(keys)              # seeds are an axis

Those on the host go through `loop.fit`, with the parts that `train.episodes` puts together.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rl_jax.environments.agents import Agent
from rl_jax.environments.base import Environment
from rl_jax.objectives import Algorithm
from rl_jax.ops import kl
from rl_jax.ops.moments import Moments
from rl_jax.ops.shaping import Shaping
from rl_jax.rollouts.collect import compose
from rl_jax.rollouts.episodes import make_source
from rl_jax.runs.settings import require_at_least
from rl_jax.state import RLState
from rl_jax.train.control import Controller
from rl_jax.train.episodes import evaluation_of, make_forward, make_values
from rl_jax.train.whole_run import Parts, Run, Sizes, make_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sizes):
  """The sizes of a compiled run in an environment."""

  num_starts: int = 16  # starts a rollout
  group_size: int = 1  # episodes from each start
  evaluation_episodes: int = 16  # episodes of an evaluation, greedy

  def __post_init__(self):
    require_at_least(self, 1, ("num_starts", "group_size", "evaluation_episodes"))
    super().__post_init__()

  @property
  def rows(self) -> tuple[str, int]:
    return "num_starts", self.num_starts


def compiled_episodes(
  environment: Environment,
  agent: Agent,
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  config: Config,
  *,
  controllers: tuple[Controller, ...] = (),
) -> Run:
  """Returns a whole training run, `run(key) -> (final state, history)`, to be jitted, mapped over keys, or sharded.

  Args:
    environment: One in pure JAX.
    agent: Policy, and critic where the algorithm needs values.
    algorithm: An objective and its advantage; its numbers may be traced.
    optimizer: Any optax transformation.
    config: Sizes.
    controllers: Move the algorithm's coefficients, or `kl_coef`, after every rollout.

  Raises:
    ValueError: If the environment runs on the host, or the algorithm needs what neither it nor the agent gives.

  >>> from rl_jax import objectives
  >>> from rl_jax.environments import agents, cartpole
  >>> run = compiled_episodes(
  ...     cartpole.load(max_steps=8), agents.categorical(4, 2), objectives.load("ppo"), optax.adam(1e-3),
  ...     Config(steps=2, num_starts=4))
  >>> state, history = jax.jit(run)(jax.random.key(0))
  >>> int(state.policy.step), history.train["reward"].shape
  (2, (2,))
  """
  if environment.on_host:
    raise ValueError(
      f"environment {environment.name!r} runs on the host: it has no place in a compiled program;"
      " cartpole and pendulum have, and biped with backend=mjx"
    )
  forward = make_forward(agent)
  collect = compose(
    make_source(environment, agent, num_starts=config.num_starts, group_size=config.group_size),
    algorithm,
    on_policy=config.schedule.on_policy,
    shaping=Shaping(kl=kl.k1 if config.pays_kl else None),
    reference=lambda state, episodes: jnp.asarray(forward(state.ref_params, episodes).logp),
    values=make_values(agent),
  )
  evaluate = evaluation_of(environment, agent, episodes=config.evaluation_episodes)

  def init(key: Array, _: Array) -> dict:
    return agent.init(key)

  def measure(state: RLState) -> dict[str, jax.Array]:
    return evaluate(state.policy.params, state.running.observation_moments)

  parts = Parts(
    init=init,
    collect=collect,
    forward=forward,
    evaluate=measure,
    keep_reference="ref_logp" in algorithm.needs or config.pays_kl,
    state={"observation_moments": Moments.zero((environment.observation_size,))},
  )
  return make_run(parts, algorithm, optimizer, config, controllers=controllers)
