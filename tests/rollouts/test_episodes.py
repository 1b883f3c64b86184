"""Episodes as rows, on the device and on the host: an environment that counts, whose every number is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.devices import Devices, make_mesh
from rl_jax.environments import agents, cartpole, pendulum
from rl_jax.environments.base import Box, Environment, Transition
from rl_jax.ops.moments import Moments
from rl_jax.rollouts.episodes import make_play, make_source, normalized
from rl_jax.state import Episodes, RLState
from rl_jax.train.episodes import make_episode_rollouts, make_forward, make_values
from rl_jax.train.schedule import Schedule

LIMIT = 6  # steps of the longest episode


def counting(on_host=False, breaks=False):
  """Counts from a start of 1 to 8; an episode ends once it passes 8. Rewards: the number, and the action."""

  def reset(keys):
    start = jax.vmap(lambda key: jax.random.randint(key, (), 1, 9).astype(jnp.float32))(keys)
    return start, start[:, None]

  def step(state, actions):
    after = state + 1
    seen = jnp.where(after == 5, jnp.nan, after) if breaks else after
    return Transition(after, seen[:, None], {"number": after, "action": actions[:, 0]}, after > 8)

  def on(function):
    return lambda *args: jax.tree.map(np.asarray, function(*args)) if on_host else function(*args)

  return Environment("counting", 1, Box(1), LIMIT, {"number": 1.0, "action": 0.5}, on(reset), on(step), on_host=on_host)


AGENT = agents.gaussian(1, 1, widths=(4,))
PARAMS = AGENT.init(jax.random.key(3))
KEYS = jax.random.split(jax.random.key(0), 8)


def rollouts_of(environment, agent=AGENT, objective="ppo", num_starts=8, group_size=1, **options):
  devices = Devices(make_mesh(data=1, devices=jax.devices()[:1]))
  algorithm = objectives.load(objective, **options)
  return make_episode_rollouts(
    environment, agent, algorithm, devices, num_starts=num_starts, group_size=group_size, schedule=Schedule(2, 2)
  )


def state_of(params=PARAMS, size=1):
  moments = Moments.zero((size,))
  return RLState.create(params, optax.sgd(0.1), jax.random.key(1), keep_reference=False, observation_moments=moments)


@pytest.mark.parametrize("on_host", [False, True], ids=["device", "host"])
def test_which_index_holds_what(on_host):
  environment = counting(on_host)
  start = np.asarray(environment.reset(KEYS)[0])
  played = jax.device_get(make_play(environment, AGENT)(PARAMS, None, KEYS, jax.random.key(1)))
  assert len(set(start)) > 3 and played.observations.shape[1] == played.real.shape[1] + 1
  for row, first in enumerate(start):
    steps = min(LIMIT, int(9 - first))  # it passes 8 after that many
    assert played.real[row].tolist() == [step < steps for step in range(played.real.shape[1])]
    assert played.terminated[row] == (9 - first <= LIMIT)
    seen = played.observations[row, : steps + 1, 0]
    assert seen.tolist() == [first + step for step in range(steps + 1)]
    assert played.rewards["number"][row, :steps].tolist() == [first + 1 + step for step in range(steps)]
    np.testing.assert_array_equal(played.rewards["action"][row, :steps], played.actions[row, :steps, 0])
    distribution = AGENT.distribution(PARAMS, jnp.asarray(played.observations[row, :steps]))
    np.testing.assert_allclose(
      played.logp[row, :steps], distribution.log_prob(jnp.asarray(played.actions[row, :steps])), rtol=1e-5
    )


def test_host_and_device_collect_the_same():
  found = []
  for on_host in (False, True):
    state, collected = state_of(), None
    collect = rollouts_of(counting(on_host), num_starts=4, group_size=2).collect
    for _ in range(2):  # the second rollout sees observations normalized by those of the first
      collected = collect(state)
      state = collected.state
    found.append(collected)
  one, other = found
  for a, b in zip(jax.tree.leaves(one.batch.inputs), jax.tree.leaves(other.batch.inputs), strict=True):
    real = np.asarray(one.batch.inputs.mask).reshape(*b.shape[:2], -1)[..., : b.shape[-1]] if b.ndim == 3 else True
    np.testing.assert_allclose(np.where(real, a, 0)[..., : b.shape[-1]], np.where(real, b, 0), rtol=1e-4, atol=1e-5)
  assert one.metrics.keys() == other.metrics.keys()
  for name, value in one.metrics.items():
    np.testing.assert_allclose(value, other.metrics[name], rtol=1e-4, atol=1e-5, err_msg=name)
  for a, b in zip(one.state.running.observation_moments, other.state.running.observation_moments, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  assert int(one.state.running.position) == int(other.state.running.position) == 8


def test_advantages_are_gae_with_the_value_of_where_the_time_limit_cut_off():
  """Against NumPy, row by row: nothing follows a terminated episode, the critic's value a truncated one."""
  collected = rollouts_of(counting(), gamma=0.9, lam=0.8, whiten=False).collect(state_of())
  episodes, inputs = collected.batch.sequences, collected.batch.inputs
  values = np.asarray(AGENT.value(PARAMS, episodes.observations))[:, 0]
  numbers, actions = np.asarray(episodes.observations)[:, 0, :, 0], np.asarray(episodes.actions)[:, 0, :, 0]
  for row, real in enumerate(np.asarray(episodes.real)[:, 0]):
    steps = int(real.sum())
    rewards = numbers[row, 1 : steps + 1] + 0.5 * actions[row, :steps]
    terminated = numbers[row, steps] > 8
    following, advantage, expected = 0.0 if terminated else values[row, steps], 0.0, np.zeros(LIMIT)
    for step in reversed(range(steps)):
      delta = rewards[step] + 0.9 * following - values[row, step]
      advantage = delta + 0.9 * 0.8 * advantage
      expected[step], following = advantage, values[row, step]
    np.testing.assert_allclose(inputs.advantages[row, 0], expected, rtol=1e-4, atol=1e-4)
  assert 0 < np.asarray(collected.metrics["terminated"]) < 1


