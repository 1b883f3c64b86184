"""From a rollout to a batch on a model that is certain: which index holds what, by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.models.presets import character_tokenizer
from rl_jax.objectives import kto, ppo, reinforce, vapo
from rl_jax.ops import estimates, kl, returns, shaping
from rl_jax.ops.moments import Moments
from rl_jax.ops.shaping import Rewards, Shaping
from rl_jax.rollouts.outputs import make_outputs
from rl_jax.state import RLState
from rl_jax.tasks import Task
from rl_jax.tasks.rewards import Reward
from rl_jax.train.control import kl_band, make_control
from rl_jax.train.forward import make_last_value, make_step_values, make_values
from tests.fakes import chain, eagerly, text_rollouts

TOKENIZER = character_tokenizer("0123456789")  # the digit d is token d + 3
MODEL, PARAMS = chain(13)  # every token is followed by the next one; its value below is the last token that was read


def last_read(params, hidden):
  return hidden @ jnp.arange(13.0) / 50 - 1


CRITIC = dataclasses.replace(MODEL, value=last_read)
VALUES = jax.jit(make_values(CRITIC))
ONE_STEP = estimates.with_critic(partial(returns.gae, gamma=1.0, lam=0.0), whiten=False)


def make(
  *,
  length,
  stop,
  advantage=ONE_STEP,
  objective=None,
  kl_coef=None,
  moments=None,
  task_rewards=True,
  solved=None,
  **options,
):
  """Collects for the prompt "34", tokens 6 and 7: the completion is 8, 9, 10, ..."""
  two = Reward(lambda completions, **_: [2.0] * len(completions), 1.0, "two")
  task = Task("chain", lambda i: {"prompt": "34"}, [], (two,), solved=solved)
  rollouts = text_rollouts(
    task if task_rewards else task._replace(rewards=()),
    TOKENIZER,
    MODEL,
    objectives.algorithm(objective or ppo.objective(), advantage),
    num_prompts=1,
    group_size=2,
    max_new_tokens=length,
    stop_tokens=[stop],
    on_policy=False,
    **({"values": VALUES, "jit": eagerly} | options),
  )
  coefficients = {} if kl_coef is None else {"kl_coef": kl_coef}
  state = RLState.create(
    PARAMS, optax.sgd(0.1), jax.random.key(0), keep_reference=False, coefficients=coefficients, reward_moments=moments
  )
  return rollouts.collect(state)


def seeing(seen, *needs):
  """An advantage that keeps what it is estimated from, outside of any program."""
  return estimates.Advantage(
    lambda experience: seen.append(experience) or {"advantages": experience.token_rewards}, frozenset(needs)
  )


def test_values_rewards_and_masks_stand_at_the_token_that_was_chosen():
  inputs = make(length=4, stop=10).batch.inputs
  np.testing.assert_array_equal(inputs.mask[0, 0], [True, True, True, False])  # 8, 9, and 10, which stops
  # The value at t is that of the state before token t: what was read last is 7, then 8, then 9.
  np.testing.assert_allclose(inputs.old_values[0, 0, :3], [7, 8, 9], atol=1e-4)
  # The reward follows the last token, after which nothing is worth anything: 8 - 7, 9 - 8, 2 - 9.
  np.testing.assert_allclose(inputs.advantages[0, 0], [1, 1, -7, 0], atol=1e-4)
  np.testing.assert_allclose(inputs.returns[0, 0, :3], [8, 9, 2], atol=1e-4)


def test_the_kl_is_paid_where_it_arises():
  reference = jnp.array([[[-0.5, 0.0, -1.0, jnp.nan]] * 2])  # the policy's own log-probs are 0: it is certain
  given = dict(reference=lambda state, sequences: reference, shaping=Shaping(kl=kl.k1), kl_coef=0.1)
  found = make(length=4, stop=10, **given)
  np.testing.assert_allclose(found.batch.inputs.advantages[0, 0], [1 - 0.05, 1, -7 - 0.1, 0], atol=1e-4)
  assert found.metrics["kl_reward"] == pytest.approx(0.5) and found.metrics["kl_completion"] == pytest.approx(1.5)
  assert found.metrics["kl_coef"] == pytest.approx(0.1)
  control = make_control(None, (kl_band(low=0.1, high=1.0),))
  policy, _ = control(found.state.policy, found.batch, found.metrics)
  assert float(policy.coefficients["kl_coef"]) == pytest.approx(0.2)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_what_was_cut_off_is_worth_what_the_critic_says_if_asked(bootstrap):
  values = jax.jit(make_values(CRITIC, with_last=bootstrap))
  inputs = make(length=2, stop=12, values=values).batch.inputs
  # 8 and 9 were chosen and no stop: the last advantage is reward - 8, and with bootstrapping 9 more.
  np.testing.assert_allclose(inputs.advantages[0, 0], [1, -6 + 9 * bootstrap], atol=1e-4)
  finished = make(length=4, stop=10, values=values).batch.inputs
  np.testing.assert_allclose(finished.advantages[0, 0], [1, 1, -7, 0], atol=1e-4)


def test_short_completions_have_one_shape():
  shapes = [make(length=12, stop=stop).batch.inputs.mask.shape for stop in (9, 10, 11)]
  assert shapes == [(1, 2, 8)] * 3


def test_a_reward_model_reads_the_last_real_token():
  judge = partial(make_last_value(CRITIC), PARAMS)
  found = make(length=4, stop=10, reward_model=judge)
  assert found.metrics["reward"] == pytest.approx(2 + 10, abs=1e-4)
  assert found.metrics["reward/learned"] == pytest.approx(10, abs=1e-4)
  assert [row["reward"] for row in found.records] == pytest.approx([12, 12], abs=1e-4)
  alone = make(length=4, stop=10, reward_model=judge, task_rewards=False)
  assert alone.metrics["reward"] == pytest.approx(10, abs=1e-4)


def test_completions_left_out_of_the_loss_keep_their_rewards():
  """A group's other completions are compared with them."""
  seen = []
  make(length=2, stop=12, objective=reinforce.objective(), advantage=seeing(seen), mask_truncated=True)
  assert not seen[0].mask.any() and seen[0].rewarded.all()
  np.testing.assert_array_equal(seen[0].token_rewards.sum(axis=-1), [[2, 2]])


