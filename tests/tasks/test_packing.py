"""Packed rows give every example what it gets alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.models import presets
from rl_jax.tasks.examples import Example
from rl_jax.tasks.packing import pack
from rl_jax.train.forward import make_packed_forward

MODEL = presets.load("tiny")


def examples(seed=0, count=7, longest=9):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(2, longest + 1, count)
  return [Example(rng.integers(3, 90, n).tolist(), [False] + [True] * (n - 1)) for n in lengths]


def label_log_probs(packed, labels):
  """Log-probs of labels by example: {tokens: log-probs}."""
  logp = np.asarray(make_packed_forward(MODEL.policy)(MODEL.params, packed).logp)
  found = {}
  for row in range(packed.tokens.shape[0]):
    for segment in range(1, int(packed.segments[row].max()) + 1):
      here = np.asarray(packed.segments[row] == segment)
      found[tuple(np.asarray(packed.tokens[row])[here])] = logp[row][here & labels[row]]
  return found


def test_neighbours_in_a_row_change_nothing():
  data = examples()
  together, apart = (label_log_probs(*pack(data, 20, together=each)) for each in (True, False))
  assert together.keys() == apart.keys() == {tuple(example.tokens) for example in data}
  for tokens, logp in apart.items():
    np.testing.assert_allclose(together[tokens], logp, rtol=1e-5, atol=1e-5)


def test_rows_are_filled_and_every_label_is_there_once():
  data = examples(1, 40)
  packed, labels = pack(data, 20)
  tokens = sum(len(example.tokens) for example in data)
  assert np.asarray(packed.segments > 0).sum() == tokens
  assert labels.sum() == tokens - len(data)
  assert packed.tokens.shape[0] <= -(-tokens // 20) * 1.3
  starts = np.asarray((packed.positions == 0) & (packed.segments > 0))
  assert starts.sum() == len(data) and not (labels & starts).any()


def test_what_stands_in_other_examples_and_in_padding_has_no_gradient():
  packed, labels = pack([Example([5, 6, 7], [False, True, True]), Example([8, 9], [False, True])], 8)
  forward = make_packed_forward(MODEL.policy)
  first = jnp.asarray(labels & (np.asarray(packed.segments) == 1))
  loss = lambda params, packed: -jnp.sum(jnp.where(first, forward(params, packed).logp, 0))  # noqa: E731
  gradient = jax.grad(loss)(MODEL.params, packed)
  changed = packed._replace(tokens=jnp.where(packed.segments == 1, packed.tokens, 50))
  other = jax.grad(loss)(MODEL.params, changed)
  for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_too_long_an_example_is_named():
  with pytest.raises(ValueError, match="example 1 has 3 tokens, more than a row's 2"):
    pack([Example([5], [True]), Example([5, 6, 7], [True] * 3)], 2)
