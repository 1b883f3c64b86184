"""Rows of plain text beside a rollout, for objectives that hold on to pretraining (PPO-ptx).

A rollout's batch is prompts with G completions. Text fits the same layout: the prompt is the token that every document
follows, and its completions are G pieces of text. Their `mask` is 0, so that no policy gradient sees them, and their
`target_mask` is 1.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rl_jax.rollouts.collect import Collect, Collected
from rl_jax.state import Batch, RLState, Sequences
from rl_jax.tasks import text
from rl_jax.tasks.epochs import shuffled
from rl_jax.tasks.reading import Reader, plain_tokens

Stream = Callable[[int], Sequences]


def make_stream(
  texts: Sequence[str],
  reader: Reader,
  *,
  num_prompts: int,
  group_size: int,
  length: int,
  seed: int,
  first: int | None = None,
) -> Stream:
  """Returns `stream(rollout) -> Sequences`: the next `num_prompts * group_size` pieces of text, of at most `length`
  tokens.

  Pieces are cut from the texts one behind the other, each is read on its own, and they come in an order that the seed
  and the epoch fix.

  Args:
    texts: Documents.
    reader: How the model reads.
    num_prompts: Rows of pieces.
    group_size: Pieces a row, as many as a rollout has completions a prompt.
    length: Tokens a piece, at most.
    seed: Seed of the order.
    first: The token before every piece; by default the tokenizer's beginning of sequence, or its end.

  Raises:
    ValueError: If there is no token to begin with, or no text.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> reader = Reader(character_tokenizer("0123456789"), (1,))
  >>> stream = make_stream(["0123", "45"], reader, num_prompts=1, group_size=2, length=3, seed=0)
  >>> stream(0).completions.shape, stream(0).prompts.tolist()
  ((1, 2, 3), [[1]])
  """
  tokenizer = reader.tokenizer
  for known in (tokenizer.bos_token_id, tokenizer.eos_token_id):
    first = known if first is None else first
  if first is None:
    raise ValueError("the tokenizer has neither a beginning nor an end of sequence, which text must follow")
  if reader.vocab_size is not None and first >= reader.vocab_size:
    raise ValueError(f"text would follow token {first}, and the model has {reader.vocab_size} tokens")
  encoded = [plain_tokens(reader, document) for document in texts]
  pieces = [tokens[i : i + length] for tokens in encoded for i in range(0, len(tokens), length)]
  if not pieces:
    raise ValueError("there is no text to hold on to")
  count, pad_token = num_prompts * group_size, text.pad_token(tokenizer)
  row = shuffled(len(pieces), seed)

  def stream(rollout: int) -> Sequences:
    tokens = np.full((count, length), pad_token, np.int32)
    mask = np.zeros((count, length), bool)
    for slot, index in enumerate(range(rollout * count, (rollout + 1) * count)):
      piece = pieces[row(index)]
      tokens[slot, : len(piece)], mask[slot, : len(piece)] = piece, True
    shape = (num_prompts, group_size, length)
    return Sequences(
      jnp.full((num_prompts, 1), first, jnp.int32),
      jnp.ones((num_prompts, 1), bool),
      jnp.asarray(tokens.reshape(shape)),
      jnp.asarray(mask.reshape(shape)),
    )

  return stream


def mix(batch: Batch, rows: Sequences) -> Batch:
  """Returns a batch with rows of text behind those of the rollout: `mask` 0 and `target_mask` 1.

  >>> from rl_jax.objectives.base import Inputs
  >>> rollout = Sequences(jnp.array([[1, 2]]), jnp.ones((1, 2)), jnp.array([[[3]]]), jnp.ones((1, 1, 1)))
  >>> rows = Sequences(jnp.array([[1]]), jnp.ones((1, 1)), jnp.array([[[4, 5]]]), jnp.ones((1, 1, 2)))
  >>> mixed = mix(Batch(rollout, Inputs(mask=jnp.ones((1, 1, 1)))), rows)
  >>> mixed.sequences.completions.tolist(), mixed.inputs.mask.tolist(), mixed.inputs.target_mask.tolist()
  ([[[3, 0]], [[4, 5]]], [[[1.0, 0.0]], [[0.0, 0.0]]], [[[False, False]], [[True, True]]])
  """
  sequences = Sequences(*(_stack(one, other) for one, other in zip(batch.sequences, rows, strict=True)))
  masked = jnp.zeros(rows.completions.shape)
  inputs = jax.tree.map(lambda leaf: _stack(leaf, masked.astype(leaf.dtype)), batch.inputs)
  target = _stack(jnp.zeros(batch.inputs.mask.shape, bool), rows.completion_mask != 0)
  return Batch(sequences, inputs._replace(target_mask=target))


def _stack(one: jax.Array, other: jax.Array) -> jax.Array:
  """Puts rows under one another, padded to the longer last axis with zeros."""
  width = max(one.shape[-1], other.shape[-1])
  padded = [jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]) for x in (one, other)]
  return jnp.concatenate([padded[0], padded[1].astype(padded[0].dtype)])


def with_text(collect: Collect, stream: Stream) -> Collect:
  """Returns a `collect` whose batches end with rows of text."""

  def collect_both(state: RLState) -> Collected:
    collected, rows = collect(state), stream(int(state.rollouts))
    return collected._replace(batch=mix(collected.batch, rows), extra_rows=len(rows.prompts))

  return collect_both
