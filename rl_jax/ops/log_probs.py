"""Log-probs and entropies of sampled tokens, and the one place that shifts tokens against hidden states.

Everything is of `softmax(logits / temperature)`, in float32, whatever the model computes in.
"""

import math
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rl_jax.ops.masking import upcast


def predictors(
  prompt_hidden: Float[Array, "*batch D"], completion_hidden: Float[Array, "*batch S D"]
) -> Float[Array, "*batch S+1 D"]:
  """Returns the hidden states that predict a completion: the shift by one, done here and nowhere else.

  The first token is predicted by the prompt's last token, the next by the first token, and so on.

  Args:
    prompt_hidden: Hidden state of the last prompt token `[..., D]`.
    completion_hidden: Hidden states of the first `T - 1` completion tokens, `[..., T - 1, D]`.

  Returns:
    `[..., T, D]`; row t predicts completion token t.

  >>> print(predictors(jnp.array([1.0]), jnp.array([[2.0], [3.0]])).ravel())
  [1. 2. 3.]
  """
  return jnp.concatenate([prompt_hidden[..., None, :], completion_hidden], axis=-2)


def gather_log_probs(
  logits: Float[Array, "*batch T V"], tokens: Int[Array, "*batch T"], *, temperature: float | Array = 1.0
) -> Float[Array, "*batch T"]:
  """`log softmax(logits_t / temperature)[token_t]`: the plain form, which holds all logits.

  Args:
    logits: `[..., T, V]`, row t predicts token t.
    tokens: `[..., T]`, in `[0, V)`.
    temperature: The one that the tokens were sampled at.

  Returns:
    `[..., T]`, in nats, at most 0.

  >>> print(gather_log_probs(jnp.zeros((1, 4)), jnp.array([2])).round(4))
  [-1.3863]
  """
  chex.assert_equal_shape_prefix([logits, tokens], tokens.ndim)
  logp = jax.nn.log_softmax(upcast(logits) / temperature, axis=-1)
  return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]


def entropy(logits: Float[Array, "*batch V"], *, temperature: float | Array = 1.0) -> Float[Array, "*batch"]:
  """`H = -sum_v p_v log p_v` of `p = softmax(logits / temperature)`, in nats. Logits of -inf have no share in it.

  >>> print(entropy(jnp.array([0.0, 0.0, -jnp.inf])).round(4))
  0.6931
  """
  z = upcast(logits) / temperature
  highest = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
  possible, is_highest = z > -jnp.inf, z == highest
  below = jnp.where(possible, z - highest, 0)
  weight = jnp.where(possible, jnp.exp(below), 0)
  # What the highest logit weighs is left out of the sum, and 1 for it added last: the entropy of a certain choice is
  # that of the others, which would vanish beside it.
  others = jnp.sum(jnp.where(is_highest & possible, jnp.expm1(below), weight), axis=-1)
  others += jnp.maximum(jnp.sum(is_highest & possible, axis=-1) - 1, 0)
  return jnp.log1p(others) - jnp.sum(weight * below, axis=-1) / (1 + others)


