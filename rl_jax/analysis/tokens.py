"""What training changed, token by token: two models read the same answers, and both say what they would have chosen."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rl_jax.models.presets import Model
from rl_jax.models.transformer import Policy
from rl_jax.ops import kl
from rl_jax.ops.log_probs import entropy, gather_log_probs, logits_of
from rl_jax.state import Sequences
from rl_jax.train.forward import states

BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # as byte-level tokenizers write them


class Opinion(NamedTuple):
  """What one model says before each token of some answers.

  Attributes:
    logp: `[P, G, T]`, the log-prob of the token that follows, in nats.
    entropy: `[P, G, T]`, of the distribution over the next token, in nats.
    tokens: `[P, G, T, K]`, the likeliest tokens, the first one first.
    probs: `[P, G, T, K]`, their probabilities.
  """

  logp: Float[Array, "P G T"]
  entropy: Float[Array, "P G T"]
  tokens: Int[Array, "P G T K"]
  probs: Float[Array, "P G T K"]


class Comparison(NamedTuple):
  """What two models say of the same answers.

  Attributes:
    before: The first model's opinion.
    after: The second one's.
    kl: `[P, G, T]`, KL(after || before) of the next token, exact, in nats.
    rank: `[P, G, T]`, the place of the second model's likeliest token among the first one's, 0 for the first.
  """

  before: Opinion
  after: Opinion
  kl: Float[Array, "P G T"]
  rank: Int[Array, "P G T"]


def compare(before: Model, after: Model, sequences: Sequences, *, temperature: float = 1.0, top: int = 5) -> Comparison:
  """Compares two models on answers to prompts; logits of one place of every answer exist at one time.

  Args:
    before: A model, such as the one that training began with.
    after: Another one, of the same vocabulary.
    sequences: Prompts and answers; what stands in masked places means nothing.
    temperature: Of all probabilities.
    top: K, how many of the likeliest tokens are told.

  Raises:
    ValueError: If the vocabularies differ.

  >>> from rl_jax.models import presets
  >>> model = presets.load("tiny")
  >>> answers = Sequences(jnp.array([[3, 4]]), jnp.ones((1, 2)), jnp.array([[[5, 6, 7]]]), jnp.ones((1, 1, 3)))
  >>> same = compare(model, model, answers)
  >>> same.kl.shape, float(jnp.max(jnp.abs(same.kl))), int(jnp.max(same.rank)), same.after.tokens.shape
  ((1, 1, 3), 0.0, 0, (1, 1, 3, 5))
  """
  sizes = [model.config.vocab_size for model in (before, after)]
  if sizes[0] != sizes[1]:
    raise ValueError(f"models must have one vocabulary, got {sizes[0]} and {sizes[1]} tokens")
  alike = before.config == after.config  # one program then, whichever models they are
  return _program(before.policy, before.policy if alike else after.policy, top)(
    before.params, after.params, sequences, temperature
  )


@functools.cache
def _program(before: Policy, after: Policy, top: int) -> Callable[[Any, Any, Sequences, float], Comparison]:
  def run(before_params: Any, after_params: Any, sequences: Sequences, temperature: Array) -> Comparison:
    unembeddings = before.unembed(before_params), after.unembed(after_params)
    hidden = states(before, before_params, sequences), states(after, after_params, sequences)

    def at(inputs: tuple[Array, Array, Array]) -> Comparison:
      token, *two = inputs
      logits = [
        logits_of(h, unembedding, softcap=model.softcap) / temperature
        for h, unembedding, model in zip(two, unembeddings, (before, after), strict=True)
      ]
      first, last = (_opinion(each, token, top) for each in logits)
      chosen = jnp.take_along_axis(logits[0], last.tokens[..., :1], axis=-1)
      rank = jnp.sum(logits[0] > chosen, axis=-1)
      return Comparison(first, last, kl.categorical(logits[1], logits[0]), rank)

    steps = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (sequences.completions, *hidden))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), jax.lax.map(at, steps))

  return jax.jit(run)


def _opinion(logits: Array, token: Array, top: int) -> Opinion:
  highest, tokens = jax.lax.top_k(logits, top)
  probs = jnp.exp(highest - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
  return Opinion(gather_log_probs(logits, token), entropy(logits), tokens, probs)


def numbers(comparison: Comparison, mask: Array | np.ndarray, *, ranks: int = 5, bins: int = 10) -> dict[str, Any]:
  """Returns what a comparison comes to over all tokens, as JSON values.

  Args:
    comparison: What `compare` returns.
    mask: `[P, G, T]`, 1 for tokens that count.
    ranks: How many places are told apart.
    bins: Of the distributions of confidence, the probability of the likeliest token, from 0 to 1, and of entropy, from
      0 to the largest one.

  Returns:
    `tokens`, their number; `kl`, its mean in nats a token; `rank`, the share of tokens at which the second model's
    likeliest one was the first model's first, second, ..., and of all further places together; `entropy` and
    `confidence`, each with `before` and `after`, their means, and `bins` with edges and counts of both.

  Raises:
    ValueError: If no token counts.
  """
  real = np.asarray(mask) != 0
  if not real.any():
    raise ValueError("there are no tokens to compare")
  of = lambda x: np.asarray(x, np.float64)[real]  # noqa: E731
  rank = np.minimum(of(comparison.rank), ranks)
  sides = comparison.before, comparison.after
  spread = [of(side.entropy) for side in sides]
  return {
    "tokens": int(real.sum()),
    "kl": float(of(comparison.kl).mean()),
    "rank": [float(np.mean(rank == place)) for place in range(ranks + 1)],
    "entropy": _two(spread, np.linspace(0, max(float(np.max(spread)), 1e-6), bins + 1)),
    "confidence": _two([of(side.probs[..., 0]) for side in sides], np.linspace(0, 1, bins + 1)),
  }


def _two(values: Sequence[np.ndarray], edges: np.ndarray) -> dict[str, Any]:
  counts = [np.histogram(each, np.append(edges[:-1], np.inf))[0].tolist() for each in values]
  return {
    "before": float(values[0].mean()),
    "after": float(values[1].mean()),
    "bins": {"edges": edges.tolist(), "before": counts[0], "after": counts[1]},
  }


def text_of(tokenizer: Any, token: int) -> str:
  r"""Returns a token as it reads by itself: special tokens by name, and bytes that are no whole character as `\xE2`.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> tokenizer = character_tokenizer("ab")
  >>> [text_of(tokenizer, token) for token in (1, 3)]
  ['<eos>', 'a']
  """
  text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
  if "�" not in text:
    return text
  name = tokenizer.convert_ids_to_tokens(token)
  if name is None:
    return f"<{token}>"
  if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name):  # as SentencePiece writes them
    return f"\\x{byte[1]}"
  return "".join(f"\\x{BYTES[character]:02X}" for character in name) if set(name) <= BYTES.keys() else name
