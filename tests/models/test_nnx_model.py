"""An NNX module samples, is scored and is trained like any other policy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rl_jax.models.nnx_model import from_nnx
from rl_jax.objectives import grpo
from rl_jax.objectives.base import Inputs
from rl_jax.sampling.generate import make_generate
from rl_jax.sampling.samplers import SamplingParams
from rl_jax.state import Batch, Sequences, TrainState
from rl_jax.train.forward import make_forward
from rl_jax.train.step import make_train_step
from tests.fakes import Output, bigram, bigram_params


class Bigram(nnx.Module):
  def __init__(self, params):
    self.table = nnx.Param(params["table"])
    self.unembedding = nnx.Param(params["unembedding"])
    self.scale = nnx.Variable(jnp.ones(()))  # no parameter: it stays as it is

  def __call__(self, tokens, positions, *, cache=None, **_):
    return Output(self.table[...][tokens] * self.scale[...], jnp.zeros(()) if cache is None else cache)

  def unembed(self):
    return self.unembedding[...]

  def empty_cache(self, batch, size):
    return jnp.zeros(())


def test_samples_and_trains_as_the_same_model_without_nnx():
  plain_params = bigram_params()
  model, params = from_nnx(Bigram(plain_params))
  prompts, real = jnp.array([[3, 4], [5, 6]]), jnp.ones((2, 2), bool)
  stop = jnp.array([-1])

  def sample(policy, params):
    generate = jax.jit(make_generate(policy, group_size=3, max_new_tokens=4, pad_token=0))
    return generate(params, prompts, real, stop, jax.random.key(1), SamplingParams())

  ours, plain = sample(model, params), sample(bigram(), plain_params)
  np.testing.assert_array_equal(ours.tokens, plain.tokens)

  sequences = Sequences(prompts, real, plain.tokens, plain.mask)
  advantages = jax.random.normal(jax.random.key(2), plain.tokens.shape)
  batch = Batch(sequences, Inputs(plain.mask, advantages))
  optimizer = optax.sgd(1.0)

  def trained(policy, params):
    step = make_train_step(make_forward(policy), grpo.objective(kl_coef=0), optimizer)
    return jax.jit(step)(TrainState.create(params, optimizer), batch)[0].params

  chex.assert_trees_all_close(trained(model, params), trained(bigram(), plain_params), rtol=1e-6)
  assert not np.allclose(trained(bigram(), plain_params)["table"], plain_params["table"])