def test_a_group_has_one_start_and_draws_of_its_own():
  source = make_source(counting(), AGENT, num_starts=3, group_size=4)
  sampled = source.sample(state_of())
  episodes = sampled.rollout.sequences
  firsts = np.asarray(episodes.observations)[:, :, 0, 0]
  assert (firsts == firsts[:, :1]).all()
  assert len(set(np.asarray(episodes.actions)[0, :, 0, 0].tolist())) == 4
  greedy = source.greedy(state_of(), sampled).rollout.sequences
  np.testing.assert_array_equal(np.asarray(greedy.observations)[:, 0, 0, 0], firsts[:, 0])
  mode = AGENT.distribution(PARAMS, greedy.observations[:, 0, :1]).mode()
  np.testing.assert_allclose(greedy.actions[:, 0, :1], mode, rtol=1e-6)


@pytest.mark.parametrize("on_host", [False, True], ids=["device", "host"])
def test_every_episode_is_told_of(on_host):
  rollouts = rollouts_of(counting(on_host), objective="grpo", kl_coef=0.0, num_starts=4, group_size=2)
  first = rollouts.collect(state_of())
  told = [rollouts.collect(first.state._replace(rollouts=np.int32(1))).records, first.records]
  assert [[row["start"] for row in rows] for rows in told] == [[4, 4, 5, 5, 6, 6, 7, 7], [0, 0, 1, 1, 2, 2, 3, 3]]
  real, number = first.batch.sequences.real, first.batch.sequences.observations[..., 1:, 0]
  for index, row in enumerate(first.records):
    i, j = divmod(index, 2)
    assert row["length"] == real[i, j].sum() and row["terminated"] == (number[i, j, row["length"] - 1] > 8)
    assert row["rewards"]["number"] == np.sum(number[i, j] * real[i, j])
    np.testing.assert_allclose(row["reward"], row["rewards"]["number"] + 0.5 * row["rewards"]["action"], rtol=1e-5)


def test_observations_are_normalized_by_what_came_before_and_moments_count_real_steps_alone():
  source, state = make_source(counting(), AGENT, num_starts=8), state_of()
  first = source.sample(state)
  raw, real = np.asarray(first.rollout.sequences.observations)[:, 0, :-1, 0], np.asarray(first.rollout.mask)[:, 0]
  moments = first.running.observation_moments
  np.testing.assert_allclose(moments.count, real.sum())
  np.testing.assert_allclose(moments.mean, [raw[real].mean()], rtol=1e-5)
  np.testing.assert_allclose(moments.std, [raw[real].std()], rtol=1e-5)
  second = source.sample(state._replace(running=first.running))
  seen = np.asarray(second.rollout.sequences.observations)[:, 0, :, 0]
  numbers = seen * raw[real].std() + raw[real].mean()
  np.testing.assert_allclose(numbers, numbers.round(), atol=1e-4)
  assert float(normalized(jnp.array([1e9]), Moments(jnp.array(2.0), jnp.zeros(1), jnp.ones(1)))[0]) == 10


