"""Text beside a rollout: it is learned, and not by the policy gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rl_jax.models.presets import character_tokenizer
from rl_jax.objectives.base import Inputs
from rl_jax.rollouts import pretraining
from rl_jax.rollouts.collect import Collected
from rl_jax.state import Batch, RLState, Sequences
from rl_jax.tasks.reading import Reader

TOKENIZER = character_tokenizer("0123456789")


def test_text_is_learned_beside_the_rollout_and_not_by_the_policy_gradient():
  mask = jnp.array([[[1, 1, 1, 0]] * 2], bool)  # "34" is answered by 8, 9, 10
  sequences = Sequences(jnp.array([[6, 7]]), jnp.ones((1, 2), bool), jnp.array([[[8, 9, 10, 0]] * 2]), mask)
  inputs = Inputs(mask, advantages=jnp.array([[[1.0, 1.0, -7.0, 0.0]] * 2]))
  rollout = Collected(None, Batch(sequences, inputs), {"tokens": 6.0})
  stream = pretraining.make_stream(
    ["012", "3456789"], Reader(TOKENIZER, (1,)), num_prompts=2, group_size=2, length=5, seed=0
  )
  collect = pretraining.with_text(lambda state: rollout._replace(state=state), stream)
  state = RLState.create(jnp.zeros(()), optax.sgd(0.1), jax.random.key(0), keep_reference=False)
  collected = collect(state)
  sequences, inputs = collected.batch
  assert collected.extra_rows == 2 and collected.metrics == {"tokens": 6.0}
  assert sequences.completions.shape == (3, 2, 5) and inputs.advantages.shape == (3, 2, 5)
  np.testing.assert_array_equal(inputs.advantages[0], [[1, 1, -7, 0, 0]] * 2)
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
