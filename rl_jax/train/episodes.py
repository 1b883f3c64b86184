"""Learning in environments: passes of an agent over episodes, and rollouts put together, as `text_rollouts` does."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rl_jax.devices import Devices
from rl_jax.environments.agents import Agent
from rl_jax.environments.base import Environment
from rl_jax.objectives import Algorithm
from rl_jax.ops.moments import Moments
from rl_jax.ops.shaping import PLAIN, Shaping
from rl_jax.rollouts.collect import Collect, compose
from rl_jax.rollouts.episodes import make_play, make_source, with_records
from rl_jax.runs.results import Measurements
from rl_jax.state import Episodes, Forward, ModelOutputs, RLState, Values
from rl_jax.train.schedule import Schedule, check_algorithm


class EpisodeRollouts(NamedTuple):
  """What a loop needs of an environment.

  Attributes:
    collect: `state -> Collected`.
    evaluate: `state -> Measurements` of greedy episodes from the same starts every time.
  """

  collect: Collect
  evaluate: Callable[[RLState], Measurements]


def make_forward(agent: Agent) -> Forward:
  """Returns the learner's pass, `(params, episodes) -> ModelOutputs`, with values where there is a critic.

  >>> from rl_jax.environments import agents
  >>> agent = agents.gaussian(3, 2)
  >>> episodes = Episodes(jnp.ones((1, 2, 5, 3)), jnp.ones((1, 2, 4, 2)), jnp.ones((1, 2, 4)))
  >>> [x.shape for x in make_forward(agent)(agent.init(jax.random.key(0)), episodes)[:3]]
  [(1, 2, 4), (1, 2, 4), (1, 2, 4)]
  """

  def forward(params: Any, episodes: Episodes) -> ModelOutputs:
    seen = episodes.observations[..., :-1, :]
    distribution = agent.distribution(params, seen)
    values = None if agent.value is None else agent.value(params, seen)
    return ModelOutputs(distribution.log_prob(episodes.actions), distribution.entropy(), values)

  return forward


def make_values(agent: Agent) -> Callable[[Any, Episodes], Values] | None:
  """Returns the critic's pass, with what the state after the last step is worth; None without a critic.

  An episode that the time limit cut off is worth that value from there on.

  >>> from rl_jax.environments import agents
  >>> agent = agents.gaussian(3, 2)
  >>> episodes = Episodes(jnp.ones((1, 2, 5, 3)), jnp.ones((1, 2, 4, 2)), jnp.ones((1, 2, 4)))
  >>> values = make_values(agent)(agent.init(jax.random.key(0)), episodes)
  >>> values.tokens.shape, values.last.shape
  ((1, 2, 4), (1, 2))
  """
  value = agent.value
  if value is None:
    return None

  def values(params: Any, episodes: Episodes) -> Values:
    everywhere = value(params, episodes.observations)
    length = jnp.sum(episodes.real != 0, axis=-1, keepdims=True)
    return Values(everywhere[..., :-1], jnp.take_along_axis(everywhere, length, axis=-1)[..., 0])

  return values


def make_episode_rollouts(
  environment: Environment,
  agent: Agent,
  algorithm: Algorithm,
  devices: Devices,
  *,
  num_starts: int,
  group_size: int = 1,
  schedule: Schedule = Schedule(),
  shaping: Shaping = PLAIN,
  evaluation_episodes: int = 16,
) -> EpisodeRollouts:
  """Puts play, outputs and experience together.

  Args:
    environment: Where the agent plays.
    agent: Policy, and critic where the algorithm needs values.
    algorithm: An objective and its advantage.
    devices: Where everything but an environment of the host runs.
    num_starts: P, starts a rollout.
    group_size: G, episodes from each start.
    schedule: What each rollout is used for; the loop must be given the same one.
    shaping: What is done to rewards before advantages; a KL takes its weight from the state's `kl_coef`.
    evaluation_episodes: Episodes an evaluation.

  Raises:
    ValueError: If agent and environment do not go together, or the algorithm needs what nothing gives.
  """
  check_algorithm(algorithm, schedule, group_size)
  forward, values = devices.jit(make_forward(agent)), make_values(agent)
  source = make_source(environment, agent, num_starts=num_starts, group_size=group_size, put=devices.put)
  source = source._replace(judge=with_records(source.judge))
  if not environment.on_host:
    source = source._replace(sample=devices.jit(source.sample))
  collect = compose(
    source,
    algorithm,
    on_policy=schedule.on_policy,
    shaping=shaping,
    reference=lambda state, episodes: jnp.asarray(forward(state.ref_params, episodes).logp),
    values=None if values is None else devices.jit(values),
    jit=devices.jit,
  )
  return EpisodeRollouts(collect, make_evaluate(environment, agent, episodes=evaluation_episodes))


def make_evaluate(environment: Environment, agent: Agent, *, episodes: int) -> Callable[[RLState], Measurements]:
  """Returns `evaluate(state) -> Measurements`: what `evaluation_of` measures, for a loop on the host."""
  measure = evaluation_of(environment, agent, episodes=episodes)
  measure = measure if environment.on_host else jax.jit(measure)

  def evaluate(state: RLState) -> Measurements:
    found = measure(state.policy.params, state.running.observation_moments)
    return Measurements({name: float(mean) for name, mean in jax.device_get(found).items()})

  return evaluate


def evaluation_of(
  environment: Environment, agent: Agent, *, episodes: int
) -> Callable[[Any, Moments | None], dict[str, jax.Array]]:
  """Returns `(params, moments) -> {name: scalar}`, of greedy episodes from the same starts every time.

  They are means of episodes: `return`, the weighted sum of all rewards, and each term of it by name; `length`, in
  steps; and `terminated`, the share that did not reach the time limit.

  Args:
    environment: Where the agent plays.
    agent: Who plays.
    episodes: How many.
  """
  play = make_play(environment, agent, greedy=True)

  def evaluate(params: Any, moments: Moments | None) -> dict[str, jax.Array]:
    played = play(params, moments, jax.random.split(jax.random.key(0), episodes), jax.random.key(1))
    terms = {name: jnp.sum(jnp.where(played.real, term, 0)) / episodes for name, term in played.rewards.items()}
    total = sum((environment.weights[name] * term for name, term in terms.items()), jnp.zeros(()))
    length = jnp.mean(jnp.sum(jnp.asarray(played.real), axis=-1).astype(jnp.float32))
    terminated = jnp.mean(jnp.asarray(played.terminated).astype(jnp.float32))
    return {"return": total, "length": length, "terminated": terminated} | terms

  return evaluate
