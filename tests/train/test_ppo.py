"""Actor, critic, reference and reward model on text: which index holds what, by hand, and that it learns."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.actors import assemble, make_learner
from rl_jax.models import heads, presets
from rl_jax.models.presets import character_tokenizer
from rl_jax.objectives import ppo, remax, vapo
from rl_jax.objectives.base import Inputs
from rl_jax.ops import controllers, kl, returns
from rl_jax.ops.metrics import Mean
from rl_jax.ops.moments import Moments
from rl_jax.sampling.generate import make_generate
from rl_jax.sampling.samplers import Sampler
from rl_jax.tasks import Task
from rl_jax.tasks.rewards import Reward
from rl_jax.train import estimates, loop, pretraining, shaping
from rl_jax.train.checkpoint import open_checkpoints
from rl_jax.train.metrics_io import RunDirectory, read_lines
from rl_jax.train.rollout import Collected, make_collect
from rl_jax.train.score import Scores, Sequences, make_last_value, make_score, make_step_values, make_values
from rl_jax.train.shaping import Shaping
from rl_jax.train.state import RLState
from rl_jax.train.step import Batch, make_train_step
from tests.fakes import chain

TOKENIZER = character_tokenizer("0123456789")  # the digit d is token d + 3
MODEL, PARAMS = chain(13)  # every token is followed by the next one; its value below is the last token that was read


def last_read(params, hidden):
  return hidden @ jnp.arange(13.0) / 50 - 1


CRITIC = SimpleNamespace(apply=MODEL.apply, value=last_read)


def make(*, length, stop, estimator, score=None, kl_coef=None, task_rewards=True, solved=None, **options):
  """Collects for the prompt "34", tokens 6 and 7: the completion is 8, 9, 10, ..."""
  two = Reward(lambda completions, **_: [2.0] * len(completions), 1.0, "two")
  task = Task("chain", lambda i: {"prompt": "34"}, [], (two,), solved=solved)
  collect = make_collect(
    task=task if task_rewards else task._replace(rewards=()),
    tokenizer=TOKENIZER,
    generate=make_generate(MODEL, group_size=2, max_new_tokens=length, pad_token=0),
    score=score or make_score(MODEL, value=last_read),
    objective=options.pop("objective", ppo.objective()),
    sampler=Sampler(),
    stop_tokens=np.array([stop]),
    prompts_per_batch=1,
    max_prompt_tokens=8,
    estimator=estimates.adapt(estimator, whiten=False),
    on_policy=False,
    **options,
  )
  return collect(RLState.create(PARAMS, optax.sgd(0.1), jax.random.key(0), keep_reference=False, kl_coef=kl_coef))


ONE_STEP = partial(returns.gae, gamma=1.0, lam=0.0)


def test_values_rewards_and_masks_stand_at_the_token_that_was_chosen():
  inputs = make(length=4, stop=10, estimator=ONE_STEP).batch.inputs
  np.testing.assert_array_equal(inputs.mask[0, 0], [True, True, True, False])  # 8, 9, and 10, which stops
  # The value at t is that of the state before token t: what was read last is 7, then 8, then 9.
  np.testing.assert_allclose(inputs.old_values[0, 0, :3], [7, 8, 9], atol=1e-4)
  # The reward follows the last token, after which nothing is worth anything: 8 - 7, 9 - 8, 2 - 9.
  np.testing.assert_allclose(inputs.advantages[0, 0], [1, 1, -7, 0], atol=1e-4)
  np.testing.assert_allclose(inputs.returns[0, 0, :3], [8, 9, 2], atol=1e-4)


def test_the_kl_is_paid_where_it_arises():
  reference = jnp.array([[[-0.5, 0.0, -1.0, jnp.nan]] * 2])  # the policy's own log-probs are 0: it is certain
  given = dict(reference=lambda state, sequences: reference, shaping=Shaping(kl=kl.k1), kl_coef=0.1)
  found = make(length=4, stop=10, estimator=ONE_STEP, **given)
  np.testing.assert_allclose(found.batch.inputs.advantages[0, 0], [1 - 0.05, 1, -7 - 0.1, 0], atol=1e-4)
  assert found.metrics["kl"] == pytest.approx(0.5) and found.metrics["kl_completion"] == pytest.approx(1.5)
  assert found.metrics["kl_coef"] == pytest.approx(0.1)
  band = dict(control=partial(controllers.kl_band, low=0.1, high=1.0))
  assert float(make(length=4, stop=10, estimator=ONE_STEP, **given, **band).state.kl_coef) == pytest.approx(0.2)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_what_was_cut_off_is_worth_what_the_critic_says_if_asked(bootstrap):
  values = make_values(CRITIC, with_last=bootstrap)
  inputs = make(length=2, stop=12, estimator=ONE_STEP, values=values).batch.inputs
  # 8 and 9 were chosen and no stop: the last advantage is reward - 8, and with bootstrapping 9 more.
  np.testing.assert_allclose(inputs.advantages[0, 0], [1, -6 + 9 * bootstrap], atol=1e-4)
  finished = make(length=4, stop=10, estimator=ONE_STEP, values=values).batch.inputs
  np.testing.assert_allclose(finished.advantages[0, 0], [1, 1, -7, 0], atol=1e-4)


def test_short_completions_have_one_shape():
  shapes = [make(length=12, stop=stop, estimator=ONE_STEP).batch.inputs.mask.shape for stop in (9, 10, 11)]
  assert shapes == [(1, 2, 8)] * 3


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("critic", ["own", "fresh", "shared"])
def test_values_alone_are_those_that_the_update_sees(critic, lora_rank):
  model = presets.load("tiny")
  learner = make_learner("tiny", lora_rank, 32.0)
  actors = assemble(model, learner, critic, None, temperature=1.0, bootstrap=True)
  params = actors.build(model.params, jax.random.key(0))
  head = params.get("value_head") or params["critic"]["head"]
  head["out"]["kernel"] = jax.random.normal(jax.random.key(1), head["out"]["kernel"].shape)  # it begins at 0
  tokens, mask = jnp.array([[[5, 6, 7], [8, 9, 0]]]), jnp.array([[[1, 1, 1], [1, 1, 0]]], bool)
  sequences = Sequences(jnp.array([[3, 4]]), jnp.ones((1, 2), bool), tokens, mask)
  alone = actors.values(params, sequences)
  np.testing.assert_allclose(alone.tokens * mask, actors.score(params, sequences).values * mask, atol=1e-5)
  # The value after the last token is the one before a token that would follow.
  longer = Sequences(*sequences[:2], jnp.pad(tokens, [(0, 0), (0, 0), (0, 1)]), jnp.ones((1, 2, 4), bool))
  np.testing.assert_allclose(alone.last[0, 0], actors.score(params, longer).values[0, 0, 3], rtol=1e-4)


def test_one_pass_gives_the_values_before_each_token_and_after_the_last():
  passes = []

  def apply(*args, **kwargs):
    passes.append(1)
    return MODEL.apply(*args, **kwargs)

  critic = SimpleNamespace(apply=apply, value=last_read)
  mask = jnp.array([[[1, 1, 1], [1, 0, 0], [0, 0, 0]]])
  sequences = Sequences(jnp.array([[6, 7]]), jnp.ones((1, 2)), jnp.array([[[8, 9, 10], [8, 0, 0], [0, 0, 0]]]), mask)
  both = make_values(critic, with_last=True)(PARAMS, sequences)
  assert len(passes) == 2  # the prompt, once for all its completions, and the completions
  np.testing.assert_allclose(both.tokens[0, 0], [7, 8, 9], atol=1e-4)
  np.testing.assert_allclose(both.last, [[10, 8, 7]], atol=1e-4)
  np.testing.assert_array_equal(both.tokens * mask, make_values(critic)(PARAMS, sequences).tokens * mask)


def test_a_reward_model_reads_the_last_real_token():
  judge = partial(make_last_value(CRITIC), PARAMS)
  found = make(length=4, stop=10, estimator=ONE_STEP, reward_model=judge)
  assert found.metrics["reward"] == pytest.approx(2 + 10, abs=1e-4)
  assert found.metrics["reward/learned"] == pytest.approx(10, abs=1e-4)
  assert [row["reward"] for row in found.samples] == pytest.approx([12, 12], abs=1e-4)
  alone = make(length=4, stop=10, estimator=ONE_STEP, reward_model=judge, task_rewards=False)
  assert alone.metrics["reward"] == pytest.approx(10, abs=1e-4)


def test_completions_left_out_of_the_loss_keep_their_rewards():
  """A group's other completions are compared with them."""
  seen = []
  totals = estimates.Estimate(lambda experience: seen.append(experience) or {"advantages": experience.token_rewards})
  make(length=2, stop=12, estimator=totals, mask_truncated=True)
  assert not seen[0].mask.any() and seen[0].rewarded.all()
  np.testing.assert_array_equal(seen[0].token_rewards.sum(axis=-1), [[2, 2]])


