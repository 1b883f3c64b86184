"""Models of a few lines that satisfy the contract of sampling and training."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp

VOCABULARY, WIDTH = 13, 6


class Output(NamedTuple):
  hidden: jax.Array
  kv: jax.Array


def bigram() -> SimpleNamespace:
  """Predicts the next token from the current one alone: hidden state = a row of a table."""

  def apply(params, tokens, positions, *, mask=None, prefix=None, cache=None, cache_index=0):
    return Output(params["table"][tokens], jnp.zeros(()) if cache is None else cache)

  return SimpleNamespace(
    apply=apply, unembed=lambda params: params["unembedding"], empty_cache=lambda batch, size: jnp.zeros(())
  )


def bigram_params(seed: int = 0) -> dict:
  table, unembedding = jax.random.split(jax.random.key(seed))
  return {
    "table": jax.random.normal(table, (VOCABULARY, WIDTH)),
    "unembedding": jax.random.normal(unembedding, (WIDTH, VOCABULARY)),
  }


def chain(length: int) -> tuple[SimpleNamespace, dict]:
  """A model that is certain: token i is followed by i + 1, and the last one by itself."""
  model = bigram()
  follows = jnp.minimum(jnp.arange(length) + 1, length - 1)
  return model, {"table": jax.nn.one_hot(follows, length) * 50.0, "unembedding": jnp.eye(length)}
