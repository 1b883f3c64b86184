"""Learning in environments: the loop and the compiled run make the same updates, and cart-pole is learned by both."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.devices import Devices, make_mesh, replicate
from rl_jax.environments import agents, biped, cartpole, pendulum
from rl_jax.ops import kl
from rl_jax.ops.shaping import Shaping
from rl_jax.runs.checkpoint import open_checkpoints
from rl_jax.runs.directory import RunDirectory, read_lines
from rl_jax.train import loop
from rl_jax.train.compiled_episodes import Config, compiled_episodes
from rl_jax.train.control import adaptive_kl, make_control
from rl_jax.train.episodes import evaluation_of, make_episode_rollouts, make_forward
from rl_jax.train.step import make_train_step

OF_THE_HOST = {"step", "seconds", "seconds/rollout", "tokens_per_second", "compiles", "peak_gib"}
REUSED = dict(epochs=2, minibatches=2)


def fit(folder, start, environment, agent, algorithm, optimizer, config, controllers):
  devices = Devices(make_mesh(data=1, devices=jax.devices()[:1]))
  rollouts = make_episode_rollouts(
    environment,
    agent,
    algorithm,
    devices,
    num_starts=config.num_starts,
    group_size=config.group_size,
    schedule=config.schedule,
    shaping=Shaping(kl=kl.k1 if config.pays_kl else None),
  )
  forward = make_forward(agent)
  with RunDirectory(folder, {}, resume=False) as run, open_checkpoints(folder / "checkpoints") as checkpoints:
    fitted, _ = loop.fit(
      replicate(start, devices.mesh),
      steps=config.steps,
      collect=rollouts.collect,
      update=devices.step(make_train_step(forward, algorithm.objective, optimizer)),
      run=run,
      checkpoints=checkpoints,
      schedule=config.schedule,
      put=devices.put,
      control=jax.jit(make_control(forward, controllers)) if controllers else None,
    )
  return fitted, read_lines(folder, "metrics.jsonl")


@pytest.mark.parametrize(
  ("algorithm", "environment", "agent", "config", "controllers"),
  [
    pytest.param(
      objectives.load("ppo", gamma=0.9),
      pendulum.load(max_steps=12),
      agents.gaussian(3, 1, widths=(8,)),
      Config(steps=2, num_starts=4, kl_coef=0.1, **REUSED),
      (adaptive_kl(target=0.05, horizon=100.0, samples=4),),
      id="ppo with a KL in the reward",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      objectives.load("grpo", kl_coef=0.1),
      cartpole.load(max_steps=12),
      agents.categorical(4, 2, widths=(8,), critic=False),
      Config(steps=2, num_starts=4, group_size=3),
      (),
      id="grpo",
    ),
    pytest.param(
      objectives.load("remax"),
      cartpole.load(max_steps=12),
      agents.categorical(4, 2, widths=(8,), critic=False),
      Config(steps=2, num_starts=4, group_size=2),
      (),
      id="remax",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_the_loop_and_the_compiled_run_make_the_same_updates(
  tmp_path, algorithm, environment, agent, config, controllers
):
  optimizer = optax.adam(1e-2)
  run = compiled_episodes(environment, agent, algorithm, optimizer, config, controllers=controllers)
  start, _ = jax.jit(run.start)(jax.random.key(3))
  fitted, rows = fit(tmp_path, start, environment, agent, algorithm, optimizer, config, controllers)
  state, history = jax.jit(run.advance)(start)
  assert int(state.policy.step) == int(fitted.policy.step) == config.steps * config.epochs * config.minibatches
  assert int(state.running.position) == int(fitted.running.position) == config.steps * config.num_starts
  chex.assert_trees_all_close(state.policy.params, jax.device_get(fitted.policy.params), rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(state.running, jax.device_get(fitted.running), rtol=1e-4)
  moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), state.policy.params, start.policy.params)
  assert max(jax.tree.leaves(moved)) > 1e-2
  assert len(rows) == config.steps and set(history.train) == set(rows[0]) - OF_THE_HOST
  for name, values in history.train.items():
    np.testing.assert_allclose(values, [row[name] for row in rows], rtol=1e-3, atol=1e-4, err_msg=name)


def test_ppo_learns_cartpole():
  """Two seeds in one program: from falling at once to standing for 200 steps, greedily."""
  run = compiled_episodes(
    cartpole.load(max_steps=200),
    agents.categorical(4, 2),
    objectives.load("ppo", gamma=0.99, value_clip=None, value_coef=0.5),
    optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2.5e-3)),
    Config(steps=20, num_starts=16, epochs=8, minibatches=4, evaluate_every=20),
  )
  _, history = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 2))
  before, after = history.evaluation["return"].T
  assert before.max() < 100 and after.min() > 150


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["grpo", "reinforce", "rloo"])
def test_what_needs_no_critic_learns_cartpole_too(objective):
  run = compiled_episodes(
    cartpole.load(max_steps=100),
    agents.categorical(4, 2, critic=False),
    objectives.load(objective),
    optax.adam(1e-2),
    Config(steps=40, num_starts=8, group_size=8, evaluate_every=40),
  )
  _, history = jax.jit(run)(jax.random.key(0))
  assert float(history.evaluation["return"][0]) < 60 and float(history.evaluation["return"][1]) > 80


def test_evaluation_is_greedy_and_the_same_every_time():
  environment, agent = cartpole.load(max_steps=30), agents.categorical(4, 2)
  evaluate, params = evaluation_of(environment, agent, episodes=4), agent.init(jax.random.key(0))
  found = evaluate(params, None)
  assert set(found) == {"return", "length", "terminated", "upright"}
  assert float(found["return"]) == float(found["length"]) == float(found["upright"])
  chex.assert_trees_all_equal(found, evaluate(params, None))


def test_what_runs_on_the_host_is_refused_in_a_program():
  with pytest.raises(ValueError, match="environment 'biped' runs on the host: it has no place in a compiled program"):
    compiled_episodes(biped.load(), agents.gaussian(31, 6), objectives.load("ppo"), optax.adam(1e-3), Config())


def test_sizes_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="num_starts must be a multiple of minibatches = 3, got 16"):
    Config(minibatches=3)
