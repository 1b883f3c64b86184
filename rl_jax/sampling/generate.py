"""Prefill each prompt once, then decode its G completions together until all have stopped."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rl_jax.ops.log_probs import logits_of
from rl_jax.sampling.samplers import Choice, SamplingParams, sample_token


class Completions(NamedTuple):
  """G completions of each of P prompts, right-padded to T.

  Attributes:
    tokens: The stop token, where one was produced, is the last real token.
    mask: Which tokens are real.
    logp: Log-probs in the distribution that was sampled from (truncated and renormalized).
    full_logp: Log-probs in the untruncated distribution at the same temperature.
    terminated: Whether a stop token ended the completion; False for one truncated at T.
  """

  tokens: Int[Array, "P G T"]
  mask: Bool[Array, "P G T"]
  logp: Float[Array, "P G T"]
  full_logp: Float[Array, "P G T"]
  terminated: Bool[Array, "P G"]


Generate = Callable[..., Completions]


@runtime_checkable
class LanguageModel(Protocol):
  """What sampling and forward passes know of a model: pure functions. `models.transformer.Policy` is one.

  Attributes:
    apply: `(params, tokens, positions, *, mask, prefix, cache, cache_index) -> (hidden, kv)`, where `prefix` is the
      `kv` of an earlier call, shared by all G rows of a prompt, and `cache` one that this call adds to.
    unembed: `params -> [D, V]`.
    empty_cache: `((P, G), size) -> cache`.
    softcap: The largest logit c, `logits = c tanh(hidden W / c)`; None without one.
  """

  @property
  def apply(self) -> Callable[..., Any]: ...

  @property
  def unembed(self) -> Callable[[Any], Array]: ...

  @property
  def empty_cache(self) -> Callable[[tuple[int, ...], int], Any]: ...

  @property
  def softcap(self) -> float | None: ...


def prompt_positions(mask: Array) -> Int[Array, "*batch L"]:
  """Positions of the real tokens, counted from 0; padding on either side does not count.

  >>> print(prompt_positions(jnp.array([[0, 1, 1], [1, 1, 0]])))
  [[0 0 1]
   [0 1 1]]
  """
  return jnp.maximum(jnp.cumsum(mask != 0, axis=-1) - 1, 0)


def last_real(hidden: Float[Array, "*batch L D"], mask: Array) -> Float[Array, "*batch D"]:
  """Returns the hidden state of the last real token.

  >>> print(last_real(jnp.array([[[1.0], [2.0], [3.0]]]), jnp.array([[1, 1, 0]])))
  [[2.]]
  """
  last = hidden.shape[-2] - 1 - jnp.argmax(jnp.flip(mask != 0, axis=-1), axis=-1)
  return jnp.take_along_axis(hidden, last[..., None, None], axis=-2)[..., 0, :]


class Decoding(NamedTuple):
  """Where decoding stands.

  Attributes:
    time: Tokens that were chosen so far, t.
    done: `[P, G]`, the completions that have ended.
    cache: Keys and values of the completions' tokens before the last one.
    completions: What was chosen so far.
  """

  time: Int[Array, ""]
  done: Bool[Array, "P G"]
  cache: Any
  completions: Completions


def make_generate(
  model: LanguageModel,
  *,
  group_size: int,
  max_new_tokens: int,
  pad_token: int,
  known_tokens: Array | np.ndarray | None = None,
  stop_early: bool = True,
) -> Generate:
  """Returns `generate(params, prompts, prompt_mask, stop_tokens, key, sampling) -> Completions`, to be jitted.

  Args:
    model: Pure functions of parameters.
    group_size: G.
    max_new_tokens: T, the longest completion.
    pad_token: Fills slots after the end.
    known_tokens: `[V]` booleans, the tokens that may be chosen: a vocabulary may be padded beyond what the tokenizer
      has. All of them by default. Like a filter of the sampling it shows in `logp`, not in `full_logp`.
    stop_early: Whether decoding ends as soon as all completions have stopped. Otherwise it takes T steps, which costs
      less where the function is mapped: under vmap a loop that any row may leave early copies its cache at every step.

  Of `generate`'s arguments, `stop_tokens [S]`, the key and the sampling's numbers are traced: only new shapes compile.

  Raises:
    ValueError: If `group_size` or `max_new_tokens` is below 1.

  >>> from types import SimpleNamespace
  >>> def apply(params, tokens, positions, **_):  # a model that counts
  ...   return SimpleNamespace(hidden=jax.nn.one_hot(tokens + 1, 9) * 99, kv=())
  >>> model = SimpleNamespace(apply=apply, unembed=lambda params: jnp.eye(9), empty_cache=lambda *_: (), softcap=None)
  >>> generate = make_generate(model, group_size=1, max_new_tokens=4, pad_token=0)
  >>> greedy = SamplingParams(0.0)
  >>> out = generate(None, jnp.array([[1, 2]]), jnp.ones((1, 2)), jnp.array([5]), jax.random.key(0), greedy)
  >>> print(out.tokens[0], out.terminated[0])
  [[3 4 5 0]] [ True]
  """
  if group_size < 1 or max_new_tokens < 1:
    raise ValueError(f"group_size and max_new_tokens must be at least 1, got {group_size} and {max_new_tokens}")

  def generate(
    params: Any,
    prompts: Int[Array, "P L"],
    prompt_mask: Array,
    stop_tokens: Int[Array, " S"],
    key: Array,
    sampling: SamplingParams,
  ) -> Completions:
    unembedding = model.unembed(params)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(max_new_tokens))
    hidden, prefix = _prefill(model, params, prompts, prompt_mask, group_size)
    lengths, known = jnp.sum(prompt_mask != 0, axis=-1), None if known_tokens is None else jnp.asarray(known_tokens)

    def choose_next(state: Decoding, hidden: Float[Array, "P G D"]) -> Decoding:
      logits = logits_of(hidden, unembedding, softcap=model.softcap)
      choice = sample_token(keys[state.time], logits, sampling, known=known)
      return _add_token(state, choice, stop_tokens, pad_token)

    def decode(state: Decoding) -> Decoding:
      hidden, cache = _decode_step(model, params, state, prefix, lengths)
      return choose_next(state._replace(cache=cache), hidden)

    start = choose_next(_nothing_yet(model, (prompts.shape[0], group_size), max_new_tokens, pad_token), hidden)
    if not stop_early:
      return jax.lax.fori_loop(1, max_new_tokens, lambda _, state: decode(state), start).completions
    unfinished = lambda state: (state.time < max_new_tokens) & ~jnp.all(state.done)  # noqa: E731
    return jax.lax.while_loop(unfinished, decode, start).completions

  return generate


def _prefill(model: LanguageModel, params: Any, prompts: Array, mask: Array, group_size: int) -> tuple[Array, Any]:
  """Runs each prompt once: the last token's hidden state for each of its completions `[P, G, D]`, and the shared KV."""
  prompt = model.apply(params, prompts, prompt_positions(mask), mask=mask)
  last = last_real(prompt.hidden, mask)[:, None, :]
  return jnp.broadcast_to(last, (last.shape[0], group_size, last.shape[-1])), prompt.kv


