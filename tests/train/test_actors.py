"""What is trained together: values alone are those that the update sees, and what is frozen stays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax.devices import Devices, make_mesh
from rl_jax.models import heads, presets
from rl_jax.ops.moments import Moments
from rl_jax.state import Keys, Sequences, split
from rl_jax.train.actors import LoadedReward, create_state, make_actors, make_learner

TOKENS, MASK = jnp.array([[[5, 6, 7], [8, 9, 0]]]), jnp.array([[[1, 1, 1], [1, 1, 0]]], bool)
SEQUENCES = Sequences(jnp.array([[3, 4]]), jnp.ones((1, 2), bool), TOKENS, MASK)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("critic", ["own", "fresh", "shared"])
def test_values_alone_are_those_that_the_update_sees(critic, lora_rank):
  model = presets.load("tiny")
  learner = make_learner(model, lora_rank=lora_rank, lora_alpha=32.0)
  actors = make_actors(learner, critic, None, temperature=1.0, bootstrap=True)
  params = actors.init(model.params, Keys.of(jax.random.key(0)))
  head = params.get("value_head") or params["critic"]["head"]
  head["out"]["kernel"] = jax.random.normal(jax.random.key(1), head["out"]["kernel"].shape)  # it begins at 0
  alone = actors.values(params, SEQUENCES)
  np.testing.assert_allclose(alone.tokens * MASK, actors.forward(params, SEQUENCES).values * MASK, atol=1e-5)
  # The value after the last token is the one before a token that would follow.
  longer = Sequences(*SEQUENCES[:2], jnp.pad(TOKENS, [(0, 0), (0, 0), (0, 1)]), jnp.ones((1, 2, 4), bool))
  np.testing.assert_allclose(alone.last[0, 0], actors.forward(params, longer).values[0, 0, 3], rtol=1e-4)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("critic", ["none", "own", "shared"])
def test_the_policy_begins_as_the_model_that_it_is_made_of(critic, lora_rank):
  model = presets.load("tiny")
  learner = make_learner(model, lora_rank=lora_rank)
  actors = make_actors(learner, critic, None, temperature=1.0)
  params = jax.jit(actors.init)(model.params, Keys.of(jax.random.key(0)))
  plain = make_actors(make_learner(model), "none", None, temperature=1.0)
  expected = plain.forward({"policy": model.params}, SEQUENCES)
  found = actors.forward(params, SEQUENCES)
  np.testing.assert_allclose(found.logp * MASK, expected.logp * MASK, atol=1e-5)
  np.testing.assert_allclose(found.entropy * MASK, expected.entropy * MASK, atol=1e-5)
  assert (found.values is None) == (critic == "none") and (actors.values is None) == (critic == "none")
  trained, constant = split(params, learner.frozen)
  assert set(constant) == ({"base"} if lora_rank else set()) and "base" not in trained


def test_a_critic_from_a_reward_model_begins_with_its_values():
  model = presets.load("tiny")
  width = model.config.embed_dim
  head = {"out": {"kernel": jax.random.normal(jax.random.key(2), (width, 1)), "bias": jnp.ones(1)}}
  reward = LoadedReward(heads.scalar_model(model.policy, width), {"backbone": model.params, "head": head})
  actors = make_actors(make_learner(model), "reward", reward, temperature=1.0, bootstrap=True)
  params = actors.init(model.params, Keys.of(jax.random.key(0)))
  devices = Devices(make_mesh(data=1, devices=jax.devices()[:1]))
  scores = reward.make_reward_model(devices)(SEQUENCES)
  np.testing.assert_allclose(actors.values(params, SEQUENCES).last, scores, rtol=1e-5)
  assert np.abs(scores).min() > 1e-3
  # A copy: the update takes the critic's buffers over, and the reward model goes on.
  assert params["critic"]["head"]["out"]["kernel"] is not head["out"]["kernel"]


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_new_state_keeps_what_the_run_needs(lora_rank):
  model = presets.load("tiny")
  learner = make_learner(model, lora_rank=lora_rank)
  create = create_state(
    learner,
    optax.adam(1e-3),
    keep_reference=True,
    coefficients={"kl_coef": 0.1},
    reward_moments=Moments.zero(),
    needs={"reward_baseline"},
  )
  expected = jax.tree.map(np.asarray, model.params)
  state = Devices(make_mesh(data=1, devices=jax.devices()[:1])).build(create, model.params, jax.random.key(0))
  assert (state.ref_params is None) == bool(lora_rank)  # under adapters the base is there
  jax.tree.map(np.testing.assert_array_equal, learner.reference_params(state), expected)
  assert float(state.policy.coefficients["kl_coef"]) == np.float32(0.1)
  assert float(state.running.reward_baseline) == 0 and float(state.running.reward_moments.count) == 0
  assert int(state.policy.step) == int(state.rollouts) == int(state.running.position) == 0
  moments = sum(leaf.size for leaf in jax.tree.leaves(state.policy.opt_state) if leaf.ndim)
  trained, _ = split(state.policy.params, learner.frozen)
  assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(trained))  # Adam's two, of what is trained alone


def test_what_a_critic_cannot_be_is_named():
  learner = make_learner(presets.load("tiny"))
  with pytest.raises(ValueError, match="critic 'reward' needs a reward model"):
    make_actors(learner, "reward", None, temperature=1.0)
  with pytest.raises(ValueError, match="critic must be one of none, own, reward, fresh, shared, got 'foo'"):
    make_actors(learner, "foo", None, temperature=1.0)