def logits_of(
  hidden: Float[Array, "*batch D"], unembedding: Float[Array, "D V"], *, softcap: float | None = None
) -> Float[Array, "*batch V"]:
  """`z = hidden W` in float32 at least; `c tanh(z / c)` of models whose logits have a largest one, c.

  >>> print(logits_of(jnp.array([40.0]), jnp.ones((1, 2)), softcap=30.0).astype(int))
  [26 26]
  """
  logits = jnp.einsum("...d,dv->...v", hidden, unembedding, preferred_element_type=_compute_dtype(hidden))
  return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def token_log_probs(
  hidden: Float[Array, "*batch T D"],
  unembedding: Float[Array, "D V"],
  tokens: Int[Array, "*batch T"],
  *,
  temperature: float | Array = 1.0,
  softcap: float | None = None,
  chunk_size: int = 1024,
) -> tuple[Float[Array, "*batch T"], Float[Array, "*batch T"]]:
  """Log-probs of tokens and entropies straight from hidden states, without ever holding `[tokens, V]` logits.

    z = logits / temperature - max,  logp = z[token] - logsumexp(z),  H = logsumexp(z) - sum softmax(z) z
    logits = hidden W, or softcap tanh(hidden W / softcap)

  Logits exist for one chunk at a time, forward and backward: the backward pass computes them again. Chunks
  are cut along time, so rows may be sharded over devices.

  Args:
    hidden: `[..., T, D]`, row t predicts token t (see `predictors`).
    unembedding: `[D, V]`.
    tokens: `[..., T]`, in `[0, V)`.
    temperature: A scalar; differentiable.
    softcap: The largest logit of models that have one.
    chunk_size: Tokens a chunk, over all rows together; every chunk holds at least one token of each row.

  Returns:
    `(logp [..., T], entropy [..., T])` in float32 (float64 for float64 inputs), differentiable in `hidden`,
    `unembedding` and `temperature`.

  Raises:
    ValueError: If `chunk_size` is below 1.

  >>> logp, entropies = token_log_probs(jnp.ones((3, 2)), jnp.zeros((2, 4)), jnp.array([0, 1, 2]))
  >>> print(logp.round(4), entropies.round(4))
  [-1.3863 -1.3863 -1.3863] [1.3863 1.3863 1.3863]
  """
  if chunk_size < 1:
    raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
  chex.assert_equal_shape_prefix([hidden, tokens], tokens.ndim)
  batch, length = tokens.shape[:-1], tokens.shape[-1]
  rows = math.prod(batch)
  # As few chunks as the size allows, and as equal as can be, so that little padding is computed.
  chunks = max(-(-length // max(chunk_size // max(rows, 1), 1)), 1)
  width = -(-length // chunks)
  pad = chunks * width - length
  # [chunks, rows, width]: the last chunk is filled up with zeros, whose results are cut off below.
  flat_hidden = jnp.pad(hidden.reshape(rows, length, hidden.shape[-1]), ((0, 0), (0, pad), (0, 0)))
  flat_tokens = jnp.pad(tokens.reshape(rows, length), ((0, 0), (0, pad)))
  hidden_chunks = jnp.moveaxis(flat_hidden.reshape(rows, chunks, width, hidden.shape[-1]), 1, 0)
  token_chunks = jnp.moveaxis(flat_tokens.reshape(rows, chunks, width), 1, 0)
  temperature = jnp.asarray(temperature, _compute_dtype(hidden))
  results: Any = _chunked_log_probs(softcap, hidden_chunks, unembedding, token_chunks, temperature)
  logp, entropies = (jnp.moveaxis(x, 0, 1).reshape(rows, length + pad)[:, :length] for x in results)
  return logp.reshape(*batch, length), entropies.reshape(*batch, length)


def sum_squared_probs(
  hidden: Float[Array, "*batch T D"],
  unembedding: Float[Array, "D V"],
  *,
  temperature: float | Array = 1.0,
  softcap: float | None = None,
) -> Float[Array, "*batch T"]:
  """`sum_v p_v^2` of `p = softmax(logits / temperature)`, one step of time at a time, without a gradient.

  For `ops.token_advantages.optimal_token_baseline`.

  Args:
    hidden: `[..., T, D]`, row t predicts token t.
    unembedding: `[D, V]`.
    temperature: A scalar.
    softcap: The largest logit of models that have one.

  Returns:
    `[..., T]`, in (0, 1].

  >>> print(sum_squared_probs(jnp.ones((2, 3)), jnp.zeros((3, 4))))
  [0.25 0.25]
  """
  temperature = jnp.asarray(temperature, _compute_dtype(hidden))

  def step(h: Array) -> Array:
    return jnp.sum(
      jnp.square(jax.nn.softmax(logits_of(h, unembedding, softcap=softcap) / temperature, axis=-1)), axis=-1
    )

  return jax.lax.stop_gradient(jnp.moveaxis(jax.lax.map(step, jnp.moveaxis(hidden, -2, 0)), 0, -1))


def _compute_dtype(x: Array) -> jnp.dtype:
  return jnp.promote_types(x.dtype, jnp.float32)


def _sums(*arrays: Array) -> tuple[Array, ...]:
  """Sums over the last axis, in one pass: an exponential that several sums need is not kept for them."""
  zeros = tuple(jnp.zeros((), array.dtype) for array in arrays)
  add = lambda left, right: tuple(x + y for x, y in zip(left, right, strict=True))  # noqa: E731
  return jax.lax.reduce(arrays, zeros, add, (arrays[0].ndim - 1,))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_log_probs(softcap: float | None, hidden: Array, unembedding: Array, tokens: Array, temperature: Array):
  return _chunked_forward(softcap, hidden, unembedding, tokens, temperature)[0]


def _chunked_forward(softcap: float | None, hidden: Array, unembedding: Array, tokens: Array, temperature: Array):
  def chunk(inputs: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
    h, token = inputs
    logits = logits_of(h, unembedding, softcap=softcap)
    # Relative to the highest one: log-probs near 0 and small entropies would cancel against a large logit. Logits are
    # compared as they are, since a difference that is computed twice need not be the same number twice.
    highest = jnp.max(logits, axis=-1, keepdims=True)
    below = (logits - highest) / temperature
    weight = jnp.exp(below)
    is_highest = logits == highest
    others, ties, weighted = _sums(jnp.where(is_highest, 0, weight), is_highest.astype(weight.dtype), weight * below)
    others += ties - 1
    log_total = jnp.log1p(others)
    mean_below = weighted / (1 + others)
    chosen = ((jnp.take_along_axis(logits, token[..., None], axis=-1) - highest) / temperature)[..., 0]
    return chosen - log_total, log_total - mean_below, highest, log_total

  logp, entropies, highest, log_total = jax.lax.map(chunk, (hidden, tokens))
  return (logp, entropies), (hidden, unembedding, tokens, temperature, highest, log_total, entropies)


def _chunked_backward(softcap: float | None, residuals: tuple, cotangents: tuple[Array, Array]):
  hidden, unembedding, tokens, temperature, highest, log_totals, entropies = residuals

  def chunk(carry: tuple[Array, Array], inputs: tuple):
    d_unembedding, d_temperature = carry
    h, token, highest, log_total, entropy_, d_logp, d_entropy = inputs
    logits = logits_of(h, unembedding, softcap=softcap)
    z = (logits - highest) / temperature
    logp = z - log_total[..., None]
    # d logp[token] / dz = onehot - p;   d H / dz = -p (log p + H)
    d_z = -jnp.exp(logp) * (d_logp[..., None] + d_entropy[..., None] * (logp + entropy_[..., None]))
    is_token = jax.lax.broadcasted_iota(token.dtype, z.shape, z.ndim - 1) == token[..., None]
    d_z = jnp.where(is_token, d_z + d_logp[..., None], d_z)
    d_temperature -= jnp.sum(d_z * z) / temperature
    d_z = d_z if softcap is None else d_z * (1 - jnp.square(logits / softcap))  # the derivative of the cap
    d_logits = (d_z / temperature).astype(h.dtype)
    d_h = jnp.einsum("...v,dv->...d", d_logits, unembedding).astype(h.dtype)
    d_unembedding += jnp.einsum("...d,...v->dv", h, d_logits, preferred_element_type=d_unembedding.dtype)
    return (d_unembedding, d_temperature), d_h

  zeros = (jnp.zeros(unembedding.shape, _compute_dtype(unembedding)), jnp.zeros_like(temperature))
  (d_unembedding, d_temperature), d_hidden = jax.lax.scan(
    chunk, zeros, (hidden, tokens, highest, log_totals, entropies, *cotangents)
  )
  return d_hidden, d_unembedding.astype(unembedding.dtype), None, d_temperature


_chunked_log_probs.defvjp(_chunked_forward, _chunked_backward)
