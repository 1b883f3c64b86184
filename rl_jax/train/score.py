"""Log-probs and entropies of completions under some parameters; each prompt runs once for its G completions."""

from collections.abc import Callable
from typing import Any, NamedTuple

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


Score = Callable[[Any, Sequences], Scores]


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
    prompts, prompt_mask, completions, completion_mask = sequences
    prompt = model.apply(params, prompts, prompt_positions(prompt_mask), mask=prompt_mask)
    first_hidden = last_real(prompt.hidden, prompt_mask)[:, None]
    first_hidden = jnp.broadcast_to(first_hidden, (*completions.shape[:2], first_hidden.shape[-1]))
    # The last token predicts nothing that is scored.
    tokens, mask = completions[..., :-1], completion_mask[..., :-1]
    positions = prompt_positions(mask) + jnp.sum(prompt_mask != 0, axis=-1)[:, None, None]
    completion = model.apply(params, tokens, positions, mask=mask, prefix=prompt.kv)
    hidden = predictors(first_hidden, completion.hidden)
    logp, entropy = token_log_probs(
      hidden, model.unembed(params), completions, temperature=temperature, chunk_size=chunk_size
    )
    return Scores(logp, entropy, None if value is None else value(params, hidden))

  return score
