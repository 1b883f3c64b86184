"""The loop on a bigram model: what it writes, how it stops, and that a resumed run is bit for bit the same."""

import os
import signal
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import devices, objectives
from rl_jax.models.presets import character_tokenizer
from rl_jax.objectives.base import Inputs
from rl_jax.ops.metrics import Mean
from rl_jax.rollouts.collect import Collected
from rl_jax.runs.checkpoint import open_checkpoints
from rl_jax.runs.directory import RunDirectory, read_lines
from rl_jax.runs.results import Measurements
from rl_jax.state import Batch, RLState, Sequences
from rl_jax.tasks import Task
from rl_jax.tasks.rewards import Reward
from rl_jax.train import loop
from rl_jax.train.forward import make_forward
from rl_jax.train.schedule import Schedule
from rl_jax.train.step import make_train_step
from tests.fakes import bigram, bigram_params, text_rollouts

TOKENIZER = character_tokenizer("0123456789")  # 13 tokens with the special ones, as the bigram model has
MESH = devices.make_mesh(data=1, devices=jax.devices()[:1])


def sevens(completions, **_):
  return [text.count("7") / max(len(text), 1) for text in completions]


SEVENS = (Reward(sevens, 1.0, "sevens"),)


def make(rewards=SEVENS, kl_coef=0.1, num_prompts=4, schedule=Schedule(), mesh=MESH):
  task = Task("sevens", lambda i: {"prompt": str(i % 89 + 10)}, [{"prompt": "12"}], rewards)
  algorithm = objectives.load("grpo", kl_coef=kl_coef)
  optimizer = optax.adam(0.05, eps=1e-4)  # a smaller one makes whole steps of the rounding of gradients that cancel
  put = partial(devices.put, mesh=mesh)
  rollouts = text_rollouts(
    task,
    TOKENIZER,
    bigram(),
    algorithm,
    num_prompts=num_prompts,
    group_size=4,
    max_new_tokens=5,
    on_policy=schedule.on_policy,
    put=put,
  )
  state = RLState.create(bigram_params(), optimizer, jax.random.key(1), keep_reference=kl_coef > 0)
  return SimpleNamespace(
    state=devices.replicate(state, mesh),
    collect=rollouts.collect,
    update=devices.jit_step(make_train_step(make_forward(bigram()), algorithm.objective, optimizer), mesh),
    put=put,
    schedule=schedule,
  )


def fit(folder, steps, parts=None, resume=False, checkpoint_every=1):
  parts = parts or make()
  with RunDirectory(folder, {"seed": 1}, resume=resume) as run, open_checkpoints(folder / "checkpoints") as checkpoints:
    resumed = checkpoints.latest()
    run.rewind(-1 if resumed is None else resumed)
    return loop.fit(
      checkpoints.resume(parts.state),
      steps=steps,
      collect=parts.collect,
      update=parts.update,
      run=run,
      checkpoints=checkpoints,
      checkpoint_every=checkpoint_every,
      schedule=parts.schedule,
      put=parts.put,
    )


def leaves(state):
  plain = state._replace(key=jax.random.key_data(state.key))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(2, 2)])
def test_resumed_run_is_bit_identical(tmp_path, schedule):
  whole, done = fit(tmp_path / "whole", 6, make(schedule=schedule))
  assert done == 6
  fit(tmp_path / "parts", 2, make(schedule=schedule))
  fit(tmp_path / "parts", 5, make(schedule=schedule), resume=True)
  resumed, done = fit(tmp_path / "parts", 6, make(schedule=schedule), resume=True)
  assert done == 6
  for one, other in zip(leaves(whole), leaves(resumed), strict=True):
    np.testing.assert_array_equal(one, other)
  metrics = [read_lines(tmp_path / name, "metrics.jsonl") for name in ("whole", "parts")]
  for rows in metrics:
    for row in rows:
      for measured in ("seconds", "seconds/rollout", "tokens_per_second", "peak_gib"):
        del row[measured]
  assert metrics[0] == metrics[1]
  samples = [read_lines(tmp_path / name, "samples.jsonl") for name in ("whole", "parts")]
  assert samples[0] == samples[1] and len(samples[0]) == 6 * 16


