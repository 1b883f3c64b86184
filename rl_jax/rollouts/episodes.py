"""Rollouts in environments: an agent plays episodes from a start to their end, on the device or on the host.

One episode is one row, padded and masked like a completion. Observations are normalized by the moments of all that came
before the rollout, and are kept as the agent saw them: sampler and learner read the same numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rl_jax.environments.agents import Agent
from rl_jax.environments.base import Box, Discrete, Environment, Transition, begin, guarded
from rl_jax.ops import moments as moments_lib
from rl_jax.ops.distributions import Categorical
from rl_jax.ops.masking import masked_mean
from rl_jax.ops.moments import Moments
from rl_jax.rollouts.collect import Judge, Sampled, Source
from rl_jax.rollouts.rollout import Rollout
from rl_jax.state import Episodes, Judgment, RLState, Running

FARTHEST = 10.0  # standard deviations at which a normalized observation is cut off


class Played(NamedTuple):
  """N episodes as they were played.

  Attributes:
    observations: `[N, T + 1, D]`, as the environment gave them.
    actions: `[N, T]` or `[N, T, A]`, as they were drawn.
    logp: `[N, T]`, their log-probs.
    rewards: Each term of the reward, `[N, T]`.
    real: `[N, T]`, 1 for steps that were made.
    terminated: `[N]`, whether the environment ended the episode.
    failed: `[N]`, whether the simulation broke down.
  """

  observations: Any
  actions: Any
  logp: Any
  rewards: dict[str, Any]
  real: Any
  terminated: Any
  failed: Any


class Outcome(NamedTuple):
  """What a judge must know of episodes, and who plays from the same starts again.

  Attributes:
    starts: `[P]`, the key of each start.
    rewards: Each term of the reward, `[P, G, T]`.
  """

  starts: Array
  rewards: dict[str, Array]


Choose = Callable[[Any, Moments | None, Array, Array], tuple[Array, Array]]
Play = Callable[[Any, Moments | None, Array, Array], Played]


def normalized(observations: Float[Array, "*batch D"], moments: Moments | None) -> Float[Array, "*batch D"]:
  """Returns `(x - mean) / std` by running moments, cut off at 10; as they are without moments.

  >>> print(normalized(jnp.array([3.0]), Moments(jnp.array(2.0), jnp.array([2.0]), jnp.array([0.5]))))
  [2.]
  """
  if moments is None:
    return observations
  mean, std = (jnp.broadcast_to(x, observations.shape) for x in (moments.mean, jnp.maximum(moments.std, 1e-4)))
  return jnp.clip((observations - mean) / std, -FARTHEST, FARTHEST)


def check_agent(agent: Agent, environment: Environment) -> None:
  """Raises ValueError if an agent does not read the environment's observations, or takes actions of another kind.

  >>> from rl_jax.environments import cartpole
  >>> from rl_jax.environments import agents
  >>> check_agent(agents.categorical(4, 3), cartpole.load())
  Traceback (most recent call last):
  ...
  ValueError: environment 'cartpole' has 2 actions to choose from, the agent 3
  """
  name, actions, size = environment.name, environment.actions, environment.observation_size
  try:
    found = jax.eval_shape(
      lambda key, x: agent.distribution(agent.init(key), x), jax.random.key(0), jnp.zeros((1, size))
    )
  except Exception as error:
    raise ValueError(f"environment {name!r} has {size} observations, which the agent does not read: {error}") from None
  if isinstance(found, Categorical) != isinstance(actions, Discrete):
    wanted = "one of several actions" if isinstance(actions, Discrete) else "numbers"
    raise ValueError(f"environment {name!r} wants {wanted}, the agent's distribution is {type(found).__name__}")
  if isinstance(actions, Discrete) and found.logits.shape[-1] != actions.count:
    raise ValueError(
      f"environment {name!r} has {actions.count} actions to choose from, the agent {found.logits.shape[-1]}"
    )
  if isinstance(actions, Box) and found.mean.shape[-1] != actions.size:
    raise ValueError(f"environment {name!r} wants {actions.size} numbers an action, the agent {found.mean.shape[-1]}")


def make_play(environment: Environment, agent: Agent, *, greedy: bool = False) -> Play:
  """Returns `play(params, moments, starts [N], key) -> Played`, pure in JAX, or a loop on the host.

  Args:
    environment: Where it plays.
    agent: Who plays.
    greedy: Whether it takes the likeliest actions, and draws none.

  Raises:
    ValueError: If the two do not go together.
  """
  check_agent(agent, environment)
  if environment.max_steps < 1:
    raise ValueError(f"max_steps of environment {environment.name!r} must be at least 1, got {environment.max_steps}")

  def choose(params: Any, moments: Moments | None, observations: Array, key: Array) -> tuple[Array, Array]:
    distribution = agent.distribution(params, normalized(observations, moments))
    actions = distribution.mode() if greedy else distribution.sample(key)
    return actions, distribution.log_prob(actions)

  return (_on_host if environment.on_host else _on_device)(environment, choose)


def _on_device(environment: Environment, choose: Choose) -> Play:
  """Every row plays all steps; those after its end change nothing."""
  advanced = guarded(environment)

  def play(params: Any, moments: Moments | None, starts: Array, key: Array) -> Played:
    def advance(carry: tuple[Any, ...], step: Array) -> tuple[Any, tuple[Any, ...]]:
      state, seen, going, terminated, failed = carry
      actions, logp = choose(params, moments, seen, jax.random.fold_in(key, step))
      after, broken = advanced(state, actions)
      kept = jax.tree.map(
        lambda new, old: jnp.where(going.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
        (after.state, after.observation),
        (state, seen),
      )
      made = seen, actions, logp, dict(after.rewards), going
      ended = terminated | (going & after.terminated), failed | (going & broken)
      return (*kept, going & ~_over(after), *ended), made

    state, first = begin(environment, starts)
    everyone = jnp.ones(starts.shape[0], bool)
    steps = jnp.arange(environment.max_steps)
    carry = state, first, everyone, ~everyone, ~everyone
    (_, last, _, terminated, failed), made = jax.lax.scan(advance, carry, steps)
    seen, actions, logp, rewards, real = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), made)
    return Played(jnp.concatenate([seen, last[:, None]], axis=1), actions, logp, rewards, real, terminated, failed)

  return play


def _over(after: Transition) -> Any:
  """Where an episode is over."""
  return after.terminated if after.truncated is None else after.terminated | after.truncated


def _on_host(environment: Environment, choose: Choose) -> Play:
  """Only rows that go on are stepped, and nothing after the last one has ended."""
  advanced = guarded(environment)
  chosen = jax.jit(
    lambda params, moments, seen, key, step: choose(params, moments, seen, jax.random.fold_in(key, step))
  )

  def play(params: Any, moments: Moments | None, starts: Array, key: Array) -> Played:
    state, first = begin(environment, starts)
    rows, steps = len(first), environment.max_steps
    observations = np.zeros((rows, steps + 1, environment.observation_size), np.float32)
    logp, real = np.zeros((rows, steps), np.float32), np.zeros((rows, steps), bool)
    rewards = {name: np.zeros((rows, steps), np.float32) for name in environment.weights}
    terminated, failed = np.zeros(rows, bool), np.zeros(rows, bool)
    drawn, going = [], np.arange(rows)
    observations[:, 0], step = first, 0
    while going.size and step < steps:
      actions, logp[:, step] = jax.device_get(chosen(params, moments, observations[:, step], key, np.int32(step)))
      drawn.append(actions)
      real[going, step] = True
      after, failed[going] = advanced(state, actions[going])
      observations[:, step + 1] = observations[:, step]
      observations[going, step + 1] = after.observation
      for name, term in after.rewards.items():
        rewards[name][going, step] = term
      terminated[going] = after.terminated
      on = ~np.asarray(_over(after))
      state, going, step = jax.tree.map(lambda leaf, on=on: leaf[on], after.state), going[on], step + 1
    length = min(1 << (step - 1).bit_length(), steps)  # few shapes, few compiles
    actions = np.zeros((rows, length, *drawn[0].shape[1:]), drawn[0].dtype)
    actions[:, :step] = np.stack(drawn, axis=1)
    observations[:, step + 1 :] = observations[:, step][:, None]
    cut = {name: term[:, :length] for name, term in rewards.items()}
    return Played(observations[:, : length + 1], actions, logp[:, :length], cut, real[:, :length], terminated, failed)

  return play


def make_source(
  environment: Environment,
  agent: Agent,
  *,
  num_starts: int,
  group_size: int = 1,
  put: Callable[[Any], Any] = lambda tree: tree,
) -> Source:
  """Returns where episodes come from: P fresh starts, and G episodes from each.

  Args:
    environment: Where the agent plays.
    agent: Its parameters are the state's.
    num_starts: P.
    group_size: G.
    put: Puts a pytree with starts on the leading axis on the devices.

  Raises:
    ValueError: If agent and environment do not go together.
  """
  play, play_greedily = make_play(environment, agent), make_play(environment, agent, greedy=True)
  gather = _gather if not environment.on_host else jax.jit(_gather, static_argnames="shape")

  def sampled(state: RLState, starts: Array, play: Play, key: Array, group: int) -> tuple[Sampled, Played]:
    moments = state.running.observation_moments
    played = play(state.policy.params, moments, jnp.repeat(starts, group, axis=0), key)
    rollout, rewards = gather(played, moments, shape=(len(starts), group))
    return Sampled(Outcome(starts, rewards), put(rollout), state.running), played

  def sample(state: RLState) -> Sampled:
    keys, position = state.keys(), state.running.position
    starts = jax.random.split(jax.random.fold_in(keys.problems, position), num_starts)
    drawn, played = sampled(state, starts, play, jax.random.fold_in(keys.sample, position), group_size)
    running = _moved_on(state.running, played, num_starts)
    return drawn._replace(running=running, metrics=_metrics(environment, played))

  def greedy(state: RLState, other: Sampled) -> Sampled:
    return sampled(state, other.problems.starts, play_greedily, state.key, 1)[0]

  return Source(sample, make_judge(environment), greedy)


def _gather(played: Played, moments: Moments | None, *, shape: tuple[int, int]) -> tuple[Rollout, dict[str, Array]]:
  """Rows as groups, with observations as the agent saw them."""
  played = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(*shape, *leaf.shape[1:]), played)
  episodes = Episodes(normalized(played.observations, moments), played.actions, played.real)
  return Rollout(episodes, played.real, played.logp, played.logp, played.terminated), played.rewards


def _moved_on(running: Running, played: Played, count: int) -> Running:
  """The position in the starts, and the moments of observations with those that an action was chosen from."""
  moments = running.observation_moments
  if moments is not None:
    moments = moments_lib.update(moments, jnp.asarray(played.observations)[:, :-1], jnp.asarray(played.real))
  return running._replace(position=running.position + count, observation_moments=moments)


def _metrics(environment: Environment, played: Played) -> dict[str, Any]:
  """How many simulations broke down, and the share of an action's numbers that the environment clipped."""
  metrics: dict[str, Any] = {"simulations_failed": jnp.sum(jnp.asarray(played.failed)).astype(jnp.float32)}
  if isinstance(environment.actions, Box):
    clipped = jnp.mean((jnp.abs(jnp.asarray(played.actions)) > 1).astype(jnp.float32), axis=-1)
    metrics["actions_clipped"] = masked_mean(clipped, jnp.asarray(played.real))
  return metrics


def make_judge(environment: Environment) -> Judge:
  """Returns `judge(sampled) -> (judgment, ())`: the terms of the environment's reward, with their weights."""

  def judge(sampled: Sampled) -> tuple[Judgment, tuple[()]]:
    return Judgment.of(sampled.problems.rewards, environment.weights), ()

  return judge


def with_records(judge: Judge) -> Judge:
  """Returns a judge that also tells of each episode, on the host: its start, its length, and how it ended."""

  def judge_and_tell(sampled: Sampled) -> tuple[Judgment, list[dict[str, Any]]]:
    judgment, _ = judge(sampled)
    lengths, terminated, position = jax.device_get(
      (jnp.sum(sampled.rollout.sequences.real != 0, axis=-1), sampled.rollout.terminated, sampled.running.position)
    )
    starts, group_size = lengths.shape
    first = int(position) - starts
    return judgment, [
      {"start": first + i, "length": int(lengths[i, j]), "terminated": bool(terminated[i, j])}
      for i in range(starts)
      for j in range(group_size)
    ]

  return judge_and_tell
