"""Preference data: answers to a prompt, best first. Pairs in TRL's formats, and rankings of K answers.

    {"prompt": "...", "chosen": "...", "rejected": "..."}                     text
    {"prompt": [message, ...], "chosen": [message], "rejected": [message]}    chat
    {"chosen": [message, ...], "rejected": [message, ...]}                    chat; what both begin with is the prompt
    {"prompt": ..., "answers": [answer, ...]}                                 a ranking of K answers, best first
    with "ratings": [number, ...] where raters said how good each is

    {"prompt": ..., "completion": ..., "label": true}                         one answer, good or not (KTO)
    {"prompt": "...", "chosen": [message, ...], "rejected": ...}              a question, and chats (UltraFeedback)
    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}           text that is a conversation (HH-RLHF)

Rows come from files, from data sets on the hub (`tasks.sources.read`), or from anything that gives dicts, such as a
dataset of `datasets`: `from_rows((f"row {i}", row) for i, row in enumerate(dataset))`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl_jax.tasks import files, forms, sources
from rl_jax.tasks.reading import row_options

LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": -1.0, "0": -1.0, "0.0": -1.0}


class Ranking(NamedTuple):
  """Answers to one prompt, best first; texts, or lists of chat messages.

  Attributes:
    prompt: Text, or a list of chat messages.
    answers: K of them.
    ratings: `[K]`, how good each is, and of a single one 1 or -1; empty where nobody said.
    options: What the row tells the chat template besides: tools and the like.
    place: Where the row stands, for messages.
  """

  prompt: Any
  answers: tuple[Any, ...]
  ratings: tuple[float, ...] = ()
  options: Mapping[str, Any] = {}
  place: str = "a row"


class Preferences(NamedTuple):
  """Rankings, all of the same K.

  Attributes:
    rankings: One a row.
    left_out: How many rows were left out for which reason.
    read: How rows were read, in a line.
  """

  rankings: list[Ranking]
  left_out: Counter[str]
  read: str = ""

  def describe(self) -> str:
    """Returns one line, such as "3 rankings of 2 answers; left out: 1 with an empty answer"."""
    size = len(self.rankings[0].answers) if self.rankings else 0
    dropped = ", ".join(f"{count} {why}" for why, count in self.left_out.items())
    counted = f"{len(self.rankings)} rankings of {size} answer{'s' * (size != 1)}"
    if size == 1:
      good = sum(ranking.ratings == (1.0,) for ranking in self.rankings)
      counted += f", {good} with the label true and {len(self.rankings) - good} with false"
    return "; ".join(filter(None, [self.read, counted, f"left out: {dropped}" if dropped else ""]))


def load(path: str | Path, **options: str) -> Preferences:
  """Reads a file, or a data set on the hub; keyword arguments are those of `tasks.sources.read`.

  Raises:
    ValueError: For a missing file, a broken line, or a row without the columns that are needed, by its place.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
  ...   _ = file.write('{"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}\\n')
  ...   file.flush()
  ...   print(load(file.name).describe())
  1 row read as prompts with a chosen and a rejected answer; 1 rankings of 2 answers
  """
  return from_rows(sources.read(path, **options).placed)


def from_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Preferences:
  """Checks rows, given with their places.

  Raises:
    ValueError: For a row without the columns that are needed, rankings of different lengths, or no rankings at all.

  >>> rows = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
  >>> print(from_rows((f"row {i}", row) for i, row in enumerate(rows)).describe())
  2 rows read as prompts with a chosen and a rejected answer; 1 rankings of 2 answers; left out: 1 with equal answers
  """
  rankings, left_out, first = [], Counter(), ""
  found = sources.as_form(sources.Rows.of(rows), forms.PREFERENCES, _ranking)
  for place, ranking in zip(found.places, found.rows, strict=True):
    if any(a == b for i, a in enumerate(ranking.answers) for b in ranking.answers[:i]):
      left_out["with equal answers"] += 1
    elif any(files.is_empty(answer) for answer in ranking.answers):
      left_out["with an empty answer"] += 1
    elif len(ranking.ratings) > 1 and len(set(ranking.ratings)) == 1:
      left_out["with equal ratings"] += 1
    else:
      first = first or place
      if rankings and len(ranking.answers) != len(rankings[0].answers):
        count = len(ranking.answers)
        raise ValueError(f"{place}: {count} answer{'s' * (count > 1)}, but {first} has {len(rankings[0].answers)}")
      if rankings and bool(ranking.ratings) != bool(rankings[0].ratings):
        raise ValueError(f"{place}: ratings are given for some rows and not for others ({first})")
      rankings.append(ranking._replace(place=place))
  rankings, read = _behind_prompts(rankings, found.description)
  if not rankings:
    raise ValueError(f"no usable preferences; {Preferences([], left_out, found.description).describe()}")
  return Preferences(rankings, left_out, read)


def _behind_prompts(rankings: list[Ranking], read: str) -> tuple[list[Ranking], str]:
  """Cuts the prompt off texts where all answers of all rows say it again: one alone may begin with the same words."""
  texts = [ranking for ranking in rankings if isinstance(ranking.prompt, str)]
  again = [all(answer.startswith(ranking.prompt) for answer in ranking.answers) for ranking in texts]
  if len(texts) < max(len(rankings), 2) or not all(again):
    return rankings, read
  cut = [each._replace(answers=tuple(answer[len(each.prompt) :] for answer in each.answers)) for each in texts]
  return cut, f"{read}; answers are cut behind the prompts, which all of them say again"


def _ranking(row: Mapping[str, Any]) -> Ranking:
  if "single" in row:
    answers = [row["single"]]
  elif "answers" in row:
    answers = _list(row["answers"])
    if answers is None or len(answers) < 2:
      raise ValueError("answers must be a list of at least two, best first")
  else:
    answers = [row["chosen"], row["rejected"]]
  prompt = row.get("prompt")
  if prompt is None:
    prompt, answers = _implicit_prompt(answers)
  kind = str if isinstance(prompt, str) else list
  for name, value in (("prompt", prompt), *((f"answer {i}", answer) for i, answer in enumerate(answers))):
    if not isinstance(value, kind) or (kind is list and value and not files.is_chat(value)):
      wanted = "text" if kind is str else "a list of messages with role and content"
      raise ValueError(f"{name} must be {wanted}, as the prompt is")
  if not prompt:
    raise ValueError("the prompt is empty")
  return Ranking(prompt, tuple(answers), _ratings(row, len(answers)), row_options(row))


def _implicit_prompt(answers: Sequence[Any]) -> tuple[Any, list[Any]]:
  """Whole conversations: what all of them begin with is the prompt."""
  if not all(files.is_chat(answer) for answer in answers):
    raise ValueError("no column 'prompt', which only lists of chat messages can do without")
  shared = 0
  while all(len(a) > shared and a[shared] == answers[0][shared] for a in answers):
    shared += 1
  if not shared:
    raise ValueError("no column 'prompt', and the answers do not begin with the same message")
  return answers[0][:shared], [answer[shared:] for answer in answers]


def _ratings(row: Mapping[str, Any], count: int) -> tuple[float, ...]:
  if count == 1:
    label = LABELS.get(str(row["label"]).lower())  # a .csv has texts
    if label is None:
      raise ValueError(f"label must be true or false, got {row['label']!r}")
    return (label,)
  if row.get("ratings") is None:
    return ()
  ratings = _list(row["ratings"]) or []
  if len(ratings) != count or not all(isinstance(x, int | float) and math.isfinite(x) for x in ratings):
    raise ValueError(f"ratings must be {count} finite numbers")
  if sorted(ratings, reverse=True) != ratings:
    raise ValueError("ratings must not rise: the best answer comes first")
  return tuple(float(x) for x in ratings)


def _list(value: Any) -> list | None:
  return list(value) if isinstance(value, list | tuple) else None