def test_the_greedy_baseline_is_judged_as_the_samples_are():
  seen = []
  greedy = estimates.Estimate(
    lambda experience: seen.append(experience) or {"advantages": experience.token_rewards},
    frozenset({"values", "greedy_rewards"}),
  )
  answer = make_generate(MODEL, group_size=1, max_new_tokens=2, pad_token=0)
  shape = Shaping(missing_eos_penalty=0.5, clip=8.0)
  judge = partial(make_last_value(CRITIC), PARAMS)  # 9, the last token
  make(length=2, stop=12, estimator=greedy, answer=answer, reward_model=judge, shaping=shape, task_rewards=False)
  np.testing.assert_allclose(seen[0].greedy_rewards, [7.5], atol=1e-4)
  np.testing.assert_allclose(seen[0].token_rewards.sum(axis=-1), [[7.5, 7.5]], atol=1e-4)


def test_rewards_of_a_process_reward_model_stand_at_their_tokens():
  steps = jnp.array([[[0.5, 0.0, 0.25, 0.0]] * 2])
  found = make(length=4, stop=10, estimator=ONE_STEP, reward_model=lambda sequences: steps)
  np.testing.assert_allclose(found.batch.inputs.advantages[0, 0], [1.5, 1, 0.25 - 7, 0], atol=1e-4)
  assert found.metrics["reward"] == pytest.approx(2.75)


