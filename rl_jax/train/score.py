"""What a pass over completions gives: log-probs, entropies, values, scores. Each prompt runs once for its G."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rl_jax.ops.log_probs import predictors, token_log_probs
from rl_jax.sampling.generate import LanguageModel, last_real, prompt_positions


class Sequences(NamedTuple):
  """Prompts and their completions, the part of a batch that a model reads.

  Attributes:
    prompts: `[P, L]` with its mask of real tokens.
    prompt_mask: `[P, L]`.
    completions: `[P, G, T]`.
    completion_mask: `[P, G, T]`, 1 for real tokens: they are attended to, whether or not they are trained on.
  """

  prompts: Int[Array, "P L"]
  prompt_mask: Array
  completions: Int[Array, "P G T"]
  completion_mask: Array


class Scores(NamedTuple):
  """What one pass of the learner gives: the learner's fields of `objectives.base.Inputs`.

  Attributes:
    logp: Per completion token.
    entropy: Per completion token.
    values: A critic's, per completion token; None without one.
    scores: A reward model's, per completion; None without one.
  """

  logp: Float[Array, "P G T"] | None
  entropy: Float[Array, "P G T"] | None
  values: Float[Array, "P G T"] | None = None
  scores: Float[Array, "P G"] | None = None


class Values(NamedTuple):
  """What a critic says of completions.

  Attributes:
    tokens: At t, of the state *before* token t was chosen.
    last: Of the state after the last token; None where nobody asks for it.
  """

  tokens: Float[Array, "P G T"]
  last: Float[Array, "P G"] | None = None


Score = Callable[[Any, Sequences], Scores]
RewardModel = Callable[[Sequences], Float[Array, "P G"] | Float[Array, "P G T"]]


class Reader(Protocol):
  """What reading sequences needs of a model; `models.transformer.Policy` and `models.heads.ScalarModel` are two.

  Attributes:
    apply: `(params, tokens, positions, *, mask, prefix) -> (hidden, kv)`.
  """

  @property
  def apply(self) -> Callable[..., Any]: ...


class ValueModel(Reader, Protocol):
  """A model with a scalar head.

  Attributes:
    value: `(params, hidden [..., D]) -> [...]`.
  """

  @property
  def value(self) -> Callable[[Any, Array], Array]: ...


def make_score(
  model: LanguageModel,
  *,
  temperature: float | Array = 1.0,
  chunk_size: int = 1024,
  value: Callable[[Any, Array], Array] | None = None,
) -> Score:
  """Returns `score(params, sequences) -> Scores`, differentiable in the parameters.

  Args:
    model: Pure functions of parameters, as for `sampling.make_generate`.
    temperature: The one that the completions are sampled at.
    chunk_size: Tokens whose logits exist at one time.
    value: `(params, hidden [..., D]) -> [...]`, a value head, where the objective needs values.

  >>> from types import SimpleNamespace
  >>> import jax
  >>> def apply(params, tokens, positions, **_):  # a model that counts, and doubts itself a little
  ...   return SimpleNamespace(hidden=params * jax.nn.one_hot(tokens + 1, 9), kv=())
  >>> score = make_score(SimpleNamespace(apply=apply, unembed=lambda params: jnp.eye(9)))
  >>> sequences = Sequences(jnp.array([[1, 2]]), jnp.ones((1, 2)), jnp.array([[[3, 4]]]), jnp.ones((1, 1, 2)))
  >>> print(score(5.0, sequences).logp.round(3))
  [[[-0.053 -0.053]]]
  """

  def score(params: Any, sequences: Sequences) -> Scores:
    hidden = states(model, params, sequences)
    logp, entropy = token_log_probs(
      hidden, model.unembed(params), sequences.completions, temperature=temperature, chunk_size=chunk_size
    )
    return Scores(logp, entropy, None if value is None else value(params, hidden))

  return score


def make_values(critic: ValueModel, *, with_last: bool = False) -> Callable[[Any, Sequences], Values]:
  """Returns `values(params, sequences) -> Values`, all from one pass.

  Args:
    critic: With a scalar head.
    with_last: Whether the state after the last token is valued too.

  >>> from types import SimpleNamespace
  >>> def apply(params, tokens, positions, **_):
  ...   return SimpleNamespace(hidden=params * tokens[..., None], kv=())
  >>> values = make_values(SimpleNamespace(apply=apply, value=lambda params, hidden: hidden[..., 0]))
  >>> sequences = Sequences(jnp.array([[1, 2]]), jnp.ones((1, 2)), jnp.array([[[3, 4]]]), jnp.ones((1, 1, 2)))
  >>> print(values(10.0, sequences).tokens)
  [[[20. 30.]]]
  """

  def values(params: Any, sequences: Sequences) -> Values:
    if not with_last:
      return Values(critic.value(params, states(critic, params, sequences)))
    first, after = _run(critic, params, sequences, sequences.completions.shape[-1])
    before, last = predictors(first, after[..., :-1, :]), _after_all(first, after, sequences)
    return Values(critic.value(params, before), critic.value(params, last))

  return values


def make_last_value(model: ValueModel) -> Callable[[Any, Sequences], Float[Array, "P G"]]:
  """Returns `last_value(params, sequences) -> [P, G]`, read off the last real token: a reward model's score.

  An empty completion is scored at its prompt's last token.

  >>> from types import SimpleNamespace
  >>> def apply(params, tokens, positions, **_):
  ...   return SimpleNamespace(hidden=params * tokens[..., None], kv=())
  >>> last_value = make_last_value(SimpleNamespace(apply=apply, value=lambda params, hidden: hidden[..., 0]))
  >>> mask = jnp.array([[[1, 0], [0, 0]]])
  >>> print(last_value(10.0, Sequences(jnp.array([[1, 2]]), jnp.ones((1, 2)), jnp.array([[[3, 4], [5, 6]]]), mask)))
  [[30. 20.]]
  """

  def last_value(params: Any, sequences: Sequences) -> Float[Array, "P G"]:
    return model.value(params, _after_all(*_run(model, params, sequences, sequences.completions.shape[-1]), sequences))

  return last_value


def make_step_values(
  model: ValueModel, *, end: int, stop_tokens: Sequence[int] = ()
) -> Callable[[Any, Sequences], Float[Array, "P G T"]]:
  """Returns `step_values(params, sequences) -> [P, G, T]`: a process reward model's score of each step, read off the
  token that ends it; 0 at other tokens.

  Args:
    model: With a scalar head.
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

  def step_values(params: Any, sequences: Sequences) -> Float[Array, "P G T"]:
    _, after = _run(model, params, sequences, sequences.completions.shape[-1])
    mask = sequences.completion_mask != 0
    last = mask & (jnp.cumsum(mask, axis=-1) == jnp.sum(mask, axis=-1, keepdims=True))
    ends = mask & (sequences.completions == end)
    before = jnp.pad(ends[..., :-1], [(0, 0), (0, 0), (1, 0)])
    stops_only = before & jnp.isin(sequences.completions, jnp.asarray(stop_tokens, jnp.int32))
    return jnp.where(ends | (last & ~stops_only), model.value(params, after), 0)

  return step_values


def states(model: Reader, params: Any, sequences: Sequences) -> Float[Array, "P G T D"]:
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


def _run(model: Reader, params: Any, sequences: Sequences, length: int) -> tuple[Array, Array]:
  """Hidden states of the prompts' last tokens `[P, G, D]` and of the completions' first `length` ones."""
  prompts, prompt_mask, completions, completion_mask = sequences
  prompt = model.apply(params, prompts, prompt_positions(prompt_mask), mask=prompt_mask)
  first = last_real(prompt.hidden, prompt_mask)[:, None]
  first = jnp.broadcast_to(first, (*completions.shape[:2], first.shape[-1]))
  tokens, mask = completions[..., :length], completion_mask[..., :length]
  positions = prompt_positions(mask) + jnp.sum(prompt_mask != 0, axis=-1)[:, None, None]
  return first, model.apply(params, tokens, positions, mask=mask, prefix=prompt.kv).hidden
