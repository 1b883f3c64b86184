"""From rows of text or chat to tokens with labels: demonstrations, and answers to a prompt."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rl_jax.state import Sequences
from rl_jax.tasks import files, text
from rl_jax.tasks.preferences import Preferences

SPLIT = "whose prompt and answer have other tokens together than apart: tokenized apart"
CHANGED = "whose chat template changes the prompt once it is answered: left out"
LONG = "over the limit of tokens: left out"
SAME = "whose answers are the same tokens: left out"
EMPTY = "with an empty completion: left out"


class Example(NamedTuple):
  """Tokens, and which of them are labels to learn."""

  tokens: list[int]
  labels: list[bool]


class EncodedRanking(NamedTuple):
  """A prompt and K answers, best first, as tokens."""

  prompt: list[int]
  answers: list[list[int]]
  ratings: tuple[float, ...] = ()


def encode_answer(tokenizer: Any, prompt: Any, answer: Any) -> tuple[list[int], list[int], str]:
  """Returns the tokens of a prompt and of an answer that ends with the end of sequence, and what was wrong, or "".

  Text is tokenized as one. Where the answer's beginning joins the prompt's end in one token, the two are tokenized
  apart, as a model that continues the prompt would see them; a chat template that rewrites the prompt leaves no tokens.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> encode_answer(character_tokenizer("0123456789"), "42", "7")
  ([7, 5], [10, 1], '')
  """
  start = text.encode(tokenizer, prompt)
  if isinstance(prompt, str):
    whole = list(tokenizer(prompt + answer)["input_ids"])
    if whole[: len(start)] == start:
      return start, _ended(tokenizer, whole[len(start) :]), ""
    return start, _ended(tokenizer, list(tokenizer(answer, add_special_tokens=False)["input_ids"])), SPLIT
  whole = text.apply_chat_template(tokenizer, [*prompt, *answer], reply=False)
  if whole[: len(start)] != start:
    return start, [], CHANGED
  return start, _ended(tokenizer, whole[len(start) :]), ""


def _ended(tokenizer: Any, tokens: list[int]) -> list[int]:
  """Ends with the last end of sequence: what a template puts behind it is never generated."""
  end = tokenizer.eos_token_id
  if end is None:
    return tokens
  if end in tokens:
    return tokens[: len(tokens) - tokens[::-1].index(end)]
  return [*tokens, end]


def encode_rankings(
  tokenizer: Any, preferences: Preferences, *, max_tokens: int
) -> tuple[list[EncodedRanking], Counter[str]]:
  """Returns rankings as tokens, and what was wrong with how many of them; too long ones are left out.

  Raises:
    ValueError: If none is left.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> from rl_jax.tasks.preferences import Ranking
  >>> found, problems = encode_rankings(
  ...     character_tokenizer("0123456789"), Preferences([Ranking("42", ("7", "77"))], Counter()), max_tokens=8)
  >>> found[0].answers
  [[10, 1], [10, 10, 1]]
  """
  encoded, problems = [], Counter()
  for prompt, answers, ratings in preferences.rankings:
    parts = [encode_answer(tokenizer, prompt, answer) for answer in answers]
    start, tokens, wrong = parts[0][0], [part[1] for part in parts], {part[2] for part in parts} - {""}
    problems.update(wrong)
    if CHANGED in wrong:
      continue
    if len(start) + max(map(len, tokens)) > max_tokens:
      problems[LONG] += 1
      continue
    if len(set(map(tuple, tokens))) < len(tokens):
      problems[SAME] += 1
      continue
    encoded.append(EncodedRanking(start, tokens, ratings))
  if not encoded:
    raise ValueError(f"no preferences are left: {describe(problems)}")
  return encoded, problems


def describe(problems: Mapping[str, int]) -> str:
  """Returns what was wrong with how many rows, in one line.

  >>> describe({LONG: 2})
  '2 over the limit of tokens: left out'
  """
  return "; ".join(f"{count} {why}" for why, count in problems.items()) or "nothing left out"


def ranking_sequences(rankings: Sequence[EncodedRanking], pad_token: int) -> Sequences:
  """Returns `[P, L]` prompts and `[P, K, T]` answers, right-padded.

  >>> ranking_sequences([EncodedRanking([3], [[4, 1], [1]])], 0).completions.tolist()
  [[[4, 1], [1, 0]]]
  """
  prompts, prompt_mask = text.pad([ranking.prompt for ranking in rankings], pad_token)
  flat, mask = text.pad([answer for ranking in rankings for answer in ranking.answers], pad_token)
  shape = (len(rankings), -1, flat.shape[-1])
  return Sequences(
    jnp.asarray(prompts), jnp.asarray(prompt_mask), jnp.asarray(flat.reshape(shape)), jnp.asarray(mask.reshape(shape))
  )


def mismatched_pairs(sequences: Sequences) -> Sequences:
  """Returns each prompt with the answers of the one before it, which do not belong to it (KTO's estimate of the KL).

  Raises:
    ValueError: If there is but one prompt.

  >>> rankings = [EncodedRanking([3], [[4]]), EncodedRanking([5], [[6]]), EncodedRanking([7], [[8]])]
  >>> sequences = ranking_sequences(rankings, 0)
  >>> mismatched_pairs(sequences).prompts.ravel().tolist(), mismatched_pairs(sequences).completions.ravel().tolist()
  ([3, 5, 7], [8, 4, 6])
  """
  if len(sequences.prompts) < 2:
    raise ValueError("answers can be exchanged among at least two prompts")
  return sequences._replace(
    completions=jnp.roll(sequences.completions, 1, axis=0),
    completion_mask=jnp.roll(sequences.completion_mask, 1, axis=0),
  )


def encode_demonstrations(
  tokenizer: Any, rows: Iterable[tuple[str, Mapping[str, Any]]], *, max_tokens: int
) -> tuple[list[Example], Counter[str]]:
  """Returns demonstrations as tokens with labels, and what was wrong with how many of them.

    {"prompt": ..., "completion": ...}     text or chat; the completion is learned
    {"messages": [message, ...]}           chat; every message of the assistant is learned
    {"text": "..."}                        plain text; all but its first token is learned

  Args:
    tokenizer: A `transformers` tokenizer.
    rows: Rows with their places, as `tasks.files.read` gives them.
    max_tokens: Longer ones are left out.

  Raises:
    ValueError: For a row of another form, by its place, or if none is left.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> tokenizer = character_tokenizer("0123456789")
  >>> encode_demonstrations(tokenizer, [("row 1", {"prompt": "4", "completion": "2"})], max_tokens=8)[0]
  [Example(tokens=[7, 5, 1], labels=[False, True, True])]
  """
  examples, problems = [], Counter()
  for place, row in rows:
    try:
      example, wrong = _demonstration(tokenizer, row)
    except ValueError as error:
      raise ValueError(f"{place}: {error}") from None
    if wrong:
      problems[wrong] += 1
    if example is None:
      continue
    if len(example.tokens) > max_tokens:
      problems[LONG] += 1
      continue
    examples.append(example)
  if not examples:
    raise ValueError(f"no demonstrations are left: {describe(problems)}")
  return examples, problems


def _demonstration(tokenizer: Any, row: Any) -> tuple[Example | None, str]:
  if not isinstance(row, Mapping):
    raise ValueError("not a mapping")
  if isinstance(row.get("text"), str):
    tokens = text.encode(tokenizer, row["text"])
    if tokenizer.eos_token_id not in (None, tokens[-1]):
      tokens = [*tokens, tokenizer.eos_token_id]
    return Example(tokens, [False] + [True] * (len(tokens) - 1)), ""
  if "messages" in row:
    if not files.is_chat(row["messages"]):
      raise ValueError("messages must be a list of messages with role and content")
    return _conversation(tokenizer, row["messages"])
  if "prompt" not in row or "completion" not in row:
    raise ValueError(f"no columns prompt and completion, no messages and no text; it has {', '.join(row) or 'none'}")
  sides = row["prompt"], row["completion"]
  if not all(isinstance(side, str) for side in sides) and not all(files.is_chat(side) for side in sides):
    raise ValueError("prompt and completion must both be text, or both lists of messages with role and content")
  if row["completion"] in ("", []):
    return None, EMPTY
  prompt, answer, wrong = encode_answer(tokenizer, *sides)
  if not answer:
    return None, wrong
  return Example(prompt + answer, [False] * len(prompt) + [True] * len(answer)), wrong


def _conversation(tokenizer: Any, messages: Sequence[Any]) -> tuple[Example | None, str]:
  tokens: list[int] = []
  labels: list[bool] = []
  for turn in (turn for turn, message in enumerate(messages) if message["role"] == "assistant"):
    prompt = text.encode(tokenizer, list(messages[:turn]))
    whole = text.apply_chat_template(tokenizer, list(messages[: turn + 1]), reply=False)
    if prompt[: len(tokens)] != tokens or whole[: len(prompt)] != prompt:
      return None, CHANGED
    answer = whole[len(prompt) :]
    learned = min(len(_ended(tokenizer, answer)), len(answer))
    labels += [False] * (len(prompt) - len(tokens)) + [i < learned for i in range(len(answer))]
    tokens = whole
  if not tokens:
    raise ValueError("messages holds none of the assistant")
  ended = [*tokens[: len(tokens) - len(answer)], *_ended(tokenizer, answer)]
  return Example(ended, (labels + [True])[: len(ended)]), ""


def ratings_of(rankings: Sequence[EncodedRanking]) -> np.ndarray | None:
  """Returns `[P, K]` ratings, or None where there are none.

  >>> ratings_of([EncodedRanking([3], [[4], [1]], (2.0, 1.0))]).tolist()
  [[2.0, 1.0]]
  """
  return np.asarray([ranking.ratings for ranking in rankings], np.float32) if rankings[0].ratings else None