def test_a_reward_model_judges_steps_at_their_ends():
  judge = partial(make_step_values(CRITIC, end=9), PARAMS)
  given = dict(length=4, stop=10, estimator=ONE_STEP, reward_model=judge, task_rewards=False)
  found = make(**given)
  # 8, 9, 10: the steps end at 9 and at the last token, each worth what was read last; values are 7, 8, 9.
  np.testing.assert_allclose(found.batch.inputs.advantages[0, 0], [8 - 7, 9 + 9 - 8, 10 - 9, 0], atol=1e-4)
  assert found.metrics["reward"] == pytest.approx(19, abs=1e-3)
  clipped = make(**given, shaping=Shaping(clip=2.0))
  np.testing.assert_allclose(clipped.batch.inputs.advantages[0, 0], [8 - 7, 2 + 9 - 8, 2 - 9, 0], atol=1e-4)
  with pytest.raises(ValueError, match="spread is for scores of completions"):
    make(**given, shaping=Shaping(spread=0.9))


def test_the_greedy_baseline_of_steps_is_clipped_step_by_step():
  seen = []
  greedy = estimates.Estimate(
    lambda experience: seen.append(experience) or {"advantages": experience.token_rewards},
    frozenset({"values", "greedy_rewards"}),
  )
  answer = make_generate(MODEL, group_size=1, max_new_tokens=4, pad_token=0)
  judge = partial(make_step_values(CRITIC, end=9), PARAMS)
  make(length=4, stop=10, estimator=greedy, answer=answer, reward_model=judge, shaping=Shaping(clip=2.0))
  np.testing.assert_allclose(seen[0].greedy_rewards, [4], atol=1e-4)  # 9, and 10 + 2 of the task, at most 2 each
  np.testing.assert_allclose(seen[0].token_rewards.sum(axis=-1), [[4, 4]], atol=1e-4)


def test_solved_completions_are_targets():
  def solved(completions, **_):
    return [False, True]

  given = dict(estimator=returns.decoupled_gae, objective=vapo.objective(), solved=solved)
  inputs = make(length=4, stop=10, **given).batch.inputs
  np.testing.assert_array_equal(inputs.target_mask[0], [[False] * 4, [True] * 3 + [False]])


def test_scores_of_a_reward_model_do_not_depend_on_padding():
  model = presets.load("tiny")
  scalar = heads.scalar_model(model.policy, model.config.embed_dim)
  params = {"backbone": model.params, "head": {"out": {"kernel": jnp.ones((64, 1)), "bias": jnp.zeros(1)}}}
  tokens, mask = jnp.array([[[5, 6, 0, 0], [5, 6, 7, 8]]]), jnp.array([[[1, 1, 0, 0], [1, 1, 1, 1]]])
  prompts, prompt_mask = jnp.array([[3, 4, 0]]), jnp.array([[1, 1, 0]])
  score = make_last_value(scalar)
  one = score(params, Sequences(prompts, prompt_mask, tokens, mask))
  other = score(params, Sequences(prompts.at[0, 2].set(9), prompt_mask, tokens.at[0, 0, 2:].set(50), mask))
  short = score(params, Sequences(prompts[:, :2], prompt_mask[:, :2], tokens[:, :1, :2], mask[:, :1, :2]))
  np.testing.assert_array_equal(one, other)
  np.testing.assert_allclose(short[0, 0], one[0, 0], rtol=1e-4)
  assert abs(float(one[0, 0] - one[0, 1])) > 1e-3


