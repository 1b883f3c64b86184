"""Rollouts on text put together for a learner are those that are composed by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.devices import Devices, make_mesh
from rl_jax.models import presets
from rl_jax.ops import kl
from rl_jax.ops.shaping import Shaping
from rl_jax.ops.statistics import majority_at_k, pass_at_k
from rl_jax.state import RLState
from rl_jax.tasks import Task
from rl_jax.tasks.reading import Reader
from rl_jax.tasks.rewards import Reward
from rl_jax.tasks.text import make_prompts
from rl_jax.train.actors import create_state, make_learner
from rl_jax.train.schedule import Schedule
from rl_jax.train.text_rollouts import make_text_rollouts
from tests.fakes import text_rollouts

TINY = presets.load("tiny")
SIZES = dict(num_prompts=2, group_size=3, max_new_tokens=4)


def vowels(completions, **_):
  return [sum(letter in "aeiou" for letter in text) for text in completions]


def make_task(*rewards):
  return Task("vowels", lambda i: {"prompt": str(i % 10)}, [{"prompt": "a"}, {"prompt": "bc"}], rewards)


def make(task, algorithm, devices=None, **options):
  prompts = make_prompts(task, Reader(TINY.tokenizer, TINY.eos_tokens), max_prompt_tokens=8)
  devices = devices or Devices(make_mesh(data=1, devices=jax.devices()[:1]))
  return make_text_rollouts(prompts, make_learner(TINY), algorithm, devices, **SIZES | options)


def longer(sequences):
  """A reward model that likes long answers."""
  return 0.1 * jnp.sum(sequences.completion_mask, axis=-1)


def state_of(model):
  create = create_state(make_learner(model), optax.sgd(0.1), keep_reference=False)
  return jax.jit(create)(model.params, jax.random.key(3))


REMAX, GRPO = objectives.load("remax"), objectives.load("grpo", kl_coef=0)


@pytest.mark.parametrize(
  ("algorithm", "schedule", "options"),
  [
    pytest.param(REMAX, Schedule(), {"reward_model": longer}, marks=pytest.mark.slow),
    (GRPO, Schedule(2, 2), {"max_draws": 2, "mask_truncated": True, "recompute_old_logp": True}),
  ],
  ids=["remax", "grpo"],
)
def test_a_learners_rollouts_are_those_composed_by_hand(algorithm, schedule, options):
  task, shaping = make_task(Reward(vowels, 0.5, "vowels")), Shaping(kl=kl.k1, missing_eos_penalty=0.25)
  devices = Devices(make_mesh(data=1, devices=jax.devices()[:1]))
  optimizer, given = optax.sgd(0.1), dict(shaping=shaping, **options)
  create = create_state(make_learner(TINY), optimizer, keep_reference=True, coefficients={"kl_coef": 0.1})
  state = jax.jit(create)(TINY.params, jax.random.key(3))
  bare = RLState.create(TINY.params, optimizer, jax.random.key(3), keep_reference=True, coefficients={"kl_coef": 0.1})
  put_together = make(task, algorithm, devices, schedule=schedule, **given)
  by_hand = text_rollouts(
    task,
    TINY.tokenizer,
    TINY.policy,
    algorithm,
    stop_tokens=TINY.eos_tokens,
    on_policy=schedule.on_policy,
    **SIZES,
    **given,
  )
  for _ in range(2):
    one, other = put_together.collect(state), by_hand.collect(bare)
    for a, b in zip(jax.tree.leaves(one.batch), jax.tree.leaves(other.batch), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert one.records == other.records and one.metrics.keys() == other.metrics.keys()
    for metric, value in one.metrics.items():
      np.testing.assert_allclose(value, other.metrics[metric], rtol=1e-5, atol=1e-6, err_msg=metric)
    state, bare = one.state, other.state
  assert int(state.running.position) == int(bare.running.position) >= 4
  assert put_together.evaluate(state) == by_hand.evaluate(bare)
  compiled = devices.compiles
  put_together.collect(state)
  assert devices.compiles == compiled > 0  # nothing is traced anew for a rollout of the same shapes


def test_an_evaluation_has_greedy_answers_to_all_prompts_and_samples_of_some():
  def has_vowel(completions, **_):
    return [any(letter in "aeiou" for letter in text) for text in completions]

  task = make_task(Reward(vowels, 1.0, "vowels"))._replace(solved=has_vowel, answer=lambda text: text[:1])
  found = make(task, GRPO, evaluation_samples=5).evaluate(state_of(TINY))
  assert [(row["problem"], row["draw"]) for row in found.samples] == [(0, 0), (1, 0)] + [
    (problem, draw) for problem in (0, 1) for draw in range(1, 6)
  ]
  for row in found.samples:
    text = TINY.tokenizer.decode(row["token_ids"], skip_special_tokens=True)
    assert row["completion"] == text and row["solved"] == has_vowel([text])[0] and row["reward"] == vowels([text])[0]
    assert ("prompt" in row) == ("prompt_token_ids" in row) == (row["draw"] == 0)
  assert [TINY.tokenizer.decode(row["prompt_token_ids"]) for row in found.samples[:2]] == ["a", "bc"]
  greedy, drawn = found.samples[:2], [found.samples[2:7], found.samples[7:]]
  assert found.solved == sum(row["solved"] for row in greedy) and found.count == 2
  assert len({row["completion"] for row in drawn[0]}) > 1
  solved = np.array([[row["solved"] for row in rows] for rows in drawn])
  for k in (1, 2, 4, 5):
    assert found.drawn[f"pass@{k}"] == np.mean(pass_at_k(solved, k))
  votes = [majority_at_k([r["completion"][:1] for r in rows], [r["solved"] for r in rows], 4) for rows in drawn]
  assert found.drawn["maj@4"] == np.mean(votes)
  assert set(found.drawn) == {f"{name}@{k}" for name in ("pass", "maj") for k in (1, 2, 4, 5)}
  assert make(task, GRPO, evaluation_samples=5).evaluate(state_of(TINY)) == found  # the same draws every time
  assert make(task, GRPO).evaluate(state_of(TINY)).drawn == {}


def test_a_task_without_rewards_is_refused():
  with pytest.raises(ValueError, match="nothing to learn from: give rewards with a weight"):
    make(make_task(), GRPO)
  with pytest.raises(ValueError, match="nothing to learn from"):
    make(make_task(Reward(vowels, 0.0, "vowels")), GRPO)
  make(make_task(), GRPO, reward_model=lambda sequences: jnp.zeros(sequences.completions.shape[:2]))


def test_what_a_learner_cannot_give_is_named():
  refused = partial(make, make_task(Reward(vowels, 1.0, "vowels")))
  with pytest.raises(ValueError, match="needs values, which nothing gives"):
    refused(objectives.load("ppo"))
  with pytest.raises(ValueError, match="objective 'dpo' does not learn from rewards"):
    refused(objectives.load("dpo"))
  with pytest.raises(ValueError, match="num_prompts must be at least 1, got 0"):
    refused(objectives.load("grpo"), num_prompts=0)
