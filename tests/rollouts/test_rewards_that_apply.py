"""Which rewards count: those that apply and have a weight. All others are there to be seen, and change nothing."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.models.presets import character_tokenizer
from rl_jax.objectives import remax
from rl_jax.ops import advantages, estimates
from rl_jax.state import RLState
from rl_jax.tasks import Task
from rl_jax.tasks.rewards import Reward
from tests.fakes import bigram, bigram_params, text_rollouts

TOKENIZER = character_tokenizer("0123456789")
NAN = float("nan")


def constant(*values):
  """A reward function that gives these values to the completions of every prompt in turn."""
  return lambda completions, **_: [values[i % len(values)] for i in range(len(completions))]


COUNTED = Reward(constant(0.0, 1.0, None, 3.0), 1.0, "counted")
GRPO = objectives.load("grpo", kl_coef=0)


def make(*rewards, algorithm=GRPO, **options):
  task = Task("weighted", lambda i: {"prompt": str(i % 89 + 10)}, [{"prompt": "12"}, {"prompt": "34"}], rewards)
  sizes = dict(num_prompts=2, group_size=4, max_new_tokens=5)
  rollouts = text_rollouts(task, TOKENIZER, bigram(), algorithm, **sizes, **options)
  state = RLState.create(bigram_params(), optax.sgd(0.1), jax.random.key(1), keep_reference=False)
  return SimpleNamespace(state=state, collect=rollouts.collect, evaluate=rollouts.evaluate)


def collected(*rewards, **options):
  parts = make(*rewards, **options)
  return parts.collect(parts.state)


SEEN = {"none": (None,), "nan": (NAN,), "numbers": (5.0, -7.0, 1.0), "some": (None, 2.0, NAN, 1.0, 9.0)}


@pytest.mark.parametrize("values", SEEN.values(), ids=SEEN.keys())
def test_a_reward_of_weight_0_changes_nothing_but_what_is_seen(values):
  alone, beside = collected(COUNTED), collected(COUNTED, Reward(constant(*values), 0.0, "seen"))
  for one, other in zip(jax.tree.leaves(alone.batch), jax.tree.leaves(beside.batch), strict=True):
    np.testing.assert_array_equal(one, other)
  np.testing.assert_array_equal(alone.rewards, beside.rewards)
  np.testing.assert_array_equal(alone.rewards, [[0, 1, NAN, 3]] * 2)
  # Rewards 0, 1 and 3 of a group have mean 4/3; the third completion has none, and is not learned from.
  mask = np.asarray(beside.batch.inputs.mask)
  assert not mask[:, 2].any() and mask[:, [0, 1, 3]].any(axis=-1).all()
  expected = advantages.group_normalized(jnp.array([[0.0, 1, 0, 3]]), jnp.array([[1, 1, 0, 1]]))
  np.testing.assert_allclose(beside.batch.inputs.advantages[:, :, 0], [expected[0]] * 2, rtol=1e-6)
  assert beside.metrics["reward"] == pytest.approx(4 / 3)
  known = [x for i in range(8) if (x := values[i % len(values)]) is not None and not np.isnan(x)]
  measured = float(beside.metrics["reward/seen"])
  assert np.isnan(measured) if not known else measured == pytest.approx(np.mean(known))
  assert {name: value for name, value in beside.metrics.items() if not name.startswith("reward/")} == alone.metrics


def test_a_reward_of_weight_0_gives_no_reward_where_the_others_have_none():
  found = collected(Reward(constant(None, 1.0), 1.0, "counted"), Reward(constant(1.0), 0.0, "seen"))
  np.testing.assert_array_equal(found.rewards, [[NAN, 1, NAN, 1]] * 2)
  assert not np.asarray(found.batch.inputs.mask)[:, [0, 2]].any()


def test_a_reward_that_does_not_apply_counts_as_0_beside_one_that_does():
  found = collected(COUNTED, Reward(constant(None, 2.0, None, None), 0.5, "half"))
  np.testing.assert_array_equal(found.rewards, [[0, 2, NAN, 3]] * 2)


def test_functions_of_weight_0_beside_a_reward_model():
  learned = jnp.arange(8.0).reshape(2, 4)
  given = dict(reward_model=lambda sequences: learned)
  beside = collected(Reward(constant(None), 0.0, "none"), Reward(constant(7.0), 0.0, "seven"), **given)
  alone = collected(**given)
  np.testing.assert_array_equal(beside.rewards, learned)
  for one, other in zip(jax.tree.leaves(alone.batch), jax.tree.leaves(beside.batch), strict=True):
    np.testing.assert_array_equal(one, other)
  assert beside.metrics["reward"] == pytest.approx(3.5) and beside.metrics["reward/seven"] == pytest.approx(7)
  assert np.isnan(beside.metrics["reward/none"]) and beside.metrics["reward/learned"] == pytest.approx(3.5)
  assert [record["rewards"]["none"] for record in beside.records] == [None] * 8


def test_several_rewards_are_estimated_apart_without_those_of_weight_0():
  by_parts = estimates.per_reward(advantages.normalize_then_sum, whiten=False)
  algorithm = objectives.algorithm(GRPO.objective({}), by_parts)
  others = Reward(constant(1.0, 0.0, 0.0, 1.0), 0.5, "other")
  one = collected(COUNTED, others, algorithm=algorithm).batch.inputs
  seen = Reward(constant(None, 3.0, 4.0), 0.0, "seen")
  other = collected(COUNTED, others, seen, algorithm=algorithm).batch.inputs
  np.testing.assert_array_equal(one.advantages, other.advantages)
  assert np.abs(one.advantages).max() > 0.1


@pytest.mark.parametrize("beside", [(), (Reward(constant(9.0), 0.0, "seen"),)], ids=["alone", "beside one of weight 0"])
def test_a_greedy_completion_without_a_reward_gives_advantage_0(beside):
  """The prompts are 10 and 11; the greedy completion of the second has no reward, or one of weight 0 alone."""

  def judged(prompts, **_):
    samples = len(prompts) == 8
    return [1.0 + i % 4 if samples else (0.5 if prompt == "10" else None) for i, prompt in enumerate(prompts)]

  algorithm = objectives.algorithm(remax.objective(), remax.advantage())
  inputs = collected(Reward(judged, 1.0, "judged"), *beside, algorithm=algorithm).batch.inputs
  # 1, 2, 3, 4 less 0.5; and nothing to compare with, whose completions stay in the batch with advantage 0.
  np.testing.assert_allclose(inputs.advantages[:, :, 0], [[0.5, 1.5, 2.5, 3.5], [0, 0, 0, 0]])
  assert np.asarray(inputs.mask)[1].any(axis=-1).all()


def test_dynamic_sampling_goes_by_the_weighted_functions_alone():
  """All groups have equal rewards; what differs within them has no weight, so no draw is ever full."""
  same, differs = Reward(constant(1.0), 1.0, "same"), Reward(constant(0.0, 1.0), 0.0, "differs")
  found = collected(same, differs, max_draws=3)
  assert found.metrics["draws"] == 3 and found.metrics["zero_variance"] == 1
  # And the other way round: what is equal within groups has no weight, and none of the others is missing.
  same, differs = same._replace(weight=0.0), differs._replace(weight=1.0)
  found = collected(same, differs, max_draws=3)
  assert found.metrics["draws"] == 1 and found.metrics["zero_variance"] == 0


def test_evaluation_goes_by_the_weighted_functions_alone():
  counted, seen = Reward(constant(1.0, None), 1.0, "counted"), Reward(constant(7.0), 0.0, "seen")
  parts = make(counted, seen)
  found = parts.evaluate(parts.state)
  assert found.reward == 1 and found.scores == {"counted": 1.0, "seen": 7.0}
  assert found.samples[0]["reward"] == 1 and np.isnan(found.samples[1]["reward"])
  nothing = make(seen, reward_model=lambda sequences: jnp.full(sequences.completions.shape[:2], 0.25))
  assert nothing.evaluate(nothing.state).reward == 0.25


def test_evaluation_of_rewards_that_never_apply_says_so():
  parts = make(Reward(constant(None), 1.0, "none"), Reward(constant(2.0), 0.0, "seen"))
  found = parts.evaluate(parts.state)
  assert np.isnan(found.reward) and found.scores == {"none": None, "seen": 2.0}
  assert found.describe() == "no reward applied to any of 2 held-out problems"
