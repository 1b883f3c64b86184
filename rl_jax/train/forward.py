"""Forward passes over completions: log-probs, entropies, values, rewards. A prompt runs once for its G completions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.models.transformer import Policy
from rl_jax.ops.log_probs import predictors, token_log_probs
from rl_jax.sampling.generate import last_real, prompt_positions
from rl_jax.state import Forward, ModelOutputs, Sequences, Values
from rl_jax.tasks.packing import Packed
from rl_jax.tasks.text import NO_ENDING, Ending


def make_forward(model: Policy, *, temperature: float | Array = 1.0, chunk_size: int = 1024) -> Forward:
  """Returns `forward(params, sequences) -> ModelOutputs`, differentiable in the parameters.

  Args:
    model: Pure functions of parameters; with a value head it gives values too.
    temperature: The one that the completions are sampled at.
    chunk_size: Tokens whose logits exist at one time.

  >>> from types import SimpleNamespace
  >>> import jax
  >>> def apply(params, tokens, positions, **_):  # a model that counts, and doubts itself a little
  ...   return SimpleNamespace(hidden=params * jax.nn.one_hot(tokens + 1, 9), kv=())
  >>> forward = make_forward(SimpleNamespace(apply=apply, unembed=lambda params: jnp.eye(9), value=None, softcap=None))
  >>> sequences = Sequences(jnp.array([[1, 2]]), jnp.ones((1, 2)), jnp.array([[[3, 4]]]), jnp.ones((1, 1, 2)))
  >>> print(forward(5.0, sequences).logp.round(3))
  [[[-0.053 -0.053]]]
  """

  def forward(params: Any, sequences: Sequences) -> ModelOutputs:
    hidden = states(model, params, sequences)
    logp, entropy = token_log_probs(
      hidden,
      model.unembed(params),
      sequences.completions,
      temperature=temperature,
      softcap=model.softcap,
      chunk_size=chunk_size,
    )
    return ModelOutputs(logp, entropy, None if model.value is None else model.value(params, hidden))

  return forward


def make_packed_forward(model: Policy, *, chunk_size: int = 1024) -> Callable[[Any, Packed], ModelOutputs]:
  """Returns `forward(params, packed) -> ModelOutputs [B, S]`: log-probs of each token given those before it in its
  example.

  What stands at an example's first token means nothing; mask it.

  >>> from types import SimpleNamespace
  >>> import jax
  >>> from rl_jax.tasks.examples import Example
  >>> from rl_jax.tasks.packing import pack
  >>> def apply(params, tokens, positions, **_):  # a model that counts
  ...   return SimpleNamespace(hidden=params * jax.nn.one_hot(tokens + 1, 9), kv=())
  >>> forward = make_packed_forward(SimpleNamespace(apply=apply, unembed=lambda params: jnp.eye(9), softcap=None))
  >>> packed, _ = pack([Example([3, 4, 5], [True] * 3)], 3)
  >>> print(jnp.exp(forward(50.0, packed).logp[0, 1:]))
  [1. 1.]
  """

  def forward(params: Any, packed: Packed) -> ModelOutputs:
    tokens, positions, segments = packed
    hidden = model.apply(params, tokens, positions, mask=segments > 0, segments=segments).hidden
    before = predictors(jnp.zeros_like(hidden[:, 0]), hidden[:, :-1])
    logp, entropy = token_log_probs(before, model.unembed(params), tokens, softcap=model.softcap, chunk_size=chunk_size)
    return ModelOutputs(logp, entropy)

  return forward


def make_values(critic: Policy, *, with_last: bool = False) -> Callable[[Any, Sequences], Values]:
  """Returns `values(params, sequences) -> Values`, all from one pass.

  Args:
    critic: A model with a scalar head.
    with_last: Whether the state after the last token is valued too.

  >>> from types import SimpleNamespace
  >>> def apply(params, tokens, positions, **_):
  ...   return SimpleNamespace(hidden=params * tokens[..., None], kv=())
  >>> values = make_values(SimpleNamespace(apply=apply, value=lambda params, hidden: hidden[..., 0]))
  >>> sequences = Sequences(jnp.array([[1, 2]]), jnp.ones((1, 2)), jnp.array([[[3, 4]]]), jnp.ones((1, 1, 2)))
  >>> print(values(10.0, sequences).tokens)
  [[[20. 30.]]]
  """

  value = _value_of(critic)

  def values(params: Any, sequences: Sequences) -> Values:
    if not with_last:
      return Values(value(params, states(critic, params, sequences)))
    first, after = _run(critic, params, sequences, sequences.completions.shape[-1])
    before, last = predictors(first, after[..., :-1, :]), _after_all(first, after, sequences)
    return Values(value(params, before), value(params, last))

  return values


def make_last_value(
  model: Policy, *, ending: Ending = NO_ENDING, unread: int | None = None
) -> Callable[[Any, Sequences], Float[Array, "P G"]]:
  """Returns `last_value(params, sequences) -> [P, G]`, read off the last real token: a reward model's score.

  An empty completion is scored at its prompt's last token.

  Args:
    model: A model with a scalar head.
    ending: How completions end.
    unread: A token that the score is not read off, but off the one before: a padding token that is an end too.

  >>> from types import SimpleNamespace
  >>> def apply(params, tokens, positions, **_):
  ...   return SimpleNamespace(hidden=params * tokens[..., None], kv=())
  >>> last_value = make_last_value(SimpleNamespace(apply=apply, value=lambda params, hidden: hidden[..., 0]))
  >>> mask = jnp.array([[[1, 0], [0, 0]]])
  >>> print(last_value(10.0, Sequences(jnp.array([[1, 2]]), jnp.ones((1, 2)), jnp.array([[[3, 4], [5, 6]]]), mask)))
  [[30. 20.]]
  """

  value = _value_of(model)

  def last_value(params: Any, sequences: Sequences) -> Float[Array, "P G"]:
    sequences = closed(sequences, ending)
    states = _run(model, params, sequences, sequences.completions.shape[-1])
    if unread is not None:
      mask = (sequences.completion_mask != 0) & (sequences.completions != unread)
      sequences = sequences._replace(completion_mask=mask)
    return value(params, _after_all(*states, sequences))

  return last_value


def closed(sequences: Sequences, ending: Ending) -> Sequences:
  """Returns sequences with completions as a reward model reads them: where a stop token ended one, the end of sequence
  stands in its place, and what the chat template writes behind it.

  >>> sequences = Sequences(jnp.array([[1]]), jnp.ones((1, 1)), jnp.array([[[3, 8, 0], [3, 4, 0]]]), None)
  >>> sequences = sequences._replace(completion_mask=sequences.completions != 0)
  >>> closed(sequences, Ending(stops=[8, 9], own=[8], end=9, closing=[7])).completions.tolist()
  [[[3, 9, 7, 0], [3, 4, 0, 0]]]
  """
  if not ending.closing and not ending.own:
    return sequences
  mask = sequences.completion_mask != 0
  place = jax.lax.broadcasted_iota(jnp.int32, mask.shape, 2)
  length = jnp.max(jnp.where(mask, place + 1, 0), axis=-1, keepdims=True)
  final = jnp.take_along_axis(sequences.completions, jnp.maximum(length - 1, 0), axis=-1)
  ended = (length > 0) & _is_in(final, ending.stops)
  completions = sequences.completions
  if ending.end is not None:
    completions = jnp.where(ended & _is_in(final, ending.own) & (place == length - 1), ending.end, completions)
  wider = [(0, 0), (0, 0), (0, len(ending.closing))]
  completions, mask = jnp.pad(completions, wider), jnp.pad(mask, wider)
  behind = jax.lax.broadcasted_iota(jnp.int32, mask.shape, 2) - length
  for number, token in enumerate(ending.closing):
    here = ended & (behind == number)
    completions, mask = jnp.where(here, token, completions), mask | here
  return sequences._replace(completions=completions, completion_mask=mask)


def _is_in(tokens: Array, among: Sequence[int]) -> Array:
  return jnp.isin(tokens, jnp.asarray(among, jnp.int32))


def make_step_values(
  model: Policy, *, end: int, stop_tokens: Sequence[int] = ()
) -> Callable[[Any, Sequences], Float[Array, "P G T"]]:
  """Returns `step_values(params, sequences) -> [P, G, T]`: a process reward model's score of each step, read off the
  token that ends it; 0 at other tokens.

  Args:
    model: A model with a scalar head.
    end: The token that ends a step. What follows the last one of a completion is a step too, unless it is a stop token
      alone.
    stop_tokens: Those that end a completion.

  >>> from types import SimpleNamespace
  >>> def apply(params, tokens, positions, **_):
  ...   return SimpleNamespace(hidden=params * tokens[..., None], kv=())
  >>> model = SimpleNamespace(apply=apply, value=lambda params, hidden: hidden[..., 0])
  >>> tokens = jnp.array([[[3, 9, 4, 0]]])
  >>> sequences = Sequences(jnp.array([[1, 2]]), jnp.ones((1, 2)), tokens, tokens != 0)
  >>> print(make_step_values(model, end=9)(10.0, sequences))
  [[[ 0. 90. 40.  0.]]]
  >>> print(make_step_values(model, end=9, stop_tokens=[4])(10.0, sequences))
  [[[ 0. 90.  0.  0.]]]
  """

  value = _value_of(model)

  def step_values(params: Any, sequences: Sequences) -> Float[Array, "P G T"]:
    _, after = _run(model, params, sequences, sequences.completions.shape[-1])
    mask = sequences.completion_mask != 0
    last = mask & (jnp.cumsum(mask, axis=-1) == jnp.sum(mask, axis=-1, keepdims=True))
    ends = mask & (sequences.completions == end)
    before = jnp.pad(ends[..., :-1], [(0, 0), (0, 0), (1, 0)])
    stops_only = before & jnp.isin(sequences.completions, jnp.asarray(stop_tokens, jnp.int32))
    return jnp.where(ends | (last & ~stops_only), value(params, after), 0)

  return step_values


def _value_of(model: Policy) -> Callable[[Any, Array], Array]:
  if model.value is None:
    raise ValueError("the model has no value head: models.heads gives it one")
  return model.value


def states(model: Policy, params: Any, sequences: Sequences) -> Float[Array, "P G T D"]:
  """Returns the hidden states that predict the completions: row t has read everything before token t.

  >>> from types import SimpleNamespace
  >>> def apply(params, tokens, positions, **_):
  ...   return SimpleNamespace(hidden=params * tokens[..., None], kv=())
  >>> sequences = Sequences(jnp.array([[1, 2]]), jnp.ones((1, 2)), jnp.array([[[3, 4]]]), jnp.ones((1, 1, 2)))
  >>> print(states(SimpleNamespace(apply=apply), 10.0, sequences)[0, 0].ravel())
  [20. 30.]
  """
  # The last token predicts nothing.
  return predictors(*_run(model, params, sequences, sequences.completions.shape[-1] - 1))


def _after_all(first: Array, after: Array, sequences: Sequences) -> Array:
  """The hidden state of the last real token `[P, G, D]`: the prompt's, where a completion is empty."""
  mask = sequences.completion_mask != 0
  return jnp.where(jnp.any(mask, axis=-1)[..., None], last_real(after, mask), first)


def _run(model: Policy, params: Any, sequences: Sequences, length: int) -> tuple[Array, Array]:
  """Hidden states of the prompts' last tokens `[P, G, D]` and of the completions' first `length` ones."""
  prompts, prompt_mask, completions, completion_mask = sequences
  prompt = model.apply(params, prompts, prompt_positions(prompt_mask), mask=prompt_mask)
  first = last_real(prompt.hidden, prompt_mask)[:, None]
  first = jnp.broadcast_to(first, (*completions.shape[:2], first.shape[-1]))
  tokens, mask = completions[..., :length], completion_mask[..., :length]
  positions = prompt_positions(mask) + jnp.sum(prompt_mask != 0, axis=-1)[:, None, None]
  return first, model.apply(params, tokens, positions, mask=mask, prefix=prompt.kv).hidden