def test_the_greedy_baseline_is_judged_as_the_samples_are():
  seen = []
  greedy = seeing(seen, "values", "greedy_rewards")
  shape = Shaping(missing_eos_penalty=0.5, clip=8.0)
  judge = partial(make_last_value(CRITIC), PARAMS)  # 9, the last token
  make(
    length=2,
    stop=12,
    objective=reinforce.objective(),
    advantage=greedy,
    reward_model=judge,
    shaping=shape,
    task_rewards=False,
  )
  np.testing.assert_allclose(seen[0].greedy_rewards, [7.5], atol=1e-4)
  np.testing.assert_allclose(seen[0].token_rewards.sum(axis=-1), [[7.5, 7.5]], atol=1e-4)


def test_rewards_of_a_process_reward_model_stand_at_their_tokens():
  steps = jnp.array([[[0.5, 0.0, 0.25, 0.0]] * 2])
  found = make(length=4, stop=10, reward_model=lambda sequences: steps)
  np.testing.assert_allclose(found.batch.inputs.advantages[0, 0], [1.5, 1, 0.25 - 7, 0], atol=1e-4)
  assert found.metrics["reward"] == pytest.approx(2.75)


def test_a_reward_model_judges_steps_at_their_ends():
  judge = partial(make_step_values(CRITIC, end=9), PARAMS)
  given = dict(length=4, stop=10, reward_model=judge, task_rewards=False)
  found = make(**given)
  # 8, 9, 10: the steps end at 9 and at the last token, each worth what was read last; values are 7, 8, 9.
  np.testing.assert_allclose(found.batch.inputs.advantages[0, 0], [8 - 7, 9 + 9 - 8, 10 - 9, 0], atol=1e-4)
  assert found.metrics["reward"] == pytest.approx(19, abs=1e-3)
  clipped = make(**given, shaping=Shaping(clip=2.0))
  np.testing.assert_allclose(clipped.batch.inputs.advantages[0, 0], [8 - 7, 2 + 9 - 8, 2 - 9, 0], atol=1e-4)
  with pytest.raises(ValueError, match="spread is for rewards of completions"):
    make(**given, shaping=Shaping(spread=0.9))


def test_the_greedy_baseline_of_steps_is_clipped_step_by_step():
  seen = []
  greedy = seeing(seen, "values", "greedy_rewards")
  judge = partial(make_step_values(CRITIC, end=9), PARAMS)
  make(
    length=4, stop=10, objective=reinforce.objective(), advantage=greedy, reward_model=judge, shaping=Shaping(clip=2.0)
  )
  np.testing.assert_allclose(seen[0].greedy_rewards, [4], atol=1e-4)  # 9, and 10 + 2 of the task, at most 2 each
  np.testing.assert_allclose(seen[0].token_rewards.sum(axis=-1), [[4, 4]], atol=1e-4)


def test_solved_completions_are_targets():
  def solved(completions, **_):
    return [False, True]

  decoupled = estimates.with_critic(returns.decoupled_gae, whiten=False)
  given = dict(advantage=decoupled, objective=vapo.objective(), solved=solved)
  inputs = make(length=4, stop=10, **given).batch.inputs
  np.testing.assert_array_equal(inputs.target_mask[0], [[False] * 4, [True] * 3 + [False]])
  nobody_can_tell = make(length=4, stop=10, **given | {"solved": None}).batch.inputs
  assert not nobody_can_tell.target_mask.any()


