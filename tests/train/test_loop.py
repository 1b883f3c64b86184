"""The loop on a bigram model: what it writes, how it stops, and that a resumed run is bit for bit the same."""

import json
import os
import signal
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax.models.presets import character_tokenizer
from rl_jax.objectives import grpo
from rl_jax.sampling.generate import make_generate
from rl_jax.sampling.samplers import Sampler
from rl_jax.tasks import Task
from rl_jax.tasks.rewards import Reward
from rl_jax.train import loop, parallel
from rl_jax.train.checkpoint import open_checkpoints
from rl_jax.train.evaluate import Evaluation
from rl_jax.train.metrics_io import RunDirectory, read_lines
from rl_jax.train.rollout import make_collect
from rl_jax.train.score import make_score
from rl_jax.train.state import RLState
from rl_jax.train.step import make_train_step
from tests.fakes import bigram, bigram_params

TOKENIZER = character_tokenizer("0123456789")  # 13 tokens with the special ones, as the bigram model has
MESH = parallel.make_mesh(data=1, devices=jax.devices()[:1])


def sevens(completions, **_):
  return [text.count("7") / max(len(text), 1) for text in completions]


SEVENS = (Reward(sevens, 1.0, "sevens"),)


def make(rewards=SEVENS, kl_coef=0.1, prompts=4, collect_kwargs=None, epochs=1, minibatches=1, mesh=MESH):
  task = Task("sevens", lambda i: {"prompt": str(i % 89 + 10)}, [{"prompt": "12"}], rewards)
  objective = grpo.objective(kl_coef=kl_coef)
  tx = optax.adam(0.05, eps=1e-4)  # a smaller one makes whole steps of the rounding of gradients that cancel
  score = make_score(bigram())
  collect = make_collect(
    task=task,
    tokenizer=TOKENIZER,
    generate=jax.jit(make_generate(bigram(), group_size=4, max_new_tokens=5, pad_token=0)),
    score=jax.jit(score),
    objective=objective,
    sampler=Sampler(),
    stop_tokens=np.array([TOKENIZER.eos_token_id]),
    prompts_per_batch=prompts,
    max_prompt_tokens=8,
    on_policy=epochs * minibatches == 1,
    place=partial(parallel.shard_rows, mesh=mesh),
    **(collect_kwargs or {}),
  )
  state = RLState.create(bigram_params(), tx, jax.random.key(1), keep_reference=kl_coef > 0)
  return SimpleNamespace(
    state=parallel.replicate(state, mesh),
    collect=collect,
    update=parallel.jit_step(make_train_step(score, objective, tx), mesh),
    place=partial(parallel.shard_rows, mesh=mesh),
    epochs=epochs,
    minibatches=minibatches,
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
      epochs=parts.epochs,
      minibatches=parts.minibatches,
      place=parts.place,
    )


def leaves(state):
  plain = state._replace(key=jax.random.key_data(state.key))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


@pytest.mark.parametrize("updates", [{}, {"epochs": 2, "minibatches": 2}])
def test_resumed_run_is_bit_identical(tmp_path, updates):
  whole, done = fit(tmp_path / "whole", 6, make(**updates))
  assert done == 6
  fit(tmp_path / "parts", 2, make(**updates))
  fit(tmp_path / "parts", 5, make(**updates), resume=True)
  resumed, done = fit(tmp_path / "parts", 6, make(**updates), resume=True)
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


@pytest.mark.parametrize("updates", [{}, {"epochs": 2, "minibatches": 2}])
def test_four_devices_do_what_one_does(tmp_path, updates):
  one, _ = fit(tmp_path / "one", 3, make(prompts=8, **updates))
  four, _ = fit(tmp_path / "four", 3, make(prompts=8, mesh=parallel.make_mesh(), **updates))
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
    "completion_tokens",
    "entropy",
    "grad_norm",
    "policy/clip_low",
    "tokens_per_second",
    "seconds",
    "seconds/rollout",
    "stopped",
    "skipped",
    "loss",
  } <= set(rows[0])
  sample = read_lines(tmp_path / "run", "samples.jsonl")[0]
  assert set(sample) == {"step", "prompt", "completion", "reward", "rewards", "tokens"}
  assert "nan" not in (tmp_path / "run" / "metrics.jsonl").read_text().lower()


