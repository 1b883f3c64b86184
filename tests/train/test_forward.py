"""Values and scores from one pass: which token they are read off, and that padding changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rl_jax.models import heads, presets
from rl_jax.state import Sequences
from rl_jax.train.forward import make_forward, make_last_value, make_values
from tests.fakes import chain

MODEL, PARAMS = chain(13)  # every token is followed by the next one; its value below is the last token that was read


def last_read(params, hidden):
  return hidden @ jnp.arange(13.0) / 50 - 1


def test_one_pass_gives_the_values_before_each_token_and_after_the_last():
  passes = []

  def apply(*args, **kwargs):
    passes.append(1)
    return MODEL.apply(*args, **kwargs)

  critic = dataclasses.replace(MODEL, apply=apply, value=last_read)
  mask = jnp.array([[[1, 1, 1], [1, 0, 0], [0, 0, 0]]])
  sequences = Sequences(jnp.array([[6, 7]]), jnp.ones((1, 2)), jnp.array([[[8, 9, 10], [8, 0, 0], [0, 0, 0]]]), mask)
  both = make_values(critic, with_last=True)(PARAMS, sequences)
  assert len(passes) == 2  # the prompt, once for all its completions, and the completions
  np.testing.assert_allclose(both.tokens[0, 0], [7, 8, 9], atol=1e-4)
  np.testing.assert_allclose(both.last, [[10, 8, 7]], atol=1e-4)
  np.testing.assert_array_equal(both.tokens * mask, make_values(critic)(PARAMS, sequences).tokens * mask)


def test_scores_of_a_reward_model_do_not_depend_on_padding():
  model = presets.load("tiny")
  scalar = heads.scalar_model(model.policy, model.config.embed_dim)
  params = {"backbone": model.params, "head": {"out": {"kernel": jnp.ones((64, 1)), "bias": jnp.zeros(1)}}}
  tokens, mask = jnp.array([[[5, 6, 0, 0], [5, 6, 7, 8]]]), jnp.array([[[1, 1, 0, 0], [1, 1, 1, 1]]])
  prompts, prompt_mask = jnp.array([[3, 4, 0]]), jnp.array([[1, 1, 0]])
  score = jax.jit(make_last_value(scalar))
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
  other = make_forward(shared)({"policy": model.params, "value_head": head}, sequences).values
  np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_model_without_a_head_gives_no_values():
  sequences = Sequences(jnp.array([[6, 7]]), jnp.ones((1, 2)), jnp.array([[[8, 9]]]), jnp.ones((1, 1, 2)))
  assert make_forward(MODEL)(PARAMS, sequences).values is None
  with_head = make_forward(dataclasses.replace(MODEL, value=last_read))(PARAMS, sequences)
  np.testing.assert_allclose(with_head.values, [[[7, 8]]], atol=1e-4)
