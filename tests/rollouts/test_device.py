"""Rollouts on the device: rewards stand where they were earned, and greedy completions answer the same problems."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.models import presets
from rl_jax.models.transformer import policy
from rl_jax.objectives import reinforce_plus_plus
from rl_jax.ops import kl
from rl_jax.ops.estimates import Advantage
from rl_jax.ops.shaping import Shaping
from rl_jax.rollouts import device
from rl_jax.rollouts.collect import Sampled, make_collect, once, with_greedy, with_reward_model
from rl_jax.rollouts.experience import make_experience
from rl_jax.rollouts.outputs import make_outputs
from rl_jax.rollouts.rollout import Rollout
from rl_jax.state import RLState, Running, Sequences
from rl_jax.tasks import on_device
from rl_jax.tasks.on_device import base
from rl_jax.train.forward import make_forward

TASK = on_device.load("parity", bits=3)
MODEL = policy(presets.small(TASK.vocab_size, layers=1, width=32))
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
FORWARD = make_forward(MODEL)
AS_THEY_ARE = Advantage(lambda experience: {"advantages": experience.token_rewards})


def collected(*, process_rewards, mask_truncated, kl_coef=None):
  """Eight problems with four completions each, whose advantages are the rewards of their tokens."""
  algorithm = objectives.algorithm(reinforce_plus_plus.objective(), AS_THEY_ARE)
  complete = device.make_complete(TASK, MODEL, group_size=4, mask_truncated=mask_truncated)
  judge = device.make_judge(TASK, process_rewards=process_rewards)
  shaping = Shaping(kl=None if kl_coef is None else kl.k1)
  outputs = make_outputs(
    set() if kl_coef is None else {"ref_logp"},
    reference=lambda state, sequences: FORWARD(state.ref_params, sequences).logp,
  )
  experience = make_experience(algorithm, on_policy=True, shaping=shaping)
  play = once(device.make_sample(TASK, complete, num_prompts=8), judge)
  collect = make_collect(play, outputs, experience)
  state = RLState.create(
    PARAMS,
    optax.sgd(0.1),
    jax.random.key(1),
    keep_reference=True,
    coefficients={} if kl_coef is None else {"kl_coef": kl_coef},
  )
  arrays = jax.jit(lambda state: collect(state)._replace(records=None))(state)
  problems = base.sample(TASK, jax.random.fold_in(state.keys().problems, 0), 8)
  return SimpleNamespace(**arrays._asdict(), problems=problems)


@pytest.mark.parametrize("process_rewards", [True, False])
def test_rewards_stand_where_they_were_earned(process_rewards):
  found = collected(process_rewards=process_rewards, mask_truncated=not process_rewards)
  batch, metrics = found.batch, found.metrics
  tokens, mask = batch.sequences.completions, batch.sequences.completion_mask
  verdict = base.judge(TASK, found.problems.data, tokens, mask)
  stopped = np.asarray(jnp.max(tokens == base.EOS, axis=-1))
  assert 0 < stopped.mean() < 1
  trained = np.asarray(mask) & stopped[..., None] if not process_rewards else mask
  np.testing.assert_array_equal(batch.inputs.mask, trained)
  rewards = np.asarray(batch.inputs.advantages)
  if process_rewards:
    np.testing.assert_array_equal(rewards, verdict.step_rewards)
    assert len(np.unique(rewards)) > 2
    assert metrics["reward"] == pytest.approx(float(verdict.step_rewards.sum(-1).mean()), rel=1e-5)
    assert metrics[f"reward/{TASK.name}"] == pytest.approx(float(verdict.reward.mean()), rel=1e-5)
  else:
    last = np.asarray(mask).sum(-1) - 1
    at_last = np.take_along_axis(rewards, last[..., None], axis=-1)[..., 0]
    np.testing.assert_array_equal(at_last, verdict.reward)
    np.testing.assert_array_equal(rewards.sum(-1), verdict.reward)
    assert 0 < float(metrics["solved"]) < 1
    np.testing.assert_array_equal(found.rewards, verdict.reward)
  assert int(found.state.running.position) == 8


def test_completions_left_out_of_the_loss_keep_their_rewards_beside_a_kl():
  """A group's baseline needs the rewards of its truncated completions too, with and without a KL in the reward."""

  def rewards(kl_coef):
    batch = collected(process_rewards=True, mask_truncated=True, kl_coef=kl_coef).batch
    cut_off = ~jnp.any(batch.inputs.mask, axis=-1)
    return np.asarray(batch.inputs.advantages), np.asarray(cut_off)

  (plain, cut_off), (with_kl, _) = rewards(None), rewards(0.1)  # the reference is the policy: a KL of rounding
  assert plain[cut_off].sum() > 0
  np.testing.assert_allclose(plain, with_kl, atol=1e-6)


