"""From rows of text or chat to tokens with labels: demonstrations, and answers to a prompt."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from rl_jax.state import Sequences
from rl_jax.tasks import files, forms, reading, sources, text
from rl_jax.tasks.preferences import LABELS, Preferences, Ranking
from rl_jax.tasks.reading import CHANGED, LAST, Example, Reader

LONG = "over the limit of tokens: left out"
SAME = "whose answers are the same tokens: left out"
EMPTY = "with no words to learn: left out"
BAD = "with the label false: left out"
UNLEARNED = "whose messages all have the weight 0: left out"


class Demonstration(NamedTuple):
  """What is learned from a row, or from one reply of it.

  Attributes:
    subject: What the row is about, its prompt: rows of the same one are held out together.
    example: Tokens and labels.
  """

  subject: str
  example: Example


class Demonstrations(NamedTuple):
  """What is learned from rows.

  Attributes:
    found: One a row, or a reply of it.
    problems: What was wrong with how many.
    read: How rows were read, in a line.
  """

  found: list[Demonstration]
  problems: Counter[str]
  read: str


class EncodedRanking(NamedTuple):
  """A prompt and K answers, best first, as tokens; labels are those that a policy would choose.

  Attributes:
    prompt: Tokens that all answers follow; of one prompt they may differ from row to row, by a header.
    answers: K of them.
    ratings: `[K]`, or empty.
    subject: What the row is about, its prompt: rows of the same one are held out together.
  """

  prompt: list[int]
  answers: list[Example]
  ratings: tuple[float, ...] = ()
  subject: str = ""


def encode_rankings(
  reader: Reader, preferences: Preferences, *, max_tokens: int, whole: bool = False
) -> tuple[list[EncodedRanking], Counter[str]]:
  """Returns rankings as tokens, and what was wrong with how many of them; too long ones are left out.

  Args:
    reader: How the model reads.
    preferences: Rankings.
    max_tokens: Longer ones are left out.
    whole: Whether replies in a chat go on to the end of what the template writes, where reward models are read off.

  Raises:
    ValueError: If none is left.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> from rl_jax.tasks.preferences import Ranking
  >>> reader = Reader(character_tokenizer("0123456789"), (1,))
  >>> found, problems = encode_rankings(reader, Preferences([Ranking("42", ("7", "77"))], Counter()), max_tokens=8)
  >>> [answer.tokens for answer in found[0].answers]
  [[10, 1], [10, 10, 1]]
  """
  encoded, problems = [], Counter()

  def answered(ranking: Ranking) -> tuple[Ranking, list[reading.Answered]]:
    return ranking, [reading.answered(reader, ranking.prompt, answer, ranking.options) for answer in ranking.answers]

  _, read, told = sources.readable([(ranking.place, ranking) for ranking in preferences.rankings], answered)
  if told:
    problems[told.partition(" ")[2]] = len(preferences.rankings) - len(read)
  for ranking, parts in read:
    wrong = {part.problem for part in parts} - {""}
    problems.update(wrong)
    if CHANGED in wrong:
      continue
    start, answers = _shared_prompt(parts)
    if whole and not isinstance(ranking.prompt, str):
      behind = reading.closing(reader, ranking.prompt, ranking.options)
      answers = [Example(tokens + behind, labels + [False] * len(behind)) for tokens, labels in answers]
    if len(start) + max(len(answer.tokens) for answer in answers) > max_tokens:
      problems[LONG] += 1
      continue
    if len({tuple(answer.tokens) for answer in answers}) < len(answers):
      problems[SAME] += 1
      continue
    encoded.append(EncodedRanking(start, answers, ranking.ratings, files.subject(ranking.prompt)))
  if not encoded:
    raise ValueError(f"no preferences are left: {describe(problems)}")
  return encoded, problems


def _shared_prompt(parts: Sequence[reading.Answered]) -> tuple[list[int], list[Example]]:
  """What all prompts begin with, and each answer behind it: one may begin with others' words, one with a reply."""
  prompts = [part.prompt for part in parts]
  shared = min(map(len, prompts))
  while any(prompt[:shared] != prompts[0][:shared] for prompt in prompts):
    shared -= 1
  answers = []
  for prompt, (tokens, labels) in zip(prompts, (part.answer for part in parts), strict=True):
    answers.append(Example([*prompt[shared:], *tokens], [False] * (len(prompt) - shared) + labels))
  return prompts[0][:shared], answers