def test_off_policy_updates_have_ratios(tmp_path):
  fit(tmp_path / "run", 3, make(epochs=3, minibatches=2))
  rows = read_lines(tmp_path / "run", "metrics.jsonl")
  assert all(row["policy/approx_kl"] > 0 for row in rows)
  on_policy = tmp_path / "on"
  fit(on_policy, 3)
  assert all(row["policy/approx_kl"] == 0 for row in read_lines(on_policy, "metrics.jsonl"))


def test_recomputed_old_log_probs_agree_with_the_samplers(tmp_path):
  batches = [make(epochs=2, collect_kwargs={"recompute_old_logp": recompute}) for recompute in (False, True)]
  one, other = (parts.collect(parts.state).batch.inputs.old_logp for parts in batches)
  mask = np.asarray(batches[0].collect(batches[0].state).batch.inputs.mask)
  np.testing.assert_allclose(np.asarray(one)[mask], np.asarray(other)[mask], rtol=1e-4, atol=1e-5)


def test_the_reference_pass_runs_only_when_needed():
  parts = make(kl_coef=0.0)
  assert parts.state.ref_params is None and parts.collect(parts.state).batch.inputs.ref_logp is None
  parts = make(kl_coef=0.1)
  assert parts.collect(parts.state).batch.inputs.ref_logp.shape == parts.collect(parts.state).batch.inputs.mask.shape


def test_rewards_that_do_not_apply_are_left_out():
  def picky(completions, **_):
    return [None if i % 4 == 0 else float(i % 3) for i in range(len(completions))]

  parts = make(rewards=(Reward(picky, 1.0, "picky"),))
  collected = parts.collect(parts.state)
  mask = np.asarray(collected.batch.inputs.mask)
  assert not mask[:, 0].any() and mask[:, 1:].any(axis=-1).all()
  np.testing.assert_array_equal(np.asarray(collected.batch.inputs.advantages)[:, 0], 0)
  assert collected.metrics["reward"] == pytest.approx(np.mean([i % 3 for i in range(16) if i % 4]))


def test_a_task_without_rewards_is_refused():
  with pytest.raises(ValueError, match="task 'sevens' needs at least one reward function"):
    make(rewards=())


def test_truncated_completions_can_be_left_out():
  parts = make(collect_kwargs={"mask_truncated": True})
  batch = parts.collect(parts.state).batch
  mask, real = np.asarray(batch.inputs.mask), np.asarray(batch.sequences.completion_mask)
  tokens = np.asarray(batch.sequences.completions)
  stopped = (tokens == TOKENIZER.eos_token_id).any(-1)
  assert 0 < stopped.mean() < 1
  np.testing.assert_array_equal(mask, real & stopped[..., None])


def test_failing_reward_saves_what_was_learnt(tmp_path):
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


