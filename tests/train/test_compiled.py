"""Compiled runs: the same updates as the loop on the host, seeds and hyperparameters as axes, chunks, critics."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax.models import heads, presets
from rl_jax.models.transformer import policy
from rl_jax.objectives import grpo, instruct_gpt, kl_cov, kto, ppo, remax, vapo
from rl_jax.objectives import reinforce_plus_plus as rpp
from rl_jax.ops import returns
from rl_jax.sampling.generate import make_generate
from rl_jax.sampling.samplers import Sampler
from rl_jax.tasks import on_device
from rl_jax.tasks.on_device import base
from rl_jax.tasks.on_device.host import to_host
from rl_jax.train import device_rollout, loop, parallel
from rl_jax.train.checkpoint import open_checkpoints
from rl_jax.train.compiled import Settings, compiled
from rl_jax.train.estimates import Estimate
from rl_jax.train.metrics_io import RunDirectory, read_lines
from rl_jax.train.rollout import make_collect
from rl_jax.train.score import make_score
from rl_jax.train.state import RLState
from rl_jax.train.step import make_train_step

TASK = on_device.load("sorting", length=2)
CONFIG = presets.small(TASK.vocab_size, layers=1, width=32)
MODEL = policy(CONFIG)
CRITIC = heads.with_value_head(MODEL, CONFIG.embed_dim)
SIZES = dict(prompts=4, group_size=4)


def fit_on_the_host(folder, state, objective, tx, settings):
  """The same run by `loop.fit`, from the same state: text prompts, rewards on the host."""
  tokenizer = presets.character_tokenizer(TASK.characters)
  score = make_score(MODEL)
  mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
  place = partial(parallel.shard_rows, mesh=mesh)
  sizes = dict(group_size=settings.group_size, max_new_tokens=TASK.max_new_tokens, pad_token=0)
  collect = make_collect(
    task=to_host(TASK, key=state.keys().problems, batch=settings.prompts),
    tokenizer=tokenizer,
    generate=jax.jit(make_generate(MODEL, **sizes)),
    score=jax.jit(score),
    objective=objective,
    sampler=Sampler(),
    stop_tokens=np.array([tokenizer.eos_token_id]),
    prompts_per_batch=settings.prompts,
    max_prompt_tokens=16,
    on_policy=settings.epochs * settings.minibatches == 1,
    place=place,
  )
  with RunDirectory(folder, {}, resume=False) as run, open_checkpoints(folder / "checkpoints") as checkpoints:
    fitted, _ = loop.fit(
      parallel.replicate(state, mesh),
      steps=settings.steps,
      collect=collect,
      update=parallel.jit_step(make_train_step(score, objective, tx), mesh),
      run=run,
      checkpoints=checkpoints,
      epochs=settings.epochs,
      minibatches=settings.minibatches,
      place=place,
    )
  return fitted, read_lines(folder, "metrics.jsonl")


@pytest.mark.parametrize("reuse", [{}, {"epochs": 2, "minibatches": 2}], ids=["on-policy", "off-policy"])
def test_makes_the_updates_of_the_loop_on_the_host(tmp_path, reuse):
  objective, tx = grpo.objective(kl_coef=0.1), optax.adam(1e-2)
  settings = Settings(steps=3, **SIZES, **reuse)
  run = compiled(TASK, MODEL, objective, tx, settings)
  start, _ = jax.jit(run.start)(jax.random.key(3))
  fitted, rows = fit_on_the_host(tmp_path, start, objective, tx, settings)
  state, history = jax.jit(run.advance)(start)
  assert int(state.policy.step) == int(fitted.policy.step) == 3 * settings.epochs * settings.minibatches
  chex.assert_trees_all_close(state.policy.params, jax.device_get(fitted.policy.params), rtol=1e-5, atol=1e-5)
  moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), state.policy.params, start.policy.params)
  assert max(jax.tree.leaves(moved)) > 1e-2
  for name in ("reward", "loss", "grad_norm", "completion_tokens", "zero_variance", "policy/ratio", "entropy"):
    np.testing.assert_allclose(history.train[name], [row[name] for row in rows], rtol=1e-4, atol=1e-5, err_msg=name)


def test_seeds_and_hyperparameters_are_axes():
  settings = Settings(steps=3, evaluate_every=3, evaluation_problems=8, warmup_steps=2, warmup_examples=4, **SIZES)

  def train(key, clip_high, rate):
    objective = grpo.objective(clip_high=clip_high, kl_coef=0)
    return compiled(TASK, MODEL, objective, optax.sgd(rate), settings)(key)

  keys = jax.random.split(jax.random.key(0), 2)
  clips, rates = jnp.array([0.2, 0.4]), jnp.array([0.2, 0.1])
  states, histories = jax.jit(jax.vmap(train))(keys, clips, rates)
  for i in range(2):
    state, history = jax.jit(train)(keys[i], clips[i], rates[i])
    chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], states.policy.params), state.policy.params, atol=1e-4)
    chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], histories), history, rtol=1e-3, atol=1e-4)
  assert histories.train["reward"].shape == (2, 3) and histories.evaluation["kl"].shape == (2, 2)
  np.testing.assert_allclose(histories.evaluation["kl"][:, 0], 0, atol=1e-6)  # at the start the policy is the reference


def test_seeds_are_sharded_over_devices_without_a_difference():
  run = compiled(TASK, MODEL, grpo.objective(kl_coef=0), optax.sgd(0.1), Settings(steps=2, **SIZES))
  keys = jax.random.split(jax.random.key(0), 8)
  alone = jax.jit(jax.vmap(run))(keys)
  spread = parallel.over_runs(run, parallel.make_mesh())(keys)
  assert len(jax.tree.leaves(spread)[0].sharding.device_set) == 4
  chex.assert_trees_all_close(alone[0].policy, jax.device_get(spread[0].policy), atol=1e-5)


def test_chunks_and_a_checkpoint_between_them_make_the_whole_run(tmp_path):
  settings = Settings(steps=4, evaluate_every=2, evaluation_problems=8, **SIZES)
  run = compiled(TASK, MODEL, grpo.objective(kl_coef=0), optax.sgd(0.1), settings)
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
  ("module", "model", "options"),
  [
    (ppo, CRITIC, {"epochs": 2, "minibatches": 2, "kl_in_reward": 0.1}),
    (vapo, CRITIC, {}),
    (remax, MODEL, {}),
    (rpp, MODEL, {"kl_in_reward": 0.05}),
    (kl_cov, MODEL, {}),
    (instruct_gpt, CRITIC, {}),
  ],
  ids=lambda x: getattr(x, "__name__", ""),
)
def test_every_kind_of_estimator_trains(module, model, options):
  settings = Settings(steps=2, **SIZES, **options)
  run = compiled(TASK, model, module.objective(), optax.adam(1e-2), settings, estimator=module.estimator)
  start, _ = jax.jit(run.start)(jax.random.key(0))
  state, history = jax.jit(run.advance)(start)
  assert all(np.isfinite(values).all() for values in history.train.values())
  moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), state.policy.params, start.policy.params)
  assert max(jax.tree.leaves(moved)) > 1e-3
  np.testing.assert_array_equal(history.train["skipped"], 0)


@pytest.mark.parametrize("process_rewards", [True, False])
def test_rewards_stand_where_they_were_earned(process_rewards):
  task = on_device.load("parity", bits=3)
  model = policy(presets.small(task.vocab_size, layers=1, width=32))
  as_they_are = Estimate(lambda experience: {"advantages": experience.token_rewards})
  objective = rpp.objective()
  collect = device_rollout.make_collect(
    task,
    model,
    make_score(model),
    objective,
    as_they_are,
    prompts=8,
    group_size=4,
    process_rewards=process_rewards,
    mask_truncated=not process_rewards,
  )
  state = RLState.create(model.init(jax.random.key(0)), optax.sgd(0.1), jax.random.key(1), keep_reference=False)
  _, batch, metrics = jax.jit(collect)(state)
  problems = base.sample(task, jax.random.fold_in(state.keys().problems, 0), 8)
  tokens, mask = batch.sequences.completions, batch.sequences.completion_mask
  verdict = base.judge(task, problems.data, tokens, mask)
  stopped = np.asarray(jnp.max(tokens == base.EOS, axis=-1))
  assert 0 < stopped.mean() < 1
  trained = np.asarray(mask) & stopped[..., None] if not process_rewards else mask
  np.testing.assert_array_equal(batch.inputs.mask, trained)
  rewards = np.asarray(batch.inputs.advantages)
  if process_rewards:
    np.testing.assert_array_equal(rewards, verdict.step_rewards)
    assert len(np.unique(rewards)) > 2
  else:
    last = np.asarray(mask).sum(-1) - 1
    at_last = np.take_along_axis(rewards, last[..., None], axis=-1)[..., 0]
    np.testing.assert_array_equal(at_last, verdict.reward)
    np.testing.assert_array_equal(rewards.sum(-1), verdict.reward)
    assert 0 < float(metrics["solved"]) < 1


def test_completions_left_out_of_the_loss_keep_their_rewards_beside_a_kl():
  """A group's baseline needs the rewards of its truncated completions too, with and without a KL in the reward."""
  task = on_device.load("parity", bits=3)
  model = policy(presets.small(task.vocab_size, layers=1, width=32))
  totals = Estimate(lambda experience: {"advantages": experience.token_rewards})

  def rewards(kl_in_reward):
    collect = device_rollout.make_collect(
      task,
      model,
      make_score(model),
      rpp.objective(),
      totals,
      prompts=8,
      group_size=4,
      kl_in_reward=kl_in_reward,
      mask_truncated=True,
      process_rewards=True,
    )
    state = RLState.create(model.init(jax.random.key(0)), optax.sgd(0.1), jax.random.key(1), keep_reference=True)
    _, batch, _ = jax.jit(collect)(state)
    cut_off = ~jnp.any(batch.inputs.mask, axis=-1)
    return np.asarray(batch.inputs.advantages), np.asarray(cut_off)

  (plain, cut_off), (with_kl, _) = rewards(0.0), rewards(0.1)  # the reference is the policy: a KL of rounding
  assert plain[cut_off].sum() > 0
  np.testing.assert_allclose(plain, with_kl, atol=1e-6)


