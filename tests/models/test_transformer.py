"""One forward pass against itself, cut in different ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.models.transformer import TransformerConfig, policy

CONFIG = TransformerConfig(
  vocab_size=23, num_layers=3, embed_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=4, qkv_bias=True
)
MODEL = policy(CONFIG)
PARAMS = MODEL.init(jax.random.key(0))
APPLY = jax.jit(MODEL.apply)
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 23, size=(2, 9)))
POSITIONS = jnp.broadcast_to(jnp.arange(9), (2, 9))


def hidden(params=PARAMS, **kwargs):
  return APPLY(params, TOKENS, POSITIONS, **kwargs).hidden


def split(params, cut=4):
  """The first tokens as a prefix, the rest as a group of one."""
  first = APPLY(params, TOKENS[:, :cut], POSITIONS[:, :cut])
  rest = APPLY(params, TOKENS[:, None, cut:], POSITIONS[:, None, cut:], prefix=first.kv)
  return jnp.concatenate([first.hidden, rest.hidden[:, 0]], axis=1)


def test_prefix_and_rest_equal_the_whole():
  np.testing.assert_allclose(split(PARAMS), hidden(), rtol=1e-4, atol=1e-5)


def test_gradients_flow_through_the_prefix():
  whole = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(hidden(p)[:, 4:]))))(PARAMS)
  cut = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(split(p)[:, 4:]))))(PARAMS)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), whole, cut)


def test_one_token_at_a_time_equals_the_whole():
  prefix = APPLY(PARAMS, TOKENS[:, :4], POSITIONS[:, :4]).kv
  cache = MODEL.empty_cache((2, 1), 5)
  for t in range(4, 9):
    out = APPLY(
      PARAMS, TOKENS[:, None, t : t + 1], POSITIONS[:, None, t : t + 1], prefix=prefix, cache=cache, cache_index=t - 4
    )
    cache = out.kv
    np.testing.assert_allclose(out.hidden[:, 0, 0], hidden()[:, t], rtol=1e-4, atol=1e-5)


def test_groups_share_their_prompt_only():
  prefix = APPLY(PARAMS, TOKENS[:, :4], POSITIONS[:, :4]).kv
  group = jnp.asarray(RNG.integers(0, 23, size=(2, 3, 5)))
  positions = jnp.broadcast_to(jnp.arange(4, 9), (2, 3, 5))
  together = APPLY(PARAMS, group, positions, prefix=prefix).hidden
  for g in range(3):
    alone = APPLY(PARAMS, group[:, g : g + 1], positions[:, g : g + 1], prefix=prefix).hidden
    np.testing.assert_allclose(together[:, g : g + 1], alone, rtol=1e-4, atol=1e-5)


def test_masked_tokens_are_attended_to_by_nobody():
  mask = jnp.array([[1, 1, 0, 1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0]])
  junk = jnp.where(mask == 1, TOKENS, 7)
  positions = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)
  one = APPLY(PARAMS, TOKENS, positions, mask=mask).hidden
  other = APPLY(PARAMS, junk, positions, mask=mask).hidden
  np.testing.assert_array_equal(one[mask == 1], other[mask == 1])
  # The second row is its first six tokens alone.
  np.testing.assert_allclose(one[1, :6], hidden()[1, :6], rtol=1e-4, atol=1e-5)


def test_future_tokens_change_nothing():
  changed = TOKENS.at[:, 6:].set(1)
  other = APPLY(PARAMS, changed, POSITIONS).hidden
  np.testing.assert_array_equal(other[:, :6], hidden()[:, :6])


def test_a_fully_masked_prompt_is_finite():
  assert np.isfinite(hidden(mask=jnp.zeros((2, 9)))).all()


def test_remat_changes_no_number():
  other = policy(dataclasses.replace(CONFIG, remat=True))
  np.testing.assert_allclose(jax.jit(other.apply)(PARAMS, TOKENS, POSITIONS).hidden, hidden(), rtol=1e-5, atol=1e-6)
  gradients = [
    jax.jit(jax.grad(lambda p, m=m: jnp.sum(jnp.sin(m.apply(p, TOKENS, POSITIONS).hidden))))(PARAMS)
    for m in (MODEL, other)
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradients)


def test_leading_axes_are_free():
  lone = APPLY(PARAMS, TOKENS[0], POSITIONS[0])
  np.testing.assert_allclose(lone.hidden, hidden()[0], rtol=1e-5, atol=1e-6)
  assert lone.kv.keys.shape == (3, 2, 9, 4)
  deep = APPLY(PARAMS, TOKENS.reshape(1, 2, 9), POSITIONS.reshape(1, 2, 9))
  np.testing.assert_allclose(deep.hidden[0], hidden(), rtol=1e-5, atol=1e-6)


def test_bfloat16_activations_stay_close():
  half = policy(dataclasses.replace(CONFIG, dtype=jnp.bfloat16))
  out = jax.jit(half.apply)(PARAMS, TOKENS, POSITIONS).hidden
  assert out.dtype == jnp.bfloat16
  assert np.abs(np.asarray(out, np.float32) - np.asarray(hidden())).mean() < 0.05


def test_layers_are_stacked_and_compiled_once():
  assert PARAMS["layers"]["query"]["kernel"].shape == (3, 16, 16)
  text = jax.jit(lambda p: MODEL.apply(p, TOKENS, POSITIONS).hidden).lower(PARAMS).as_text()
  deeper = policy(dataclasses.replace(CONFIG, num_layers=12))
  params = jax.eval_shape(deeper.init, jax.random.key(0))
  longer = jax.jit(lambda p: deeper.apply(p, TOKENS, POSITIONS).hidden).lower(params).as_text()
  assert len(longer) < 1.05 * len(text)


def test_heads_must_divide():
  with pytest.raises(ValueError, match="multiple of num_kv_heads"):
    TransformerConfig(vocab_size=1, num_layers=1, embed_dim=1, mlp_dim=1, num_heads=3, num_kv_heads=2, head_dim=2)