def describe(problems: Mapping[str, int]) -> str:
  """Returns what was wrong with how many rows, in one line.

  >>> describe({LONG: 2})
  '2 over the limit of tokens: left out'
  """
  return "; ".join(f"{count} {why}" for why, count in problems.items()) or "nothing left out"


def ranking_sequences(rankings: Sequence[EncodedRanking], pad_token: int) -> tuple[Sequences, Bool[Array, "P K T"]]:
  """Returns `[P, L]` prompts and `[P, K, T]` answers, right-padded, and which of their tokens a policy would choose.

  >>> mine = Example([4, 1], [True, True])
  >>> sequences, labels = ranking_sequences([EncodedRanking([3], [mine, Example([1], [True])])], 0)
  >>> sequences.completions.tolist(), labels.tolist()
  ([[[4, 1], [1, 0]]], [[[True, True], [True, False]]])
  """
  prompts, prompt_mask = text.pad([ranking.prompt for ranking in rankings], pad_token)
  answers = [answer for ranking in rankings for answer in ranking.answers]
  flat, mask = text.pad([answer.tokens for answer in answers], pad_token)
  labels, _ = text.pad([answer.labels for answer in answers], 0)
  shape = (len(rankings), -1, flat.shape[-1])
  completions, mask, labels = (jnp.asarray(x.reshape(shape)) for x in (flat, mask, labels != 0))
  return Sequences(jnp.asarray(prompts), jnp.asarray(prompt_mask), completions, mask), labels


def mismatched_pairs(
  sequences: Sequences, labels: Bool[Array, "P K T"], subjects: Sequence[str]
) -> tuple[Sequences, Bool[Array, "P K T"]]:
  """Returns each prompt with the answers of another one, which do not belong to it (KTO's estimate of the KL).

  They are the answers of the next row, in a circle, whose prompt is another: a prompt may stand in a batch twice. Where
  all rows have one prompt nothing is mismatched: they keep their answers, without labels, and the estimate is 0.

  >>> def pair(prompt, answer):
  ...   return EncodedRanking([prompt], [Example([answer], [True])])
  >>> sequences, labels = ranking_sequences([pair(3, 4), pair(3, 5), pair(7, 8)], 0)
  >>> mismatched, labels = mismatched_pairs(sequences, labels, ["a", "a", "b"])
  >>> mismatched.prompts.ravel().tolist(), mismatched.completions.ravel().tolist()
  ([3, 3, 7], [8, 8, 4])
  """
  count = len(subjects)
  others = np.array(
    [
      next((place % count for place in range(row + 1, row + count) if subjects[place % count] != subjects[row]), row)
      for row in range(count)
    ]
  )
  exists = jnp.asarray(others != np.arange(count))[:, None, None]
  completions, mask = sequences.completions[others], sequences.completion_mask[others]
  return sequences._replace(completions=completions, completion_mask=mask), labels[others] & exists


