"""Choosing the next token from logits, and the log-prob of the distribution that it was really chosen from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class SamplingParams(NamedTuple):
  """How tokens are chosen. The numbers may be traced, so changing them compiles nothing again; None switches off.

  Attributes:
    temperature: Tokens come from `softmax(logits / temperature)`; 0 is greedy.
    top_k: Keep the k likeliest tokens.
    top_p: Keep the fewest likeliest tokens whose probabilities add up to `top_p`.
    min_p: Keep tokens at least `min_p` times as likely as the likeliest one.

  The filters apply in this order, each to what the one before it left. Tokens that tie with the last one kept are
  kept too.
  """

  temperature: float | Array = 1.0
  top_k: int | Array | None = None
  top_p: float | Array | None = None
  min_p: float | Array | None = None


class Choice(NamedTuple):
  """A chosen token with its log-prob in the distribution that was sampled from, and in the untruncated one."""

  token: Int[Array, "*batch"]
  logp: Float[Array, "*batch"]
  full_logp: Float[Array, "*batch"]


def check(sampling: SamplingParams) -> None:
  """Raises ValueError if a setting is out of range.

  >>> check(SamplingParams(temperature=-1.0))
  Traceback (most recent call last):
  ...
  ValueError: temperature must be at least 0, got -1.0
  """
  if sampling.temperature < 0:
    raise ValueError(f"temperature must be at least 0, got {sampling.temperature}")
  if sampling.top_k is not None and sampling.top_k < 1:
    raise ValueError(f"top_k must be at least 1, got {sampling.top_k}")
  for name in ("top_p", "min_p"):
    value = getattr(sampling, name)
    if value is not None and not 0 < value <= 1:
      raise ValueError(f"{name} must lie in (0, 1], got {value}")


def truncate(logits: Float[Array, "*batch V"], sampling: SamplingParams) -> Float[Array, "*batch V"]:
  """Returns the logits with -inf for every token that the filters drop.

  >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
  >>> print(jnp.exp(truncate(logits, SamplingParams(top_k=2))).round(1))
  [0.5 0.3 0. ]
  >>> print(jnp.exp(truncate(logits, SamplingParams(top_p=0.4))).round(1))
  [0.5 0.  0. ]
  """
  threshold = jnp.full(logits.shape[:-1], -jnp.inf, logits.dtype)
  if sampling.top_k is not None or sampling.top_p is not None:
    ranked = jnp.sort(logits, axis=-1, descending=True)
    rank = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    kept = rank < (logits.shape[-1] if sampling.top_k is None else sampling.top_k)
    ranked = jnp.where(kept, ranked, -jnp.inf)
    if sampling.top_p is not None:
      p = jax.nn.softmax(ranked, axis=-1)
      kept &= jnp.cumsum(p, axis=-1) - p < sampling.top_p
    threshold = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1)
  if sampling.min_p is not None:
    threshold = jnp.maximum(threshold, jnp.max(logits, axis=-1) + jnp.log(sampling.min_p))
  return jnp.where(logits >= threshold[..., None], logits, -jnp.inf)


def categorical(key: Array, logits: Float[Array, "*batch V"], *, block: int = 256) -> Int[Array, "*batch"]:
  """Draws from `softmax(logits)` in two steps, first a block of tokens, then a token of it.

  The probability is the same by the chain rule. It takes `V / block + block` random numbers a row instead of V,
  which for a vocabulary of 50 thousand is the difference between the sampling and the model being the bottleneck.
  A vocabulary of a single block takes one random number a row, which the cumulative distribution turns into a token.

  >>> print(categorical(jax.random.key(0), jnp.array([[-jnp.inf, 0.0, -jnp.inf]])))
  [1]
  """
  if logits.shape[-1] <= block:
    return _invert(jax.random.uniform(key, logits.shape[:-1]), logits)
  pad = -logits.shape[-1] % block
  widths = [(0, 0)] * (logits.ndim - 1) + [(0, pad)]
  blocks = jnp.pad(logits, widths, constant_values=-jnp.inf).reshape(*logits.shape[:-1], -1, block)
  block_key, token_key = jax.random.split(key)
  chosen = jax.random.categorical(block_key, jax.nn.logsumexp(blocks, axis=-1))
  inside = jnp.take_along_axis(blocks, chosen[..., None, None], axis=-2)[..., 0, :]
  return chosen * block + jax.random.categorical(token_key, inside)


def _invert(uniform: Float[Array, "*batch"], logits: Float[Array, "*batch V"]) -> Int[Array, "*batch"]:
  """The first token at which the cumulative probability exceeds a number in [0, 1); never one of probability 0."""
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  cumulative = jnp.cumsum(weights, axis=-1)
  below_one = jnp.minimum(uniform, 1 - 2.0**-22)  # times the total it must not round up to the total
  return jnp.sum(cumulative <= (below_one * cumulative[..., -1])[..., None], axis=-1)


def sample_token(
  key: Array, logits: Float[Array, "*batch V"], sampling: SamplingParams, *, known: Array | None = None
) -> Choice:
  """Chooses one token a row.

  Args:
    key: A PRNG key for the whole batch.
    logits: `[..., V]`, of the model, before the temperature.
    sampling: Temperature and filters.
    known: `[V]` booleans, the tokens that may be chosen; all by default.

  Returns:
    The tokens, `logp` of the truncated and renormalized distribution (0 for greedy choices, which are certain),
    and `full_logp` of the untruncated one at the same temperature (at temperature 1 for greedy choices).

  >>> choice = sample_token(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]]), SamplingParams(temperature=0.0))
  >>> print(choice.token, choice.logp)
  [1] [0.]
  """
  greedy = jnp.asarray(sampling.temperature) == 0
  scaled = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / jnp.where(greedy, 1, sampling.temperature)
  filters = sampling.top_k is not None or sampling.top_p is not None or sampling.min_p is not None
  possible = scaled if known is None else jnp.where(known, scaled, -jnp.inf)
  truncated, filtered = truncate(possible, sampling) if filters else possible, filters or known is not None
  token = jnp.where(greedy, jnp.argmax(possible, axis=-1), categorical(key, truncated)).astype(jnp.int32)
  chosen = jnp.take_along_axis(scaled, token[..., None], axis=-1)[..., 0]
  full_logp = chosen - jax.nn.logsumexp(scaled, axis=-1)
  logp = chosen - jax.nn.logsumexp(truncated, axis=-1) if filtered else full_logp
  return Choice(token, jnp.where(greedy, 0, logp), full_logp)
