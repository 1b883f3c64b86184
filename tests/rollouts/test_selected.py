"""Learning from the best samples: which completions are imitated, and which pairs are preferred."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax.objectives.base import Inputs
from rl_jax.rollouts import selected
from rl_jax.rollouts.collect import Collected
from rl_jax.state import Batch, RLState, Sequences

NAN = float("nan")
REWARDS = jnp.array([[1.0, 3.0, NAN, 2.0], [5.0, 5.0, 5.0, NAN], [NAN, NAN, NAN, NAN], [0.0, 1.0, 0.0, -1.0]])


def collect(state):
  """Four prompts with four completions each; completion g of prompt p is the token 10 p + g, twice."""
  rows = jnp.arange(4)[:, None]
  tokens = jnp.broadcast_to((10 * rows + jnp.arange(4)[None])[..., None], (4, 4, 2))
  known = jnp.broadcast_to(~jnp.isnan(REWARDS)[..., None], (4, 4, 2))
  sequences = Sequences(rows, jnp.ones((4, 1)), tokens, jnp.ones((4, 4, 2)))
  return Collected(state, Batch(sequences, Inputs(mask=known)), {"tokens": 32.0}, rewards=REWARDS)


STATE = RLState.create(jnp.zeros(()), optax.sgd(0.1), jax.random.key(0), keep_reference=False)


@pytest.mark.parametrize(
  ("n", "above", "kept"),
  [
    (1, -np.inf, [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]),
    (2, -np.inf, [[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]),
    (1, 1.0, [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
  ],
)
def test_the_best_of_each_group_are_imitated(n, above, kept):
  found = selected.imitate(collect, n=n, above=above)(STATE)
  np.testing.assert_array_equal(found.batch.inputs.mask[..., 0], np.array(kept, bool))
  np.testing.assert_array_equal(found.batch.inputs.mask[..., 1], np.array(kept, bool))
  assert found.metrics["kept"] == pytest.approx(np.mean(kept))


def test_the_best_is_preferred_to_the_worst():
  def reference(state, sequences):
    return -sequences.completions.astype(jnp.float32)

  found = selected.prefer(collect, reference)(STATE)
  sequences, inputs = found.batch
  assert sequences.completions.shape == (4, 2, 2)
  np.testing.assert_array_equal(sequences.completions[0, :, 0], [1, 0])  # rewards 3 and 1; one has none
  np.testing.assert_array_equal(sequences.completions[3, :, 0], [31, 33])  # rewards 1 and -1
  np.testing.assert_array_equal(inputs.mask.any(axis=-1), [[True] * 2, [False] * 2, [False] * 2, [True] * 2])
  np.testing.assert_array_equal(inputs.ref_logp, -sequences.completions)
  assert found.metrics["kept"] == 0.5


def test_bad_settings_and_batches_without_rewards_are_named():
  with pytest.raises(ValueError, match="n must be at least 1, got 0"):
    selected.imitate(collect, n=0)
  without = lambda state: collect(state)._replace(rewards=None)  # noqa: E731
  with pytest.raises(ValueError, match="no rewards to select by"):
    selected.imitate(without)(STATE)