def test_shaping_spreads_clips_and_punishes():
  mask, terminated = jnp.array([[1, 1, 0], [1, 1, 1]]), jnp.array([True, False])
  rewards = Rewards(jnp.array([3.0, -9.0]), None, jnp.ones(2, bool))
  spread = shaping.token_rewards(Shaping(spread=0.5, clip=6.0, missing_eos_penalty=1.0), rewards, terminated, mask)
  np.testing.assert_allclose(spread, [[1, 2, 0], [-1, -2, -4]], rtol=1e-6)  # -6 - 1, shared out as 1 : 2 : 4
  with pytest.raises(ValueError, match="a KL in the reward needs a reference policy and the coefficient kl_coef"):
    make(length=4, stop=10, shaping=Shaping(kl=kl.k1), reference=lambda state, sequences: jnp.zeros((1, 2, 4)))


def test_moments_are_those_of_everything_seen():
  rng = np.random.default_rng(0)
  parts, seen = [rng.normal(3, 2, (4, 2)) for _ in range(3)], Moments.zero()
  masks = [rng.random((4, 2)) < 0.7 for _ in parts]
  for part, mask in zip(parts, masks, strict=True):
    x = jnp.asarray(np.where(mask, part, np.nan), jnp.float32)
    seen = shaping.updated(seen, Rewards(x, None, jnp.asarray(mask)))
    scores = shaping.standardized(x, seen)
  everything = np.concatenate([part[mask] for part, mask in zip(parts, masks, strict=True)])
  np.testing.assert_allclose([seen.mean, seen.std], [everything.mean(), everything.std()], rtol=1e-5)
  last = (parts[-1] - everything.mean()) / everything.std()
  np.testing.assert_allclose(np.asarray(scores)[masks[-1]], last[masks[-1]], rtol=1e-4)


def test_rewards_are_standardized_by_what_was_seen_before_they_are_learned_from():
  """The batch belongs to what was seen: two rewards of 2 have mean 2, and become 0 before what truncation costs."""
  before = Moments(jnp.float32(2), jnp.float32(0), jnp.float32(2))  # 1 and -1
  # Then 1, -1, 2, 2 were seen: mean 1, squares 0 + 4 + 1 + 1 = 6, std sqrt(6 / 4), and 2 becomes 1 / std.
  found = make(length=4, stop=10, moments=before)
  expected = 1 / np.sqrt(1.5)
  np.testing.assert_allclose(found.batch.inputs.advantages[0, 0], [1, 1, expected - 9, 0], atol=1e-4)
  moments = found.state.running.reward_moments
  np.testing.assert_allclose([moments.count, moments.mean, moments.std], [4, 1, np.sqrt(1.5)], rtol=1e-6)
  assert found.metrics["reward"] == pytest.approx(2)  # what is logged is what was given
  with pytest.raises(ValueError, match="rewards of tokens do not go with the running moments"):
    make(length=4, stop=10, moments=before, reward_model=lambda sequences: jnp.zeros((1, 2, 4)))


def test_a_running_mean_is_carried_to_the_next_rollout():
  """b = 0.5 b + 0.5 * 2: 0, 1, 1.5; the advantage is taken against the mean before the batch."""
  running = estimates.against_running_mean(decay=0.5)
  algorithm = objectives.algorithm(reinforce.objective(), running)
  two = Reward(lambda completions, **_: [2.0] * len(completions), 1.0, "two")
  task = Task("chain", lambda i: {"prompt": "34"}, [], (two,))
  sizes = dict(num_prompts=1, group_size=2, max_new_tokens=4, stop_tokens=[10])
  collect = text_rollouts(task, TOKENIZER, MODEL, algorithm, **sizes).collect
  state = RLState.create(PARAMS, optax.sgd(0.1), jax.random.key(0), keep_reference=False, reward_baseline=0.0)
  for advantage, mean in ((2, 1), (1, 1.5)):
    found = collect(state)
    state = found.state
    np.testing.assert_allclose(found.batch.inputs.advantages[0], [[advantage] * 3 + [0]] * 2)
    assert float(state.running.reward_baseline) == mean


def test_compiled_experience_is_the_same():
  given = dict(length=4, stop=10, shaping=Shaping(clip=1.5, missing_eos_penalty=0.5), moments=Moments.zero())
  eager, compiled = (make(**given, jit=jit) for jit in (eagerly, jax.jit))
  for one, other in zip(jax.tree.leaves(eager.batch), jax.tree.leaves(compiled.batch), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  assert eager.metrics.keys() == compiled.metrics.keys()


def test_what_nothing_gives_is_named():
  with pytest.raises(ValueError, match="needs values, which nothing gives: it wants a model with a critic"):
    make(length=4, stop=10, values=None)
  with pytest.raises(ValueError, match="needs teacher_logp, which no rollout gives"):
    make(length=4, stop=10, advantage=estimates.from_teacher())
  with pytest.raises(ValueError, match="needs kl_baseline, which no rollout gives"):
    make(length=4, stop=10, objective=kto.objective())
  with pytest.raises(ValueError, match="needs a reference policy, which nothing gives"):
    make_outputs({"ref_logp"})
