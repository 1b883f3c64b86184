"""Rollouts on text with a bigram model: what is collected, dynamic sampling, and evaluation."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.models.presets import character_tokenizer
from rl_jax.rollouts import text
from rl_jax.rollouts.dynamic import play_until_full
from rl_jax.state import RLState
from rl_jax.tasks import Task
from rl_jax.tasks.rewards import Reward
from tests.fakes import bigram, bigram_params, text_rollouts

TOKENIZER = character_tokenizer("0123456789")  # 13 tokens with the special ones, as the bigram model has


def sevens(completions, **_):
  return [text.count("7") / max(len(text), 1) for text in completions]


SEVENS = (Reward(sevens, 1.0, "sevens"),)


def make(rewards=SEVENS, kl_coef=0.1, evaluation=("12",), solved=None, reward_model=None, **options):
  held_out = [{"prompt": prompt} for prompt in evaluation]
  task = Task("sevens", lambda i: {"prompt": str(i % 89 + 10)}, held_out, rewards, solved=solved)
  rollouts = text_rollouts(
    task,
    TOKENIZER,
    bigram(),
    objectives.load("grpo", kl_coef=kl_coef),
    num_prompts=4,
    group_size=4,
    max_new_tokens=5,
    reward_model=reward_model,
    **options,
  )
  state = RLState.create(bigram_params(), optax.sgd(0.1), jax.random.key(1), keep_reference=kl_coef > 0)
  return SimpleNamespace(state=state, collect=rollouts.collect, evaluate=rollouts.evaluate)


def collected(*args, **kwargs):
  parts = make(*args, **kwargs)
  return parts.collect(parts.state)


def test_recomputed_old_log_probs_agree_with_the_samplers():
  sampled, recomputed = (collected(on_policy=False, recompute_old_logp=each) for each in (False, True))
  one, other = (each.batch.inputs.old_logp for each in (sampled, recomputed))
  mask = np.asarray(sampled.batch.inputs.mask)
  np.testing.assert_allclose(np.asarray(one)[mask], np.asarray(other)[mask], rtol=1e-4, atol=1e-5)
  assert (np.asarray(one)[mask] != 0).all()


def test_on_policy_batches_have_no_old_log_probs():
  assert collected().batch.inputs.old_logp is None


def test_the_reference_pass_runs_only_when_needed():
  passes = []

  def reference(state, sequences):
    passes.append(state.ref_params)
    return jnp.zeros(sequences.completions.shape)

  parts = make(kl_coef=0.0, reference=reference)
  assert parts.state.ref_params is None and parts.collect(parts.state).batch.inputs.ref_logp is None and not passes
  parts = make(kl_coef=0.1, reference=reference)
  found = parts.collect(parts.state).batch.inputs
  assert found.ref_logp.shape == found.mask.shape and len(passes) == 1 and passes[0] is parts.state.ref_params


def test_rewards_that_do_not_apply_are_left_out():
  def picky(completions, **_):
    return [None if i % 4 == 0 else float(i % 3) for i in range(len(completions))]

  found = collected(rewards=(Reward(picky, 1.0, "picky"),))
  mask = np.asarray(found.batch.inputs.mask)
  assert not mask[:, 0].any() and mask[:, 1:].any(axis=-1).all()
  np.testing.assert_array_equal(np.asarray(found.batch.inputs.advantages)[:, 0], 0)
  assert found.metrics["reward"] == pytest.approx(np.mean([i % 3 for i in range(16) if i % 4]))
  np.testing.assert_array_equal(np.isnan(found.rewards), [[True, False, False, False]] * 4)


def test_truncated_completions_can_be_left_out():
  batch = collected(mask_truncated=True).batch
  mask, real = np.asarray(batch.inputs.mask), np.asarray(batch.sequences.completion_mask)
  tokens = np.asarray(batch.sequences.completions)
  stopped = (tokens == TOKENIZER.eos_token_id).any(-1)
  assert 0 < stopped.mean() < 1
  np.testing.assert_array_equal(mask, real & stopped[..., None])


def test_prompts_over_the_limit_are_passed_over_and_counted():
  task = Task("lengths", lambda i: {"prompt": "1" * (i % 3 + 1)}, [], SEVENS)
  options = dict(num_prompts=4, group_size=4, max_new_tokens=5, max_prompt_tokens=2)
  state = make(kl_coef=0.0).state
  found = text_rollouts(task, TOKENIZER, bigram(), objectives.load("grpo", kl_coef=0), **options).collect(state)
  assert found.metrics["prompts_skipped"] == 1  # rows 0, 1, 3 and 4; the third is too long
  assert [record["prompt"] for record in found.records[::4]] == ["1", "11", "1", "11"]
  assert int(found.state.running.position) == 5


def at_random(completions, prompts, **_):
  """Groups of prompts with an even last digit have equal rewards."""
  return [0.0 if int(prompt[-1]) % 2 == 0 else float(i % 2) for i, prompt in enumerate(prompts)]


def test_dynamic_sampling_fills_the_batch_with_groups_that_differ():
  parts = make(rewards=(Reward(at_random, 1.0, "odd"),), max_draws=3)
  found = parts.collect(parts.state)
  assert found.metrics["draws"] == 2 and found.metrics["zero_variance"] == 0
  assert int(found.state.running.position) == 8  # two draws of four
  assert [int(record["prompt"][-1]) % 2 for record in found.records] == [1] * 16
  assert jnp.all(jnp.any(found.batch.inputs.advantages != 0, axis=(1, 2)))
  once = make(rewards=(Reward(at_random, 1.0, "odd"),)).collect(parts.state)
  assert once.metrics["zero_variance"] == 0.5 and "draws" not in once.metrics


def test_dynamic_sampling_keeps_what_belongs_together():
  """Records, tokens, rewards and log-probs of a filled batch are those of the same completions."""
  found = collected(rewards=(Reward(at_random, 1.0, "odd"),), max_draws=3, recompute_old_logp=False, on_policy=False)
  again = collected(rewards=(Reward(at_random, 1.0, "odd"),), max_draws=3, recompute_old_logp=True, on_policy=False)
  sequences, inputs = found.batch
  texts = [record["completion"] for record in found.records]
  tokens, mask = (np.asarray(leaf).reshape(16, -1) for leaf in sequences[2:])
  assert [
    TOKENIZER.decode(row[real], skip_special_tokens=True) for row, real in zip(tokens, mask, strict=True)
  ] == texts
  prompts = [TOKENIZER.decode(row[real]) for row, real in zip(sequences.prompts, sequences.prompt_mask, strict=True)]
  assert [record["prompt"] for record in found.records[::4]] == prompts
  assert [record["reward"] for record in found.records] == [0, 1] * 8
  np.testing.assert_array_equal(found.rewards, [[0, 1, 0, 1]] * 4)
  real = np.asarray(inputs.mask)
  np.testing.assert_allclose(inputs.old_logp[real], again.batch.inputs.old_logp[real], rtol=1e-4, atol=1e-5)


def test_dynamic_sampling_gives_up_and_fills_with_what_there_is():
  same = (Reward(lambda completions, **_: [1.0] * len(completions), 1.0, "same"),)
  found = collected(rewards=same, max_draws=2)
  assert found.metrics["draws"] == 2 and found.metrics["zero_variance"] == 1
  assert found.batch.inputs.mask.shape[0] == 4 and not found.batch.inputs.advantages.any()


def test_dynamic_sampling_goes_by_the_reward_model_too():
  same = (Reward(lambda completions, **_: [1.0] * len(completions), 1.0, "same"),)
  found = collected(rewards=same, max_draws=3, reward_model=lambda sequences: jnp.arange(16.0).reshape(4, 4))
  assert found.metrics["draws"] == 1 and found.metrics["zero_variance"] == 0
  np.testing.assert_array_equal(found.rewards, 1 + np.arange(16).reshape(4, 4))


def test_numbers_below_one_are_named():
  with pytest.raises(ValueError, match="num_prompts must be at least 1, got 0"):
    text.make_sample(None, None, num_prompts=0)
  with pytest.raises(ValueError, match="max_draws must be at least 1, got 0"):
    play_until_full(None, None, max_draws=0)


def test_evaluation_is_greedy_and_counts_every_held_out_row_once():
  """Prompts end in 0 to 9; the last batch is filled up with a row that does not count twice."""
  rows = [str(i) for i in range(10)] + ["1" * 20]
  parts = make(evaluation=rows, solved=lambda prompts, **_: [prompt in ("3", "9") for prompt in prompts])
  found = parts.evaluate(parts.state)
  assert (found.count, found.skipped, found.solved) == (10, 1, 2)
  assert [sample["prompt"] for sample in found.samples] == rows[:10]
  params = bigram_params()
  for sample in found.samples:  # each token is the likeliest after the one before it
    follows, last = [], TOKENIZER(sample["prompt"][-1:])["input_ids"][-1]
    while len(follows) < 5 and last != TOKENIZER.eos_token_id:
      last = int(jnp.argmax(params["table"][last] @ params["unembedding"]))
      follows.append(last)
    assert sample["completion"] == TOKENIZER.decode(follows, skip_special_tokens=True)
    assert sample["reward"] == pytest.approx(sevens([sample["completion"]])[0])
  assert found.reward == pytest.approx(np.mean([sample["reward"] for sample in found.samples]))
  again = parts.evaluate(parts.state)
  assert again == found


def test_evaluation_shows_each_reward_and_a_reward_models():
  def reward_model(sequences):
    return jnp.full(sequences.completions.shape[:2], 0.5)

  two = Reward(lambda completions, **_: [2.0] * len(completions), 0.25, "two")
  parts = make(rewards=(two,), evaluation=("1", "2", "3"), reward_model=reward_model)
  found = parts.evaluate(parts.state)
  assert found.reward == pytest.approx(0.25 * 2 + 0.5)
  assert found.scores == {"two": 2.0, "learned": 0.5}
  assert found.samples[0]["rewards"] == {"two": 2.0, "learned": 0.5}


def test_nothing_to_evaluate_is_named():
  parts = make(evaluation=("1" * 20,))
  with pytest.raises(ValueError, match="no held-out prompt of 'sevens' is within max_prompt_tokens=8"):
    parts.evaluate(parts.state)