def test_a_task_without_steps_has_no_process_rewards():
  settings = Settings(steps=1, process_rewards=True, **SIZES)
  run = compiled(TASK, MODEL, rpp.objective(), optax.sgd(0.1), settings, estimator=rpp.estimator)
  with pytest.raises(ValueError, match="task .sort-2. has no rewards of steps"):
    run(jax.random.key(0))


def test_warm_up_learns_from_demonstrations():
  task = on_device.load("stopping", longest=3)
  model = policy(presets.small(task.vocab_size, layers=1, width=32))
  settings = Settings(steps=1, evaluate_every=1, warmup_steps=300, warmup_examples=64, **SIZES)
  run = compiled(task, model, grpo.objective(), optax.sgd(0.0), settings)
  _, first = jax.jit(run.start)(jax.random.key(0))
  assert float(first["solved"]) > 0.9


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"steps": 0}, "steps must be at least 1"),
    ({"prompts": 3, "minibatches": 2}, "prompts must be a multiple of minibatches = 2, got 3"),
    ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    ({"steps": 3, "evaluate_every": 2}, "steps must be a multiple of evaluate_every = 2, got 3"),
  ],
)
def test_bad_settings_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    Settings(**change)


def test_what_a_run_cannot_give_is_named():
  build = partial(compiled, TASK, MODEL, optimiser=optax.sgd(0.1), settings=Settings(steps=1))
  with pytest.raises(ValueError, match="needs kl_baseline, which no rollout gives"):
    build(objective=kto.objective())
  with pytest.raises(ValueError, match="give a model with a value head"):
    build(objective=ppo.objective(), estimator=returns.gae)
  with pytest.raises(ValueError, match="not one of the forms"):
    build(objective=grpo.objective(), estimator=lambda scores: scores)
