"""A reward model as a reward function: it reads text by its own tokenizer and template, whichever policy wrote it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rl_jax.models import heads, presets, scorers
from rl_jax.tasks import reading, text

BATCH = 32  # texts that are scored at a time


class Learned:
  """Scores of a sequence classifier with one label: `reward(prompts, completions, **columns)`.

  A conversation is read as the chat template writes all of it, and text as it stands, with an end of sequence behind
  it. One that is longer than the model can read has no score.

  Args:
    name: A folder, that of a run that trained a reward model, or a name on the hub.

  Raises:
    ValueError: If there is no such model, its files do not fit together, or it does not give one number.

  >>> import tempfile
  >>> model = presets.load("tiny")
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   scorers.save(folder, model, model.params, {"out": {"kernel": jnp.zeros((model.config.embed_dim, 1))}})
  ...   Learned(folder)(["1 + 1 ="], [" 2"])
  [0.0]
  """

  def __init__(self, name: str):
    self._model, self._head = scorers.load(name)
    size = self._model.config.vocab_size
    self._reader = reading.Reader(self._model.tokenizer, self._model.eos_tokens, vocab_size=size)
    self._score = jax.jit(self._score_of)

  def _score_of(
    self, params: Any, head: Any, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], last: Int[Array, " B"]
  ) -> Float[Array, " B"]:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = self._model.policy.apply(params, tokens, positions, mask=mask).hidden
    return heads.scalar(head, hidden[jnp.arange(len(tokens)), last])

  def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    rows = [{name: values[place] for name, values in columns.items()} for place in range(len(prompts))]
    texts = [
      reading.whole(self._reader, prompt, completion, reading.row_options(row))
      for prompt, completion, row in zip(prompts, completions, rows, strict=True)
    ]
    limit = presets.context(self._model)[1]
    fits = [place for place, tokens in enumerate(texts) if limit is None or len(tokens) <= limit]
    scores: list[float | None] = [None] * len(texts)
    for start in range(0, len(fits), BATCH):
      places = fits[start : start + BATCH]
      for place, score in zip(places, self._scores([texts[place] for place in places]), strict=True):
        scores[place] = float(score)
    return scores

  def _scores(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
    tokens, mask = text.pad([*texts, *[texts[0]] * (BATCH - len(texts))], 0)
    read = mask if (unread := scorers.unread(self._model)) is None else mask & (tokens != unread)
    last = np.where(read, np.arange(tokens.shape[1]), 0).max(-1)
    return np.asarray(self._score(self._model.params, self._head, tokens, mask, last))[: len(texts)]
