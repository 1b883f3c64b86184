"""Experts, held to a loop over tokens; what transformers computes with them is in test_weights.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax import devices
from rl_jax.models import lora
from rl_jax.models.experts import Experts, ExpertsConfig
from rl_jax.models.transformer import TransformerConfig, policy
from rl_jax.objectives import grpo
from rl_jax.objectives.base import Inputs
from rl_jax.state import Batch, Sequences, TrainState
from rl_jax.train.forward import make_forward
from rl_jax.train.optimizers import make_optimizer
from rl_jax.train.step import make_train_step

SHAPE = dict(vocab_size=11, num_layers=2, embed_dim=8, mlp_dim=6, num_heads=2, num_kv_heads=1, head_dim=4)


def module(config, dtype=jnp.float32):
  return Experts(config, 6, lambda gate, up: jax.nn.silu(gate) * up, dtype)


def random_params(config, tokens):
  shapes = jax.eval_shape(module(config).init, jax.random.key(0), tokens)["params"]
  leaves, structure = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return structure.unflatten([jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


def by_hand(config, params, tokens):
  """One token after the other, in NumPy."""
  params, out = jax.tree.map(lambda x: np.asarray(x, np.float64), params), np.zeros(tokens.shape)

  def dense(layer, x):
    return x @ layer["kernel"] + layer.get("bias", 0.0)

  for row, x in enumerate(np.asarray(tokens, np.float64)):
    logits = dense(params["router"], x)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    chosen = np.argsort(-shares)[: config.per_token]
    total = shares[chosen].sum() if config.normalized else 1.0
    for expert in chosen:
      gate, up, down = (
        {name: leaf[expert] for name, leaf in params[layer].items()} for layer in ("gate", "up", "down")
      )
      g = dense(gate, x)
      out[row] += shares[expert] / total * dense(down, g / (1 + np.exp(-g)) * dense(up, x))
  return out


@pytest.mark.parametrize(
  "config",
  [
    ExpertsConfig(5, 2),
    ExpertsConfig(5, 2, bias=True, normalized=False),
    ExpertsConfig(3, 3, bias=True),
    ExpertsConfig(40, 1, normalized=False),  # more experts than tokens: most get none
  ],
)
def test_experts_are_those_of_a_loop_over_tokens(config):
  tokens = jax.random.normal(jax.random.key(2), (7, 8))
  params = random_params(config, tokens)
  found = module(config).apply({"params": params}, tokens)
  np.testing.assert_allclose(found, by_hand(config, params, tokens), rtol=1e-4, atol=1e-4)


def test_a_gradient_reaches_the_chosen_experts_and_the_router_alone():
  config, tokens = ExpertsConfig(4, 1, normalized=False), jnp.ones((3, 8))  # equal tokens go to one expert
  params = random_params(config, tokens)
  gradient = jax.grad(lambda p: jnp.sum(module(config).apply({"params": p}, tokens) ** 2))(params)
  reached = np.flatnonzero(np.abs(np.asarray(gradient["down"]["kernel"])).sum(axis=(1, 2)))
  assert reached.tolist() == [int(np.argmax(tokens[0] @ params["router"]["kernel"]))]
  assert float(jnp.abs(gradient["router"]["kernel"]).max()) > 0


def test_activations_keep_their_type():
  config = ExpertsConfig(4, 2, bias=True)
  tokens = jax.random.normal(jax.random.key(2), (7, 8), jnp.bfloat16)
  params = random_params(config, tokens)
  found = module(config, jnp.bfloat16).apply({"params": params}, tokens)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.astype(jnp.float32), by_hand(config, params, tokens), rtol=0.1, atol=1.0)


def test_more_experts_a_token_than_there_are_is_refused():
  with pytest.raises(ValueError, match="per_token must be between 1 and 2 experts, got 3"):
    ExpertsConfig(2, 3)


def test_an_update_is_the_same_on_several_devices_and_in_microbatches():
  model = policy(TransformerConfig(**SHAPE, experts=ExpertsConfig(4, 2)))
  params, rng = model.init(jax.random.key(0)), np.random.default_rng(0)
  mask = jnp.asarray(np.arange(5) < rng.integers(1, 6, (4, 2, 1)))
  prompts, completions = (jnp.asarray(rng.integers(0, 11, shape)) for shape in ((4, 3), (4, 2, 5)))
  sequences = Sequences(prompts, jnp.ones(prompts.shape, bool), completions, mask)
  batch = Batch(sequences, Inputs(mask, jnp.asarray(rng.normal(size=(4, 2, 1))) * mask))
  optimizer, found = make_optimizer(1e-2), []
  for count, microbatches in ((1, 1), (4, 1), (2, 2)):
    mesh = devices.make_mesh(data=count, devices=jax.devices()[:count])
    step = make_train_step(make_forward(model), grpo.objective(kl_coef=0.0), optimizer, microbatches=microbatches)
    state = devices.replicate(TrainState.create(params, optimizer), mesh)
    found.append(devices.jit_step(step, mesh)(state, devices.put(batch, mesh))[0].params)
  for other in found[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found[0], other)


def test_adapters_are_of_attention_alone():
  params = policy(TransformerConfig(**SHAPE, experts=ExpertsConfig(4, 2))).init(jax.random.key(0))
  assert sorted(lora.init(jax.random.key(1), params, rank=2)) == ["key", "output", "query", "value"]
  with pytest.raises(ValueError, match="targets must be of query, key, value, output, got 'gate'"):
    lora.init(jax.random.key(1), params, rank=2, targets=("gate",))
