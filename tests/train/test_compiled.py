"""Compiled runs: seeds and hyperparameters as axes, chunks, critics, and what cannot be given."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import devices, objectives
from rl_jax.models import heads, presets
from rl_jax.models.transformer import policy
from rl_jax.objectives import kto, ppo
from rl_jax.ops import advantages, estimates
from rl_jax.runs.checkpoint import open_checkpoints
from rl_jax.tasks import on_device
from rl_jax.train.compiled import Config, compiled

TASK = on_device.load("sorting", length=2)
SHAPE = presets.small(TASK.vocab_size, layers=1, width=32)
MODEL = policy(SHAPE)
CRITIC = heads.with_value_head(MODEL, SHAPE.embed_dim)
GRPO = objectives.load("grpo", kl_coef=0)
SIZES = dict(num_prompts=4, group_size=4)


@pytest.mark.slow
def test_seeds_and_hyperparameters_are_axes():
  config = Config(steps=3, evaluate_every=3, evaluation_problems=8, warmup_steps=2, warmup_examples=4, **SIZES)

  def train(key, clip_high, rate):
    algorithm = objectives.load("grpo", clip_high=clip_high, kl_coef=0)
    return compiled(TASK, MODEL, algorithm, optax.sgd(rate), config)(key)

  keys = jax.random.split(jax.random.key(0), 2)
  clips, rates = jnp.array([0.2, 0.4]), jnp.array([0.2, 0.1])
  states, histories = jax.jit(jax.vmap(train))(keys, clips, rates)
  for i in range(2):
    state, history = jax.jit(train)(keys[i], clips[i], rates[i])
    chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], states.policy.params), state.policy.params, atol=1e-4)
    chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], histories), history, rtol=1e-3, atol=1e-4)
  assert histories.train["reward"].shape == (2, 3) and histories.evaluation["kl_ref"].shape == (2, 2)
  np.testing.assert_allclose(
    histories.evaluation["kl_ref"][:, 0], 0, atol=1e-6
  )  # at the start the policy is the reference


@pytest.mark.slow
def test_seeds_are_sharded_over_devices_without_a_difference():
  run = compiled(TASK, MODEL, GRPO, optax.sgd(0.1), Config(steps=2, **SIZES))
  keys = jax.random.split(jax.random.key(0), 8)
  alone = jax.jit(jax.vmap(run))(keys)
  spread = devices.over_runs(run, devices.make_mesh())(keys)
  assert len(jax.tree.leaves(spread)[0].sharding.device_set) == 4
  chex.assert_trees_all_close(alone[0].policy, jax.device_get(spread[0].policy), atol=1e-5)


@pytest.mark.slow
def test_chunks_and_a_checkpoint_between_them_make_the_whole_run(tmp_path):
  config = Config(steps=4, evaluate_every=2, evaluation_problems=8, **SIZES)
  run = compiled(TASK, MODEL, GRPO, optax.sgd(0.1), config)
  whole, history = jax.jit(run)(jax.random.key(0))
  state, first = jax.jit(run.start)(jax.random.key(0))
  advance = jax.jit(run.advance)
  state, early = advance(state)
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, state)
    state = checkpoints.resume(jax.jit(run.start)(jax.random.key(9))[0])
  state, late = advance(state)
  chex.assert_trees_all_close(state.policy, whole.policy, rtol=1e-5, atol=1e-6)
  rewards = jnp.concatenate([early.train["reward"], late.train["reward"]])
  np.testing.assert_allclose(history.train["reward"], rewards, rtol=1e-5)
  solved = jnp.stack([first["solved"], early.evaluation["solved"], late.evaluation["solved"]])
  np.testing.assert_allclose(history.evaluation["solved"], solved, rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "model", "options"),
  [
    ("remax", MODEL, {}),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ("ppo", CRITIC, {"epochs": 2, "minibatches": 2, "kl_coef": 0.1}),
        ("vapo", CRITIC, {}),
        ("reinforce_plus_plus", MODEL, {"kl_coef": 0.05}),
        ("kl_cov", MODEL, {}),
        ("instruct_gpt", CRITIC, {}),
      )
    ),
  ],
  ids=["remax", "ppo", "vapo", "reinforce_plus_plus", "kl_cov", "instruct_gpt"],
)
def test_every_kind_of_advantage_trains(name, model, options):
  config = Config(steps=2, **SIZES, **options)
  run = compiled(TASK, model, objectives.load(name), optax.adam(1e-2), config)
  start, _ = jax.jit(run.start)(jax.random.key(0))
  state, history = jax.jit(run.advance)(start)
  unmeasured = {name for name, values in history.train.items() if not np.isfinite(values).all()}
  assert unmeasured <= {"nll"}  # where nothing was solved, nothing is imitated
  moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), state.policy.params, start.policy.params)
  assert max(jax.tree.leaves(moved)) > 1e-3
  np.testing.assert_array_equal(history.train["skipped"], 0)


@pytest.mark.slow
def test_a_running_mean_outlives_the_rollout():
  """Without learning, the baseline is the mean of what was seen: b' = 0.5 b + 0.5 mean(s), from 0."""
  algorithm = objectives.algorithm(GRPO.objective({}), estimates.against_running_mean(decay=0.5))
  run = compiled(TASK, MODEL, algorithm, optax.sgd(0.0), Config(steps=3, **SIZES))
  state, history = jax.jit(run)(jax.random.key(0))
  expected = 0.0
  for reward in np.asarray(history.train["reward"]):
    expected = 0.5 * expected + 0.5 * reward
  assert float(state.running.reward_baseline) == pytest.approx(expected, rel=1e-5) and expected > 0