def test_values_of_a_critic_of_its_own_and_of_a_shared_trunk_are_the_same_numbers():
  model = presets.load("tiny")
  width = model.config.embed_dim
  own, shared = heads.scalar_model(model.policy, width), heads.with_value_head(model.policy, width)
  head = {"out": {"kernel": jax.random.normal(jax.random.key(0), (width, 1)), "bias": jnp.ones(1)}}
  sequences = Sequences(
    jnp.array([[3, 4]]), jnp.ones((1, 2), bool), jnp.array([[[5, 6, 7]]]), jnp.ones((1, 1, 3), bool)
  )
  one = make_values(own)({"backbone": model.params, "head": head}, sequences).tokens
  other = make_score(shared, value=shared.value)({"policy": model.params, "value_head": head}, sequences).values
  np.testing.assert_allclose(one, other, rtol=1e-5)


def test_shaping_spreads_clips_and_punishes():
  mask, stopped = jnp.array([[1, 1, 0], [1, 1, 1]]), jnp.array([True, False])
  scores = jnp.array([3.0, -9.0])
  spread = shaping.token_rewards(Shaping(spread=0.5, clip=6.0, missing_eos_penalty=1.0), scores, stopped, mask)
  np.testing.assert_allclose(spread, [[1, 2, 0], [-1, -2, -4]], rtol=1e-6)  # -6 - 1, shared out as 1 : 2 : 4
  with pytest.raises(ValueError, match="a KL in the reward needs old_logp, ref_logp and kl_coef"):
    shaping.token_rewards(Shaping(kl=kl.k1), scores, stopped, mask)


def test_moments_are_those_of_everything_seen():
  rng = np.random.default_rng(0)
  parts, seen = [rng.normal(3, 2, (4, 2)) for _ in range(3)], Moments.zero()
  masks = [rng.random((4, 2)) < 0.7 for _ in parts]
  for part, mask in zip(parts, masks, strict=True):
    x = jnp.asarray(np.where(mask, part, np.nan), jnp.float32)
    scores, seen = shaping.normalized(x, jnp.asarray(mask), seen)
  everything = np.concatenate([part[mask] for part, mask in zip(parts, masks, strict=True)])
  np.testing.assert_allclose([seen.mean, seen.std], [everything.mean(), everything.std()], rtol=1e-5)
  last = (parts[-1] - everything.mean()) / everything.std()
  np.testing.assert_allclose(np.asarray(scores)[masks[-1]], last[masks[-1]], rtol=1e-4)


def test_what_nothing_gives_is_named():
  with pytest.raises(ValueError, match="give a score function with a critic"):
    make(length=4, stop=10, estimator=ONE_STEP, score=make_score(MODEL))
  with pytest.raises(ValueError, match="pass `answer`, which makes them"):
    make(length=4, stop=10, estimator=remax.estimator)


def test_text_is_learnt_beside_the_rollout_and_not_by_the_policy_gradient():
  stream = pretraining.make_stream(["012", "3456789"], TOKENIZER, prompts=2, group_size=2, length=5, seed=0)
  collect = pretraining.with_text(lambda state: make(length=4, stop=10, estimator=ONE_STEP), stream)
  state = RLState.create(PARAMS, optax.sgd(0.1), jax.random.key(0), keep_reference=False)
  sequences, inputs = collect(state).batch
  assert sequences.completions.shape == (3, 2, 5) and inputs.advantages.shape == (3, 2, 5)
  assert not inputs.mask[1:].any() and not inputs.target_mask[:1].any()
  np.testing.assert_array_equal(inputs.target_mask[1:], sequences.completion_mask[1:])
  np.testing.assert_array_equal(sequences.prompts[1:, 0], TOKENIZER.eos_token_id)
  seen = {
    tuple(row[real].tolist())
    for row, real in zip(
      np.asarray(sequences.completions[1:]).reshape(-1, 5),
      np.asarray(sequences.completion_mask[1:]).reshape(-1, 5),
      strict=True,
    )
  }
  assert seen == {(3, 4, 5), (6, 7, 8, 9, 10), (11, 12)}  # all pieces of both texts