def _nothing_yet(model: LanguageModel, rows: tuple[int, int], length: int, pad_token: int) -> Decoding:
  completions = Completions(
    tokens=jnp.full((*rows, length), pad_token, jnp.int32),
    mask=jnp.zeros((*rows, length), bool),
    logp=jnp.zeros((*rows, length), jnp.float32),
    full_logp=jnp.zeros((*rows, length), jnp.float32),
    terminated=jnp.zeros(rows, bool),
  )
  # The last token is never fed back, so the cache holds one fewer.
  return Decoding(jnp.int32(0), completions.terminated, model.empty_cache(rows, max(length - 1, 1)), completions)


def _decode_step(
  model: LanguageModel, params: Any, state: Decoding, prefix: Any, prompt_lengths: Array
) -> tuple[Array, Any]:
  """Feeds the last chosen tokens: their hidden states `[P, G, D]`, and the cache with them in it."""
  last, out = state.time - 1, state.completions
  token = jax.lax.dynamic_slice_in_dim(out.tokens, last, 1, axis=-1)
  real = jax.lax.dynamic_slice_in_dim(out.mask, last, 1, axis=-1)
  position = jnp.broadcast_to(prompt_lengths[:, None, None] + last, token.shape)
  step = model.apply(params, token, position, mask=real, prefix=prefix, cache=state.cache, cache_index=last)
  return step.hidden[:, :, 0], step.kv


def _add_token(state: Decoding, choice: Choice, stop_tokens: Array, pad_token: int) -> Decoding:
  """Writes a token to each completion that has not ended, and ends those whose token is a stop token."""
  t, done, out = state.time, state.done, state.completions
  token = jnp.where(done, pad_token, choice.token)
  stops = ~done & jnp.any(token[..., None] == stop_tokens[None, None, :], axis=-1)
  completions = Completions(
    tokens=out.tokens.at[:, :, t].set(token),
    mask=out.mask.at[:, :, t].set(~done),
    logp=out.logp.at[:, :, t].set(jnp.where(done, 0, choice.logp)),
    full_logp=out.full_logp.at[:, :, t].set(jnp.where(done, 0, choice.full_logp)),
    terminated=out.terminated | stops,
  )
  return Decoding(t + 1, done | stops, state.cache, completions)