def test_a_task_without_steps_has_no_process_rewards():
  config = Config(steps=1, process_rewards=True, **SIZES)
  run = compiled(TASK, MODEL, objectives.load("reinforce_plus_plus"), optax.sgd(0.1), config)
  with pytest.raises(ValueError, match="task .sort-2. has no rewards of steps"):
    run(jax.random.key(0))


@pytest.mark.slow
def test_warm_up_learns_from_demonstrations():
  task = on_device.load("stopping", longest=3)
  model = policy(presets.small(task.vocab_size, layers=1, width=32))
  config = Config(steps=1, evaluate_every=1, warmup_steps=300, warmup_examples=64, **SIZES)
  run = compiled(task, model, objectives.load("grpo"), optax.sgd(0.0), config)
  _, first = jax.jit(run.start)(jax.random.key(0))
  assert float(first["solved"]) > 0.9


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"steps": 0}, "steps must be at least 1"),
    ({"num_prompts": 3, "minibatches": 2}, "num_prompts must be a multiple of minibatches = 2, got 3"),
    ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    ({"steps": 3, "evaluate_every": 2}, "steps must be a multiple of evaluate_every = 2, got 3"),
  ],
)
def test_bad_config_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**change)


def test_what_a_run_cannot_give_is_named():
  build = partial(compiled, TASK, optimizer=optax.sgd(0.1), config=Config(steps=1))
  grouped = estimates.per_completion(advantages.group_normalized)
  with pytest.raises(ValueError, match="objective 'kto' does not learn from rewards"):
    build(MODEL, objectives.load("kto"))
  with pytest.raises(ValueError, match="needs kl_baseline, which no rollout gives"):
    build(MODEL, objectives.algorithm(kto.objective(), grouped))
  with pytest.raises(ValueError, match="needs returns, which its advantage does not give"):
    build(CRITIC, objectives.algorithm(ppo.objective(), grouped))
  with pytest.raises(ValueError, match="it wants a model with a critic"):
    build(MODEL, objectives.algorithm(ppo.objective(), ppo.advantage()))
  with pytest.raises(ValueError, match="needs teacher_logp, which no rollout gives"):
    build(MODEL, objectives.algorithm(GRPO.objective({}), estimates.from_teacher()))
  with pytest.raises(ValueError, match="'ppo_kl' needs more than one update a rollout: raise epochs or minibatches"):
    build(CRITIC, objectives.load("ppo_kl"))
  with pytest.raises(ValueError, match="'grpo' has a KL to the reference in its loss: the reward cannot have another"):
    build(MODEL, objectives.load("grpo"), config=Config(steps=1, kl_coef=0.1))
  with pytest.raises(ValueError, match="nothing to learn from: task_weight is 0, and there is no reward model"):
    build(MODEL, GRPO, config=Config(steps=1, task_weight=0.0))