@pytest.mark.parametrize("schedule", [pytest.param(Schedule(), marks=pytest.mark.slow), Schedule(2, 2)])
def test_four_devices_do_what_one_does(tmp_path, schedule):
  one, _ = fit(tmp_path / "one", 3, make(num_prompts=8, schedule=schedule))
  four, _ = fit(tmp_path / "four", 3, make(num_prompts=8, mesh=devices.make_mesh(), schedule=schedule))
  for a, b in zip(leaves(one), leaves(four), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  samples = [read_lines(tmp_path / name, "samples.jsonl") for name in ("one", "four")]
  assert samples[0] == samples[1]


def test_it_learns_and_writes(tmp_path):
  fit(tmp_path / "run", 40, make(kl_coef=0.0), checkpoint_every=0)
  rows = read_lines(tmp_path / "run", "metrics.jsonl")
  assert [row["step"] for row in rows] == list(range(1, 41))
  assert np.mean([row["reward"] for row in rows[-5:]]) > np.mean([row["reward"] for row in rows[:5]]) + 0.3
  assert {
    "reward",
    "reward_std",
    "zero_variance",
    "length",
    "entropy",
    "grad_norm",
    "clip_low",
    "tokens_per_second",
    "seconds",
    "seconds/rollout",
    "terminated",
    "skipped",
    "loss",
  } <= set(rows[0])
  sample = read_lines(tmp_path / "run", "samples.jsonl")[0]
  assert set(sample) == {"step", "prompt", "completion", "reward", "rewards", "tokens"}
  assert "nan" not in (tmp_path / "run" / "metrics.jsonl").read_text().lower()


def test_off_policy_updates_have_ratios(tmp_path):
  fit(tmp_path / "run", 3, make(schedule=Schedule(3, 2)))
  rows = read_lines(tmp_path / "run", "metrics.jsonl")
  assert all(row["approx_kl"] > 0 for row in rows)
  on_policy = tmp_path / "on"
  fit(on_policy, 3)
  assert all(row["approx_kl"] == 0 for row in read_lines(on_policy, "metrics.jsonl"))


def test_a_schedule_of_several_updates_needs_rollouts_that_were_made_for_it(tmp_path):
  """Without old log-probs every update would count as the first: ratios of 1, no clipping, no KL, and no word of it."""
  parts = make()
  parts.schedule = Schedule(2, 2)
  with pytest.raises(ValueError, match="made for one update and has no old log-probs: the schedule has 4 updates"):
    fit(tmp_path / "run", 1, parts)


def test_updates_stop_by_a_metric_that_is_there():
  assert loop.stop_above(0.1)({"approx_kl": 0.2, "loss": 0.0}) and not loop.stop_above(0.1)({"approx_kl": 0.1})
  with pytest.raises(ValueError, match="target_kl needs the metric approx_kl, which the objective lacks; it has loss"):
    loop.stop_above(0.1)({"loss": 0.0})


def test_failing_reward_saves_what_was_learned(tmp_path):
  calls = []

  def fragile(completions, **_):
    calls.append(1)
    if len(calls) == 3:
      raise RuntimeError("service is down")
    return sevens(completions)

  with pytest.raises(ValueError, match="'fragile' raised RuntimeError"):
    fit(tmp_path / "run", 6, make(rewards=(Reward(fragile, 1.0, "fragile"),)), checkpoint_every=0)
  with open_checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
    assert checkpoints.latest() == 2
  _, done = fit(tmp_path / "run", 6, make(rewards=(Reward(fragile, 1.0, "fragile"),)), resume=True)
  whole, _ = fit(tmp_path / "whole", 6)
  resumed, _ = fit(tmp_path / "run", 6, resume=True)
  for one, other in zip(leaves(whole), leaves(resumed), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_saves(tmp_path, number):
  calls, handler = [], signal.getsignal(number)

  def interrupting(completions, **_):
    calls.append(1)
    if len(calls) == 2:
      os.kill(os.getpid(), number)
    return sevens(completions)

  parts = make(rewards=(Reward(interrupting, 1.0, "interrupting"),))
  _, done = fit(tmp_path / "run", 6, parts, checkpoint_every=0)
  assert done == 2
  with open_checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
    assert checkpoints.latest() == 2
  assert signal.getsignal(number) is handler


def test_failing_update_shows_its_own_error_and_keeps_older_checkpoints(tmp_path):
  parts, calls = make(), []
  update = parts.update

  def failing(state, batch):
    state, metrics = update(state, batch)  # takes the buffers of the state that came in
    calls.append(1)
    if len(calls) == 3:
      raise RuntimeError("out of memory")
    return state, metrics

  parts.update = failing
  with pytest.raises(RuntimeError, match="out of memory"):
    fit(tmp_path / "run", 6, parts)
  with open_checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
    assert checkpoints.latest() == 2


def test_every_minibatch_has_its_share_of_the_text(tmp_path):
  rows = jnp.arange(6)[:, None, None]  # four of a rollout, two of text
  batch = Batch(Sequences(rows[..., 0], rows[..., 0], rows, rows), Inputs(mask=jnp.ones((6, 1, 1))))
  state, found = RLState.create(bigram_params(), optax.sgd(0.1), jax.random.key(0), keep_reference=False), []

  def collect(state):
    return Collected(state, batch, {"tokens": 1.0}, extra_rows=2)

  def update(policy, part):
    found.append(sorted(part.sequences.completions.ravel().tolist()))
    return policy, {"loss": Mean.of(jnp.zeros(()), jnp.ones(())), "skipped": Mean.of(jnp.zeros(()), jnp.ones(()))}

  with RunDirectory(tmp_path, {}, resume=False) as run, open_checkpoints(tmp_path / "checkpoints") as checkpoints:
    loop.fit(state, steps=1, collect=collect, update=update, run=run, checkpoints=checkpoints, schedule=Schedule(2, 2))
  assert [sum(row >= 4 for row in part) for part in found] == [1, 1, 1, 1]
  assert sorted(found[0] + found[1]) == sorted(found[2] + found[3]) == list(range(6))


def test_a_run_is_evaluated_and_kept_on_the_way(tmp_path):
  def evaluate(state):
    return Measurements({"rollouts": float(state.rollouts)})

  def save(folder, state):
    folder.mkdir(parents=True)
    (folder / "rollouts").write_text(str(int(state.rollouts)))

  parts = make()
  with RunDirectory(tmp_path / "run", {}, resume=False) as run:
    settings = dict(collect=parts.collect, update=parts.update, put=parts.put, save=save)
    loop.train(parts.state, run=run, evaluate=evaluate, steps=5, evaluations=2, snapshots=2, **settings)
  rows = read_lines(tmp_path / "run", "evaluation.jsonl")
  assert [(row["step"], row["values"]["rollouts"]) for row in rows] == [(0, 0), (2, 2), (3, 3), (4, 4), (5, 5)]
  kept = {path.name: (path / "rollouts").read_text() for path in (tmp_path / "run" / "snapshots").iterdir()}
  assert kept == {"000002": "2", "000004": "4"}
  with (
    RunDirectory(tmp_path / "other", {}, resume=False) as run,
    pytest.raises(ValueError, match="snapshots must be 0"),
  ):
    loop.train(parts.state, run=run, evaluate=evaluate, steps=5, snapshots=2)


def test_a_whole_run_is_evaluated_at_both_ends_and_once_each(tmp_path):
  seen = []

  def evaluate(state):
    seen.append(int(state.rollouts))
    return Measurements({"rollouts": float(state.rollouts)})

  for steps, resume in ((2, False), (2, True), (3, True)):
    parts = make()
    with RunDirectory(tmp_path / "run", {}, resume=resume) as run:
      settings = dict(collect=parts.collect, update=parts.update, put=parts.put)
      _, done = loop.train(parts.state, run=run, evaluate=evaluate, steps=steps, **settings)
    assert done == steps
  assert seen == [0, 2, 3]
  rows = read_lines(tmp_path / "run", "evaluation.jsonl")
  assert [(row["step"], row["values"]["rollouts"]) for row in rows] == [(0, 0), (2, 2), (3, 3)]
  assert [row["step"] for row in read_lines(tmp_path / "run", "metrics.jsonl")] == [1, 2, 3]