def test_terms_of_the_reward_are_metrics_and_broken_simulations_are_counted():
  wide = agents.gaussian(1, 1, widths=(4,), std=1.0)
  metrics = rollouts_of(counting(), wide).collect(state_of(wide.init(jax.random.key(3)))).metrics
  np.testing.assert_allclose(metrics["reward"], metrics["reward/number"] + 0.5 * metrics["reward/action"], rtol=1e-5)
  assert metrics["simulations_failed"] == 0 and 0 < metrics["actions_clipped"] < 0.5
  for on_host in (False, True):
    environment = counting(on_host, breaks=True)
    start = np.asarray(environment.reset(KEYS)[0])
    played = make_play(environment, AGENT)(PARAMS, None, KEYS, jax.random.key(1))
    np.testing.assert_array_equal(played.failed, start < 5)  # it counts to 5 on its way
    np.testing.assert_array_equal(np.asarray(played.terminated), (start < 5) | (start > 2))
    steps = np.asarray(played.real).sum(axis=-1)
    np.testing.assert_array_equal(steps, np.where(start < 5, 5 - start, np.minimum(9 - start, LIMIT)))
    assert np.isfinite(np.asarray(played.observations)).all()
    collect, state = rollouts_of(environment).collect, state_of()
    for _ in range(2):
      collected = collect(state)
      state = collected.state
    assert collected.metrics["simulations_failed"] > 0
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in state.running.observation_moments)
    assert np.isfinite(np.asarray(collected.batch.inputs.advantages)).all()


def test_padding_that_is_not_finite_changes_nothing():
  forward, values = make_forward(AGENT), make_values(AGENT)
  observations, actions = jnp.ones((1, 2, 4, 1)), jnp.ones((1, 2, 3, 1))
  real = jnp.array([[[1, 1, 0], [1, 1, 1]]])
  episodes = Episodes(observations, actions, real)
  broken = observations.at[0, 0, 3].set(jnp.nan), actions.at[0, 0, 2].set(jnp.inf)
  worse = Episodes(*broken, real)
  for one, other in zip(forward(PARAMS, episodes)[:3], forward(PARAMS, worse)[:3], strict=True):
    np.testing.assert_array_equal(np.where(real, one, 0), np.where(real, other, 0))
  np.testing.assert_array_equal(values(PARAMS, episodes).last, values(PARAMS, worse).last)


@pytest.mark.parametrize(
  ("agent", "environment", "message"),
  [
    (agents.categorical(3, 2), cartpole.load(), "'cartpole' has 4 observations, which the agent does not read"),
    (agents.categorical(4, 3), cartpole.load(), "environment 'cartpole' has 2 actions to choose from, the agent 3"),
    (agents.gaussian(4, 2), cartpole.load(), "environment 'cartpole' wants one of several actions, the agent's"),
    (agents.categorical(3, 2), pendulum.load(), "'pendulum' wants numbers, the agent's distribution is Cat"),
    (agents.gaussian(3, 2), pendulum.load(), "environment 'pendulum' wants 1 numbers an action, the agent 2"),
  ],
)
def test_an_agent_of_another_shape_is_one_clear_error(agent, environment, message):
  with pytest.raises(ValueError, match=message):
    rollouts_of(environment, agent)


@pytest.mark.parametrize("on_host", [False, True], ids=["device", "host"])
def test_an_environment_that_gives_other_things_than_it_says_is_one_clear_error(on_host):
  honest = counting(on_host)
  for wrong, message in (
    (honest._replace(weights={"number": 1.0}), r"must give the rewards \['number'\], which have weights, not"),
    (honest._replace(observation_size=2), r"must give observations \(8, 2\), it gave \(8, 1\)"),
    (honest._replace(max_steps=0), "max_steps of environment 'counting' must be at least 1, got 0"),
  ):
    with pytest.raises(ValueError, match=message):
      make_play(wrong, agents.gaussian(wrong.observation_size, 1))(
        agents.gaussian(wrong.observation_size, 1).init(jax.random.key(0)), None, KEYS, jax.random.key(1)
      )


def test_a_critic_is_asked_for_where_there_is_none():
  with pytest.raises(ValueError, match="needs values, which nothing gives"):
    rollouts_of(counting(), agents.gaussian(1, 1, critic=False))
