import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import log_probs

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(2, 3, 7, 5))
UNEMBEDDING = RNG.normal(size=(5, 11))
TOKENS = RNG.integers(0, 11, size=(2, 3, 7))
TEMPERATURE = 0.7


def reference(hidden, unembedding, temperature):
  """All logits at once, in numpy's terms."""
  z = hidden @ unembedding / temperature
  log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
  return np.take_along_axis(log_p, TOKENS[..., None], -1)[..., 0], -(np.exp(log_p) * log_p).sum(-1)


@pytest.mark.parametrize("chunk_size", [1, 6, 12, 18, 1000])
def test_values_match_all_logits_at_once(chunk_size, x64):
  expected = reference(HIDDEN, UNEMBEDDING, TEMPERATURE)
  actual = log_probs.token_log_probs(
    jnp.asarray(HIDDEN), jnp.asarray(UNEMBEDDING), jnp.asarray(TOKENS), temperature=TEMPERATURE, chunk_size=chunk_size
  )
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-10)
  np.testing.assert_allclose(actual[1], expected[1], rtol=1e-10)


@pytest.mark.parametrize("chunk_size", [6, 1000])
def test_gradients_match_the_plain_form(chunk_size, x64):
  weights = jnp.asarray(RNG.normal(size=(2, *TOKENS.shape)))
  tokens = jnp.asarray(TOKENS)

  def plain(hidden, unembedding, temperature):
    logits = hidden @ unembedding
    logp = log_probs.gather_log_probs(logits, tokens, temperature=temperature)
    return (weights[0] * logp + weights[1] * log_probs.entropy(logits, temperature=temperature)).sum()

  def fused(hidden, unembedding, temperature):
    logp, entropy = log_probs.token_log_probs(
      hidden, unembedding, tokens, temperature=temperature, chunk_size=chunk_size
    )
    return (weights[0] * logp + weights[1] * entropy).sum()

  args = (jnp.asarray(HIDDEN), jnp.asarray(UNEMBEDDING), jnp.asarray(TEMPERATURE))
  for one, other in zip(jax.grad(plain, (0, 1, 2))(*args), jax.grad(fused, (0, 1, 2))(*args), strict=True):
    np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-12)


def test_gradient_in_logits_is_onehot_minus_softmax(x64):
  # With the identity as unembedding, hidden states are logits.
  z = RNG.normal(size=(4, 6))
  tokens = np.array([0, 5, 2, 2])
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  gradient = jax.grad(lambda h: log_probs.token_log_probs(h, jnp.eye(6), jnp.asarray(tokens))[0].sum())(jnp.asarray(z))
  np.testing.assert_allclose(gradient, np.eye(6)[tokens] - p, rtol=1e-10, atol=1e-12)
  entropy = -(p * np.log(p)).sum(-1, keepdims=True)
  gradient = jax.grad(lambda h: log_probs.token_log_probs(h, jnp.eye(6), jnp.asarray(tokens))[1].sum())(jnp.asarray(z))
  np.testing.assert_allclose(gradient, -p * (np.log(p) + entropy), rtol=1e-9, atol=1e-12)


def test_no_array_of_tokens_times_vocabulary_exists():
  tokens, vocabulary, width = 4096, 8192, 16
  hidden, unembedding = jnp.zeros((1, tokens, width)), jnp.zeros((width, vocabulary))
  targets = jnp.zeros((1, tokens), jnp.int32)

  def loss(hidden, unembedding):
    logp, entropy = log_probs.token_log_probs(hidden, unembedding, targets, chunk_size=128)
    return (logp + entropy).sum()

  compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, unembedding).compile()
  logits_bytes = tokens * vocabulary * 4
  assert compiled.memory_analysis().temp_size_in_bytes < logits_bytes / 8


def test_half_precision_hidden_states_give_float32_results():
  hidden, unembedding = (jnp.asarray(x, jnp.bfloat16) for x in (HIDDEN, UNEMBEDDING))
  logp, entropy = log_probs.token_log_probs(hidden, unembedding, jnp.asarray(TOKENS))
  assert logp.dtype == entropy.dtype == jnp.float32
  expected = reference(*(np.asarray(x, np.float64) for x in (hidden, unembedding)), 1.0)
  np.testing.assert_allclose(logp, expected[0], rtol=1e-4, atol=1e-4)
  gradient = jax.grad(lambda h: log_probs.token_log_probs(h, unembedding, jnp.asarray(TOKENS))[0].sum())(hidden)
  assert gradient.dtype == jnp.bfloat16


