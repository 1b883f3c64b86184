import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import aggregation

MASK = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
LOSS = np.arange(12.0).reshape(3, 4)


def total(aggregate):
  return float((aggregate(jnp.asarray(MASK)) * LOSS).sum())


def test_sums_of_weighted_losses_by_hand():
  # Rows: 0 + 1 + 2 + 3 over 4 tokens, 4 over 1 token, an empty one.
  np.testing.assert_allclose(total(aggregation.token_mean()), (6 + 4) / 5)
  np.testing.assert_allclose(total(aggregation.sequence_mean()), (1.5 + 4) / 2, rtol=1e-6)
  np.testing.assert_allclose(total(aggregation.sequence_mean(count_empty_rows=True)), (1.5 + 4) / 3, rtol=1e-6)
  np.testing.assert_allclose(total(aggregation.constant_length(length=8)), (6 + 4) / (3 * 8), rtol=1e-6)
  np.testing.assert_allclose(
    total(aggregation.constant_length(length=8, count_empty_rows=False)), (6 + 4) / (2 * 8), rtol=1e-6
  )


AGGREGATES = [aggregation.token_mean(), aggregation.sequence_mean(), aggregation.constant_length(length=4)]


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_padding_does_not_change_the_weights(aggregate):
  padded = np.pad(MASK, ((0, 0), (0, 5)))
  np.testing.assert_array_equal(aggregate(jnp.asarray(padded))[:, :4], aggregate(jnp.asarray(MASK)))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_leading_axes_are_free(aggregate):
  grouped = aggregate(jnp.asarray(MASK).reshape(1, 3, 4))
  np.testing.assert_array_equal(grouped[0], aggregate(jnp.asarray(MASK)))
  assert aggregate(jnp.ones(4)).shape == (4,)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_empty_batch_has_zero_weights(aggregate):
  np.testing.assert_array_equal(aggregate(jnp.zeros((2, 3))), 0)


def test_constant_length_wants_a_positive_length():
  with pytest.raises(ValueError, match="length must be at least 1"):
    aggregation.constant_length(length=0)


def test_prompts_sequences_and_tokens_weigh_differently():
  mask = jnp.array([[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
  tokens = np.asarray(mask, float)
  by_prompt = tokens / np.array([4, 2, 1])[:, None, None]
  np.testing.assert_allclose(aggregation.prompt_mean()(mask), by_prompt / 2, rtol=1e-6)
  np.testing.assert_allclose(aggregation.prompt_mean(count_empty_prompts=True)(mask), by_prompt / 3, rtol=1e-6)
  np.testing.assert_allclose(aggregation.sequence_sum()(mask), tokens / 3, rtol=1e-6)
  np.testing.assert_allclose(aggregation.sequence_sum(count_empty_rows=True)(mask), tokens / 6, rtol=1e-6)
  np.testing.assert_array_equal(aggregation.token_sum()(mask), tokens)