def test_greedy_completions_are_of_the_same_problems():
  complete = device.make_complete(TASK, MODEL, group_size=4)
  judge = device.make_judge(TASK)
  play = with_greedy(
    once(device.make_sample(TASK, complete, num_prompts=8), judge), device.make_greedy(TASK, MODEL), judge
  )
  state = RLState.create(PARAMS, optax.sgd(0.1), jax.random.key(1), keep_reference=False)
  problems = base.sample(TASK, jax.random.fold_in(state.keys().problems, 0), 8)

  @jax.jit
  def judged(state):
    played = play(state)
    return played.sampled.rollout, played.verdict()[0]

  rollout, judgment = judged(state)
  one = jax.jit(device.make_complete(TASK, MODEL, group_size=1, temperature=0.0))
  answers = one(state.policy.params, problems, jax.random.key(5)).rollout
  expected = base.judge(TASK, problems.data, *answers.sequences[2:]).reward
  np.testing.assert_array_equal(judgment.greedy.scores[TASK.name], expected)
  np.testing.assert_array_equal(judgment.greedy.mask, answers.sequences.completion_mask)
  np.testing.assert_array_equal(judgment.greedy.terminated, answers.terminated)
  assert judgment.scores[TASK.name].shape == (8, 4) and rollout.mask.shape[:2] == (8, 4)


def test_a_task_without_steps_has_no_process_rewards():
  sorting = on_device.load("sorting", length=2)
  problems = base.sample(sorting, jax.random.key(0), 2)
  tokens, mask = (x[:, None] for x in base.demonstrate(sorting, problems.data))
  sequences = Sequences(problems.prompts, problems.prompt_mask, tokens, mask)
  rollout = Rollout(sequences, mask, jnp.zeros(mask.shape), jnp.zeros(mask.shape), jnp.ones((2, 1), bool))
  sampled = Sampled(problems.data, rollout, Running(jnp.int32(0)))
  np.testing.assert_array_equal(device.make_judge(sorting)(sampled)[0].solved, [[True], [True]])
  with pytest.raises(ValueError, match="task .sort-2. has no rewards of steps"):
    device.make_judge(sorting, process_rewards=True)(sampled)


def test_evaluation_counts_what_rollouts_count():
  """A reward model's scores and the task's weight mean the same in a rollout and in an evaluation."""

  def learned(sequences):
    return jnp.sum(sequences.completion_mask, axis=-1) / 8

  complete = device.make_complete(TASK, MODEL, group_size=1)
  state = RLState.create(PARAMS, optax.sgd(0.1), jax.random.key(1), keep_reference=True)
  means = {}
  for weight in (1.0, 0.5, 0.0):
    judge = with_reward_model(device.make_judge(TASK, weight=weight), learned)
    evaluate = jax.jit(device.make_evaluate(TASK, complete, judge, FORWARD, problems=16))
    means[weight] = {name: float(value) for name, value in evaluate(state).items()}
  for weight, metrics in means.items():
    alone, scored = metrics[f"reward/{TASK.name}"], metrics["reward/learned"]
    assert alone == pytest.approx(metrics["solved"]) and 0 < scored < 1
    assert metrics["reward"] == pytest.approx(weight * alone + scored, rel=1e-6)