class TestRunDirectory:
  def test_holds_one_run(self, tmp_path):
    folder = tmp_path / "run"
    with RunDirectory(folder, {"seed": 1, "steps": 3}, resume=False) as run:
      run.write_metrics(1, {"reward": 1.0})
    before = {path.name: path.read_bytes() for path in folder.rglob("*.json*")}
    with pytest.raises(ValueError, match="holds another run"):
      RunDirectory(folder, {"seed": 1}, resume=False)
    with pytest.raises(ValueError, match="seed was 1, is 2"):
      RunDirectory(folder, {"seed": 2, "steps": 3}, resume=True)
    assert before == {path.name: path.read_bytes() for path in folder.rglob("*.json*")}
    RunDirectory(folder, {"seed": 1, "steps": 9}, resume=True)

  def test_a_run_that_never_began_is_replaced(self, tmp_path):
    for seed in (1, 2):
      with RunDirectory(tmp_path / "run", {"seed": seed}, resume=False):
        pass
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"seed": 2}

  def test_belongs_to_one_process_at_a_time(self, tmp_path):
    with RunDirectory(tmp_path / "run", {}, resume=True):
      with pytest.raises(ValueError, match="in use by another process"):
        RunDirectory(tmp_path / "run", {}, resume=True).__enter__()
    with RunDirectory(tmp_path / "run", {}, resume=True):
      pass

  def test_logs_of_a_run_that_starts_again_are_kept(self, tmp_path):
    with RunDirectory(tmp_path / "run", {}, resume=False) as run:
      run.write_metrics(1, {"reward": 1.0})
      assert run.set_aside() and not run.set_aside()
    assert (tmp_path / "run" / "metrics.jsonl.old").exists() and not read_lines(run.folder, "metrics.jsonl")

  def test_does_not_touch_other_folders(self, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
      with pytest.raises(ValueError, match="not empty and holds no run"):
        RunDirectory(tmp_path, {}, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

  def test_rewinds_to_a_step_and_drops_a_torn_line(self, tmp_path):
    with RunDirectory(tmp_path / "run", {}, resume=False) as run:
      for step in (1, 2, 3):
        run.write_metrics(step, {"reward": float(step), "bad": float("nan")})
    with (run.folder / "metrics.jsonl").open("ab") as file:
      file.write('{"step": 2, "text": "é'.encode()[:-1])  # killed in the middle of a character
    run.rewind(2)
    assert [row["step"] for row in read_lines(run.folder, "metrics.jsonl")] == [1, 2]
    assert read_lines(run.folder, "metrics.jsonl")[0]["bad"] is None


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


def test_odd_characters_in_completions_survive(tmp_path):
  rows = [{"completion": "a\u2028b\u0085c\nd [/b] é", "reward": float("nan")}] * 2
  with RunDirectory(tmp_path / "run", {}, resume=False) as run:
    run.write_samples(1, rows)
    run.rewind(1)
  assert [row["completion"] for row in read_lines(run.folder, "samples.jsonl")] == [rows[0]["completion"]] * 2
  assert read_lines(run.folder, "samples.jsonl")[0]["reward"] is None


def test_checkpoint_of_another_model_is_refused(tmp_path):
  parts = make()
  with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(1, parts.state)
  other = parts.state._replace(policy=parts.state.policy._replace(params={"table": jnp.zeros((3, 3))}))
  with open_checkpoints(tmp_path / "checkpoints") as checkpoints, pytest.raises(ValueError, match="of another model"):
    checkpoints.restore(1, other)


def test_checkpoint_moves_to_another_number_of_devices(tmp_path):
  parts = make()
  with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(1, parts.state)
  wide = parallel.replicate(parts.state, parallel.make_mesh())
  with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
    restored = checkpoints.restore(1, wide)
  for one, other in zip(leaves(restored), leaves(parts.state), strict=True):
    np.testing.assert_array_equal(one, other)
  assert len(restored.policy.params["table"].sharding.device_set) == 4


def test_config_is_readable_json(tmp_path):
  with RunDirectory(tmp_path / "run", {"steps": 1, "stop": ("a",)}, resume=False):
    pass
  assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"steps": 1, "stop": ["a"]}


def test_evaluation_without_any_reward_says_so():
  assert Evaluation(None, None, 3, 0, []).describe() == "no reward applied to any of 3 held-out problems"
  assert Evaluation(None, None, 3, 0, [], 1.5).describe() == "learnt reward 1.500 on 3 held-out problems"
  both = Evaluation(0.5, None, 3, 0, [], 1.5).describe()
  assert both == "mean reward 0.500, learnt reward 1.500 on 3 held-out problems"


def test_dynamic_sampling_fills_the_batch_with_groups_that_differ():
  def at_random(completions, prompts, **_):  # groups of prompts with an even last digit have equal rewards
    return [0.0 if int(prompt[-1]) % 2 == 0 else float(i % 2) for i, prompt in enumerate(prompts)]

  parts = make(rewards=(Reward(at_random, 1.0, "odd"),), collect_kwargs=dict(max_draws=3))
  collected = parts.collect(parts.state)
  assert collected.metrics["draws"] == 2 and collected.metrics["zero_variance"] == 0
  assert int(collected.state.position) == 8  # two draws of four
  assert [int(sample["prompt"][-1]) % 2 for sample in collected.samples] == [1] * 16
  assert jnp.all(jnp.any(collected.batch.inputs.advantages != 0, axis=(1, 2)))
  once = make(rewards=(Reward(at_random, 1.0, "odd"),)).collect(parts.state)
  assert once.metrics["zero_variance"] == 0.5 and "draws" not in once.metrics


def test_dynamic_sampling_gives_up_and_fills_with_what_there_is():
  same = (Reward(lambda completions, **_: [1.0] * len(completions), 1.0, "same"),)
  parts = make(rewards=same, collect_kwargs=dict(max_draws=2))
  collected = parts.collect(parts.state)
  assert collected.metrics["draws"] == 2 and collected.metrics["zero_variance"] == 1
  assert collected.batch.inputs.mask.shape[0] == 4 and not collected.batch.inputs.advantages.any()
