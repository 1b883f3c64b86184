"""What every environment promises, and the small ones against Gymnasium's own."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax import environments
from rl_jax.environments import agents
from rl_jax.environments.base import Box, Discrete
from rl_jax.rollouts.episodes import make_play

KEYS = jax.random.split(jax.random.key(0), 3)
LOADED = {
  "cartpole": environments.load("cartpole"),
  "pendulum": environments.load("pendulum"),
  "biped": environments.load("biped"),
  "gym": environments.load("gym", env_id="Pendulum-v1"),
}


def some_actions(environment, rows, seed=0):
  rng = np.random.default_rng(seed)
  if isinstance(environment.actions, Discrete):
    return rng.integers(environment.actions.count, size=rows)
  return rng.uniform(-1, 1, size=(rows, environment.actions.size)).astype(np.float32)


@pytest.mark.parametrize("name", LOADED)
def test_the_contract(name):
  environment = LOADED[name]
  actions = some_actions(environment, 3)
  found = []
  for _ in range(2):
    state, first = environment.reset(KEYS)
    after = environment.step(state, actions)
    found.append((np.asarray(first), *(np.asarray(x) for x in (after.observation, *after.rewards.values()))))
    assert first.shape == after.observation.shape == (3, environment.observation_size)
    assert set(after.rewards) == set(environment.weights) - {"failed"} and after.terminated.shape == (3,)
  for one, other in zip(*found, strict=True):
    np.testing.assert_array_equal(one, other)
  assert len({tuple(row) for row in found[0][0].tolist()}) == 3  # each key has a start of its own


@pytest.mark.parametrize("name", LOADED)
def test_rows_do_not_see_each_other(name):
  environment = LOADED[name]
  state, _ = environment.reset(KEYS)
  actions = some_actions(environment, 3)
  whole = environment.step(state, actions)
  state, _ = environment.reset(KEYS)
  part = environment.step(jax.tree.map(lambda leaf: leaf[1:], state), actions[1:])
  np.testing.assert_allclose(whole.observation[1:], part.observation, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["pendulum", "biped", "gym"])
def test_actions_out_of_range_are_clipped(name):
  environment = LOADED[name]
  outcomes = []
  for size in (1.0, 7.0):
    state, _ = environment.reset(KEYS)
    after = environment.step(state, np.full((3, environment.actions.size), size, np.float32))
    outcomes.append([np.asarray(after.observation), *map(np.asarray, after.rewards.values())])
  for one, other in zip(*outcomes, strict=True):
    np.testing.assert_array_equal(one, other)


def test_cartpole_is_gymnasiums():
  ours, theirs = LOADED["cartpole"], gymnasium.make("CartPole-v1").unwrapped
  state, seen = ours.reset(KEYS[:1])
  theirs.reset(seed=0)
  theirs.state = tuple(np.asarray(state[0], np.float64))
  for step in range(200):
    action = step // 2 % 2
    after = ours.step(state, jnp.array([action]))
    expected, reward, terminated, _, _ = theirs.step(action)
    state = after.state
    np.testing.assert_allclose(after.observation[0], expected, atol=1e-4)
    assert bool(after.terminated[0]) == terminated and float(after.rewards["upright"][0]) == reward
    if terminated:
      break
  assert terminated and step > 10


def test_the_pendulum_is_gymnasiums():
  ours, theirs = LOADED["pendulum"], gymnasium.make("Pendulum-v1").unwrapped
  state, _ = ours.reset(KEYS[:1])
  theirs.reset(seed=0)
  theirs.state = np.asarray(state[0], np.float64)
  for action in np.random.default_rng(0).uniform(-1.2, 1.2, size=50):
    after = ours.step(state, jnp.array([[action]], jnp.float32))
    expected, reward, _, _, _ = theirs.step([2 * action])
    state = after.state
    total = sum(ours.weights[name] * float(term[0]) for name, term in after.rewards.items())
    np.testing.assert_allclose(after.observation[0], expected, atol=2e-3)
    np.testing.assert_allclose(total, reward, atol=2e-3)


def test_gymnasiums_limit_is_ours_and_a_longer_one_starts_nothing_anew():
  environment = environments.load("gym", env_id="Pendulum-v1", max_steps=205)  # its own limit is 200
  state, first = environment.reset(KEYS[:1])
  expected = gymnasium.make("Pendulum-v1", max_episode_steps=300)
  expected.reset(seed=0)
  expected.unwrapped.state = np.array([np.arctan2(first[0, 1], first[0, 0]), first[0, 2]])
  for _ in range(205):
    after = environment.step(state, np.zeros((1, 1), np.float32))
    state, wanted = after.state, expected.step(np.zeros(1, np.float32))[0]
  np.testing.assert_allclose(after.observation[0], wanted, atol=5e-2)


class Cut(gymnasium.Env):
  """Counts its steps from 0, breaks off at the fourth, and wants actions of 1 to 3."""

  observation_space, action_space = gymnasium.spaces.Box(-9, 9, (1,)), gymnasium.spaces.Box(1, 3, (1,))

  def reset(self, *, seed=None, options=None):
    self.step_number = 0
    return np.zeros(1, np.float32), {}

  def step(self, action):
    assert self.action_space.contains(action)
    self.step_number += 1
    return np.full(1, self.step_number, np.float32), 1.0, False, self.step_number == 4, {}


def test_an_environment_that_breaks_off_by_itself_is_truncated():
  gymnasium.register("Cut-v0", Cut, max_episode_steps=10)
  try:
    environment = environments.load("gym", env_id="Cut-v0")
    agent = agents.gaussian(1, 1)
    play = make_play(environment, agent)
    played = play(agent.init(jax.random.key(0)), None, KEYS, jax.random.key(1))
  finally:
    del gymnasium.registry["Cut-v0"]
  assert played.observations[0, :5, 0].tolist() == [0, 1, 2, 3, 4]
  assert played.real.sum(axis=-1).tolist() == [4, 4, 4] and not played.terminated.any()


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("ant", {}, "unknown environment 'ant'; there are biped, cartpole, gym, pendulum"),
    ("cartpole", {"length": 3}, "environment 'cartpole' has no option 'length'; it has max_steps"),
    ("biped", {"seconds": float("inf")}, "seconds must be at least 0.02 and finite, got inf"),
    ("biped", {"speed": float("nan")}, "speed must be finite, got nan"),
    ("biped", {"noise": -1.0}, "noise must be at least 0, got -1.0"),
    ("gym", {"max_steps": -5}, "max_steps must be at least 1, or 0 for the environment's own, got -5"),
    ("cartpole", {"max_steps": "many"}, "option max_steps of environment 'cartpole' must be like 500, got 'many'"),
    ("biped", {"backend": "bullet"}, "backend must be mujoco or mjx, got 'bullet'"),
    ("biped", {"seconds": 0.001}, "seconds must be at least 0.02 and finite, got 0.001"),
    ("gym", {"env_id": "Nowhere-v0"}, "env_id 'Nowhere-v0' names no environment that Gymnasium can make"),
    ("gym", {"env_id": "FrozenLake-v1"}, "'FrozenLake-v1' must have a vector of observations, it has Discrete"),
  ],
)
def test_what_cannot_be_is_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    environments.load(name, **options)


def test_spaces_are_what_the_page_says():
  assert LOADED["cartpole"].actions == Discrete(2) and LOADED["gym"].actions == Box(1)
  assert LOADED["biped"].actions == Box(6) and LOADED["biped"].max_steps == 500