def test_every_minibatch_has_its_share_of_the_text(tmp_path):
  rows = jnp.arange(6)[:, None, None]  # four of a rollout, two of text
  batch = Batch(Sequences(rows[..., 0], rows[..., 0], rows, rows), Inputs(mask=jnp.ones((6, 1, 1))))
  state, found = RLState.create(PARAMS, optax.sgd(0.1), jax.random.key(0), keep_reference=False), []

  def collect(state):
    return Collected(state, batch, {"tokens": 1.0}, [], extra_rows=2)

  def update(policy, part):
    found.append(sorted(part.sequences.completions.ravel().tolist()))
    return policy, {"loss": Mean.of(jnp.zeros(()), jnp.ones(())), "skipped": Mean.of(jnp.zeros(()), jnp.ones(()))}

  with RunDirectory(tmp_path, {}, resume=False) as run, open_checkpoints(tmp_path / "checkpoints") as checkpoints:
    loop.fit(state, steps=1, collect=collect, update=update, run=run, checkpoints=checkpoints, epochs=2, minibatches=2)
  assert [sum(row >= 4 for row in part) for part in found] == [1, 1, 1, 1]
  assert sorted(found[0] + found[1]) == sorted(found[2] + found[3]) == list(range(6))


def learner(folder, *, steps, resume=False, enough=None):
  """PPO on a bigram-like table: more sevens."""
  model = presets.load("tiny", unroll=2)
  tokenizer, width = model.tokenizer, model.config.embed_dim
  seven = tokenizer("7")["input_ids"][0]

  def sevens(completion_ids, **_):
    return [ids.count(seven) / 6 for ids in completion_ids]

  task = Task("sevens", lambda i: {"prompt": str(i % 10)}, [{"prompt": "1"}], (Reward(sevens, 1.0, "sevens"),))
  critic = heads.scalar_model(model.policy, width)
  plain, values = make_score(model.policy), make_values(critic)

  def score(params, sequences) -> Scores:
    return plain(params["policy"], sequences)._replace(values=values(params["critic"], sequences).tokens)

  tx = optax.adam(3e-3)
  objective = ppo.objective(value_coef=1.0)
  generate = make_generate(model.policy, group_size=4, max_new_tokens=6, pad_token=0)
  collect = make_collect(
    task=task,
    tokenizer=tokenizer,
    generate=jax.jit(lambda params, *rest: generate(params["policy"], *rest)),
    score=jax.jit(score),
    objective=objective,
    sampler=Sampler(),
    stop_tokens=np.array([1]),
    prompts_per_batch=8,
    max_prompt_tokens=8,
    estimator=partial(returns.gae, lam=0.95),
    shaping=Shaping(kl=kl.k1),
    reference=lambda state, sequences: jax.jit(plain)(state.ref_params, sequences).logp,
    on_policy=False,
    control=partial(controllers.adaptive_kl, target=20.0, horizon=1000, samples=32),
  )
  params = {"policy": model.params, "critic": critic.init(jax.random.key(1))}
  state = RLState.create(
    params,
    tx,
    jax.random.key(0),
    keep_reference=True,
    reference=lambda params: params["policy"],
    kl_coef=0.002,
    reward_moments=Moments.zero(),
  )
  with RunDirectory(folder, {}, resume=resume) as run, open_checkpoints(folder / "checkpoints") as checkpoints:
    return loop.fit(
      checkpoints.resume(state),
      steps=steps,
      collect=collect,
      update=jax.jit(make_train_step(score, objective, tx)),
      run=run,
      checkpoints=checkpoints,
      epochs=2,
      minibatches=2,
      enough=enough,
    )


@pytest.mark.slow
def test_it_learns_and_resumes_exactly(tmp_path):
  whole, _ = learner(tmp_path / "whole", steps=60)
  rows = read_lines(tmp_path / "whole", "metrics.jsonl")
  assert np.mean([row["reward"] for row in rows[:5]]) < 0.1
  assert np.mean([row["reward"] for row in rows[-5:]]) > 0.6
  assert rows[-1]["kl_completion"] > 0.5 and rows[-1]["kl_coef"] != rows[0]["kl_coef"]
  assert np.mean([row["explained_variance"] for row in rows[-5:]]) > 0.2
  learner(tmp_path / "parts", steps=2)
  parts, _ = learner(tmp_path / "parts", steps=4, resume=True)
  short, _ = learner(tmp_path / "short", steps=4)
  for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(short), strict=True):
    if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
      np.testing.assert_array_equal(one, other)


def test_updates_stop_once_they_have_moved_enough(tmp_path):
  learner(tmp_path / "run", steps=2, enough=lambda metrics: metrics["policy/approx_kl"] > -1)
  rows = read_lines(tmp_path / "run", "metrics.jsonl")
  assert [row["updates"] for row in rows] == [1, 1] and [row["step"] for row in rows] == [1, 2]