def test_lone_sequence_and_empty_sequence():
  logp, _ = log_probs.token_log_probs(jnp.asarray(HIDDEN[0, 0]), jnp.asarray(UNEMBEDDING), jnp.asarray(TOKENS[0, 0]))
  assert logp.shape == (7,)
  logp, _ = log_probs.token_log_probs(jnp.zeros((2, 0, 5)), jnp.asarray(UNEMBEDDING), jnp.zeros((2, 0), jnp.int32))
  assert logp.shape == (2, 0)


def test_large_logits_stay_finite():
  hidden = jnp.array([[1e4, -1e4]])
  logp, entropy = log_probs.token_log_probs(hidden, jnp.eye(2), jnp.array([1]))
  np.testing.assert_allclose(logp, [-2e4])
  np.testing.assert_allclose(entropy, [0.0], atol=1e-6)


def test_predictors_shift_by_one():
  prompt, completion = jnp.full((2, 1), 9.0), jnp.arange(6.0).reshape(2, 3, 1)
  shifted = log_probs.predictors(prompt, completion)
  np.testing.assert_array_equal(shifted[..., 0], [[9, 0, 1, 2], [9, 3, 4, 5]])


def test_chunk_size_must_be_positive():
  with pytest.raises(ValueError, match="chunk_size must be at least 1"):
    log_probs.token_log_probs(jnp.zeros((1, 1)), jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32), chunk_size=0)


@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize("logits", [[0.1, 0.4, -1.0], [60.7, 31.1, 30.2], [0.0, 0.0, 0.0], [5.0, 5.0, -20.0]])
def test_small_entropies_do_not_cancel_against_large_logits(logits, offset):
  logits = np.asarray(np.float32(logits) + np.float32(offset), np.float32)
  below = logits.astype(np.float64) - logits.max()
  # log1p of the others alone: a sum with the largest, 1, would lose them.
  others = np.exp(np.delete(below, below.argmax())).sum()
  log_p = below - np.log1p(others)
  logp, entropies = log_probs.token_log_probs(jnp.ones((3, 1)), jnp.asarray(logits)[None], jnp.arange(3))
  np.testing.assert_allclose(entropies, -(np.exp(log_p) * log_p).sum(), rtol=1e-5)
  np.testing.assert_allclose(logp, log_p, rtol=1e-6)
  assert (entropies >= 0).all()
  plain = log_probs.gather_log_probs(jnp.broadcast_to(jnp.asarray(logits), (3, 3)), jnp.arange(3))
  np.testing.assert_allclose(plain, log_p, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
  ("logits", "exact"),
  [
    ([1000.1, 1000.4, 999.0], 0.9723685),
    ([60.7, 31.1, 30.2], 6.0595786e-12),
    ([40.0, 0.0, -jnp.inf], 1.7418e-16),
    ([3.0, 3.0, 3.0], 1.0986123),
    ([-jnp.inf, 5.0, -jnp.inf], 0.0),
  ],
)
def test_small_entropies_do_not_vanish_beside_large_logits(logits, exact):
  """Both forms; the exact values are those of the float32 logits, by 60 digits."""
  logits = jnp.array(logits, jnp.float32)
  np.testing.assert_allclose(log_probs.entropy(logits), exact, rtol=1e-4)
  finite = jnp.where(jnp.isinf(logits), -1e4, logits)[None]  # a product with -inf is no number
  _, entropy = log_probs.token_log_probs(finite, jnp.eye(3), jnp.array([1]))
  np.testing.assert_allclose(entropy[0], exact, rtol=1e-4)
  p = jax.nn.softmax(logits)
  slope = -p * (jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), 0) + log_probs.entropy(logits))
  np.testing.assert_allclose(jax.grad(log_probs.entropy)(logits), slope, atol=1e-6)