def encode_demonstrations(
  reader: Reader, rows: Iterable[tuple[str, Mapping[str, Any]]], *, max_tokens: int
) -> Demonstrations:
  """Returns demonstrations as tokens with labels, and what was wrong with how many of them.

    {"messages": [message, ...]}           chat; every message of the assistant is learned, unless its weight is 0
    {"prompt": ..., "completion": ...}     text or chat; the assistant's words in the completion are learned
    {"text": "..."}                        plain text; all but its first token is learned

  and ShareGPT's, Alpaca's, GSM8K's and MATH's rows, which are made of the like (`forms.DEMONSTRATIONS`); a row of
  several of these forms is the first one that stands there. Columns `tools` and `chat_template_kwargs` go to
  the chat template.

  Args:
    reader: How the model reads.
    rows: Rows with their places.
    max_tokens: Longer ones are left out.

  Raises:
    ValueError: For a row of another form, by its place, or if none is left.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> reader = Reader(character_tokenizer("0123456789"), (1,))
  >>> encode_demonstrations(reader, [("row 1", {"prompt": "4", "completion": "2"})], max_tokens=8).found[0].example
  Example(tokens=[7, 5, 1], labels=[False, True, True])
  """
  found, problems = [], Counter()
  read = sources.as_form(sources.Rows.of(rows), forms.DEMONSTRATIONS, lambda row: _demonstration(reader, row))
  for subject, examples, wrong in read.rows:
    if wrong:
      problems[wrong] += 1
    for example in examples:
      if len(example.tokens) > max_tokens:
        problems[LONG] += 1
      else:
        found.append(Demonstration(subject, example))
  if not found:
    raise ValueError(f"no demonstrations are left: {describe(problems)}")
  return Demonstrations(found, problems, read.description)


def _demonstration(reader: Reader, row: Mapping[str, Any]) -> tuple[str, list[Example], str]:
  """What a row is about, its examples, and what was wrong."""
  if row.get("messages") is not None:
    return _messages(reader, row)
  if row.get("prompt") is None or "completion" not in row:
    return _plain_text(reader, row)
  if LABELS.get(str(row.get("label")).lower()) == -1:
    return "", [], BAD
  prompt, completion = row["prompt"], row["completion"]
  sides = (prompt, completion)
  if not all(isinstance(side, str) for side in sides) and not all(files.is_chat(side) for side in sides):
    raise ValueError("prompt and completion must both be text, or both lists of messages with role and content")
  if files.is_empty(completion):
    return "", [], EMPTY
  options = reading.row_options(row)
  start, answer, wrong = reading.answered(reader, prompt, completion, options)
  whole = [Example(start + answer.tokens, [False] * len(start) + answer.labels)]
  # Several replies, whose surroundings are rewritten: an example each.
  if wrong in (CHANGED, LAST) and prompt[-1]["role"] != "assistant":
    said = [*({**message, "weight": 0} for message in prompt), *completion]
    whole, wrong = reading.conversation(reader, said, options)
  learned = [example for example in whole if any(example.labels)]
  return files.subject(prompt), learned, wrong if learned or wrong else UNLEARNED


def _messages(reader: Reader, row: Mapping[str, Any]) -> tuple[str, list[Example], str]:
  if not files.is_chat(row["messages"]):
    raise ValueError("messages must be a list of messages with role and content")
  examples, wrong = reading.conversation(reader, row["messages"], reading.row_options(row))
  if all(files.is_empty([message]) for message in row["messages"] if message["role"] == "assistant"):
    return "", [], EMPTY
  asked = reading.first_answer(row["messages"])
  return files.subject(row["messages"][:asked]), examples, wrong or ("" if examples else UNLEARNED)


def _plain_text(reader: Reader, row: Mapping[str, Any]) -> tuple[str, list[Example], str]:
  words = forms.text_of(row)
  if files.is_empty(words):
    return "", [], EMPTY
  tokens = reading.prompt_tokens(reader, words)
  if reader.end is not None and tokens[-1] not in reader.eos_tokens:
    tokens = [*tokens, reader.end]
  return words, [Example(tokens, [False] + [True] * (len(tokens) - 1))], ""


def ratings_of(rankings: Sequence[EncodedRanking]) -> np.ndarray | None:
  """Returns `[P, K]` ratings, or None where there are none.

  >>> ratings_of([EncodedRanking([3], [Example([4], [True]), Example([1], [True])], (2.0, 1.0))]).tolist()
  [[2.0, 1.0]]
  """
  return np.asarray([ranking.ratings for ranking in rankings], np.float32) if rankings[0].ratings else None
