"""The biped: its observations and rewards by hand from MuJoCo's own data, falls, broken simulations, both backends."""

import jax
import mujoco
import numpy as np
import pytest

from rl_jax.environments import biped, physics
from rl_jax.environments.base import guarded

KEYS = jax.random.split(jax.random.key(0), 3)
ROBOT = biped.load()


def weighted(after, environment=ROBOT):
  return sum(environment.weights[name] * np.asarray(term) for name, term in after.rewards.items())


def test_a_step_is_four_of_mujocos_and_what_is_observed_is_in_its_data():
  """One robot, by hand: the same torques in mj_step, and the 31 numbers read from MjData."""
  model = mujoco.MjModel.from_xml_path(str(biped.MODEL))
  data = mujoco.MjData(model)
  state, first = ROBOT.reset(KEYS[:1])
  data.qpos[:], data.qvel[:] = state.body.places[0], state.body.speeds[0]
  np.testing.assert_array_equal(first[0, 11:17], data.qpos[6:])
  assert np.ptp(first[0, 11:23]) > 0 and not first[0, :11].any() and not first[0, 23:].any()
  actions, forces = np.random.default_rng(0).uniform(-0.5, 0.5, size=(20, 6)), []
  for action in actions:
    after = ROBOT.step(state, action[None])
    state = after.state
    data.ctrl[:], data.qacc_warmstart[:] = 3 * action, 0
    for _ in range(4):
      mujoco.mj_step(model, data)
    q, v = data.qpos, data.qvel
    expected = [*q[1:3], *v[0:3], *q[3:6], *v[3:6], *q[6:12], *v[6:12], *data.sensordata, *(3 * action)]
    assert len(expected) == 31
    np.testing.assert_allclose(after.observation[0], expected, rtol=1e-6, atol=1e-6)
    forces.append(data.sensordata.sum())
    reward = v[0] - 3 * q[1] ** 2 - 50 * q[2] ** 2 + 25 * 0.02 / 10 - 0.02 * np.sum((3 * action) ** 2)
    np.testing.assert_allclose(weighted(after)[0], reward, rtol=1e-6)
  assert max(forces) > 30  # it stands on something


def test_it_stands_by_itself_for_a_while_and_weighs_what_it_weighs():
  state, _ = biped.load(noise=0.0).reset(KEYS)
  for _ in range(10):
    after = ROBOT.step(state, np.zeros((3, 6)))
    state = after.state
  model = mujoco.MjModel.from_xml_path(str(biped.MODEL))
  np.testing.assert_allclose(after.observation[:, 23:25].sum(axis=-1), model.body_mass.sum() * 9.81, rtol=0.02)
  assert not after.terminated.any()


@pytest.mark.parametrize(
  ("joint", "value", "fallen"),
  [
    (2, -0.2, True),
    (4, 0.9, True),
    (5, -0.9, True),
    (2, -0.1, False),
    (4, 0.7, False),
    (0, 9.0, False),
    (3, 2.0, False),
  ],
)
def test_a_fall_is_a_low_or_a_steep_torso(joint, value, fallen):
  state, _ = ROBOT.reset(KEYS)
  places = state.body.places.copy()
  places[:, 6:] = [-1.0, 1.8, 0, -1.0, 1.8, 0]  # with its feet off the ground, which would push it up
  places[1, joint] = value
  after = ROBOT.step(state._replace(body=state.body._replace(places=places)), np.zeros((3, 6)))
  assert after.terminated.tolist() == [False, fallen, False]


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e4, 1e11, 1e39])
def test_a_simulation_that_breaks_down_ends_its_episode_with_the_stated_reward(broken, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # MuJoCo keeps a log where it is
  environment = biped.load(failed=-7.0)
  state, _ = environment.reset(KEYS)
  speeds = state.body.speeds.copy()
  speeds[1, 6] = broken
  after, failed = guarded(environment)(state._replace(body=state.body._replace(speeds=speeds)), np.ones((3, 6)))
  assert failed.tolist() == after.terminated.tolist() == [False, True, False]
  assert weighted(after, environment)[1] == -7.0 and np.isfinite(weighted(after, environment)).all()
  assert not after.observation[1].any() and np.isfinite(after.observation).all()


def test_an_action_that_is_not_a_number_breaks_it_down_too():
  actions = np.zeros((3, 6))
  actions[2, 0] = np.nan
  after, failed = guarded(ROBOT)(ROBOT.reset(KEYS)[0], actions)
  assert failed.tolist() == [False, False, True] and weighted(after)[2] == -1


def test_weights_are_arguments_and_terms_are_logged_by_themselves():
  environment = biped.load(speed=2.0, sideways=0.0)
  assert environment.weights["speed"] == 2 and environment.weights["sideways"] == 0
  assert set(environment.weights) == {"speed", "sideways", "height", "alive", "effort", "failed"}


def test_the_planar_robot_stays_in_the_plane():
  environment, rng = biped.load(planar=True), np.random.default_rng(0)
  state, _ = environment.reset(KEYS)
  for _ in range(30):
    after = environment.step(state, rng.uniform(-1, 1, size=(3, 6)))
    state = after.state
  y, yaw, roll = state.body.places[:, [1, 3, 5]].T
  assert (
    max(np.abs(y).max(), np.abs(yaw).max(), np.abs(roll).max()) < 0.01 and np.abs(state.body.places[:, 4]).max() > 0.1
  )


@pytest.mark.slow
def test_both_backends_walk_alike_for_100_steps(x64):
  """In float64, from one start by one sequence of torques: in float32 whatever touches the ground drifts apart."""
  in_jax = biped.load(backend="mjx")
  assert not in_jax.on_host and in_jax.weights == ROBOT.weights
  with jax.numpy_rank_promotion("allow"):  # MJX's own
    step, (one, seen), (other, also) = jax.jit(in_jax.step), ROBOT.reset(KEYS), in_jax.reset(KEYS)
    step = step.lower(other, np.zeros((3, 6))).compile()
  np.testing.assert_allclose(seen, also, atol=1e-6)
  for number in range(100):
    # A spring at every joint keeps it up; a small wave makes it move.
    wave = 0.05 * np.sin(0.2 * number + np.arange(6))
    torques = np.clip(-4 * one.body.places[:, 6:] - 0.15 * one.body.speeds[:, 6:], -1, 1) + wave
    first, second = ROBOT.step(one, torques), step(other, torques)
    one, other = first.state, second.state
    np.testing.assert_allclose(one.body.places, other.body.places, atol=1e-8, err_msg=str(number))
    np.testing.assert_array_equal(first.terminated, second.terminated)
  np.testing.assert_allclose(one.body.forces, other.body.forces, atol=1e-4)
  np.testing.assert_allclose(weighted(first), weighted(second), atol=1e-6)
  assert not first.terminated.any()


def test_a_missing_package_says_what_to_install(monkeypatch):
  monkeypatch.setattr(physics.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
  with pytest.raises(ValueError, match=r"the simulation needs mujoco: pip install 'rl-jax\[control\]'"):
    biped.load()
