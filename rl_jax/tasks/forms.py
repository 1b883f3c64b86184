"""Forms of rows as they are published: what stands in which column is recognised by the columns that there are.

A form makes of a row what the rest of the library reads: prompts with their other columns, demonstrations, or
preferences. Its name is told once, when rows are read.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rl_jax.tasks import messages

Row = Mapping[str, Any]

_CONVERSATIONS = ("prompt", "messages", "conversations", "completion", "chosen", "rejected")  # may hold messages
_ASKED_ABOUT = ("context", "passage", "choices", "options")


class Form(NamedTuple):
  """One form of rows.

  Attributes:
    name: For readers.
    columns: The columns that a row of it has.
    convert: `row -> row`, as the library reads it.
  """

  name: str
  columns: tuple[str, ...]
  convert: Callable[[Row], dict[str, Any]]


def text_of(row: Row) -> str:
  """Returns a row's text.

  >>> text_of({"text": "Hi"})
  'Hi'
  """
  if not isinstance(row["text"], str):
    raise ValueError(f"text must be text, got {type(row['text']).__name__}")
  return row["text"]


def without(row: Row, *names: str) -> dict[str, Any]:
  """Returns a row's other columns."""
  return {name: value for name, value in row.items() if name not in names}


def instruction(row: Row) -> str:
  """Returns Alpaca's instruction with its input, or Dolly's with its context.

  >>> instruction({"instruction": "Add.", "input": "1, 2"})
  'Add.\\n\\n1, 2'
  """
  given = row.get("input")
  if not isinstance(given, str | None) and given == given:  # tables have NaN where nothing is
    raise ValueError(f"input must be text, got {given!r:.80}")
  parts = [row["instruction"], *(row.get(name) for name in ("input", "context") if isinstance(row.get(name), str))]
  return "\n\n".join(part for part in parts if part)


def _dialogues(row: Row) -> dict[str, Any]:
  both = {name: row[name] for name in ("chosen", "rejected")}
  if all(isinstance(text, str) and text.startswith("\n\nHuman:") for text in both.values()):
    both = {name: messages.of_dialogue(text) for name, text in both.items()}
  return {**row, **both}


def _pair(row: Row) -> dict[str, Any]:
  """A prompt and two answers, either of which may say the prompt again: what both begin with is the prompt then."""
  prompt, answers = row["prompt"], [row["chosen"], row["rejected"]]
  if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
    again = prompt.startswith("\n\nHuman:") and all(answer.startswith(prompt) for answer in answers)
    return _dialogues(without(row, "prompt")) if again else dict(row)
  if not all(messages.is_messages(answer) for answer in answers):
    return dict(row)
  if isinstance(prompt, str):
    said = [[str(each.get("content")).strip() for each in answer] for answer in answers if messages.asks(answer)]
    if any(prompt.strip() not in each for each in said):
      raise ValueError("chosen and rejected are conversations in which the prompt is not said")
    prompt = messages.user(prompt)
  if not any(messages.asks(answer) for answer in answers):
    return {**row, "prompt": prompt}
  chosen, rejected = (messages.conversation(prompt, answer)[0] for answer in answers)
  return {**without(row, "prompt"), "chosen": chosen, "rejected": rejected}


def _single(row: Row, name: str = "completion") -> dict[str, Any]:
  """A prompt and an answer, which may say the prompt again."""
  if not (messages.is_messages(row["prompt"]) and messages.is_messages(row[name])):
    return dict(row)
  whole, end = messages.conversation(row["prompt"], row[name])
  return {**row, "prompt": whole[:end], name: whole[end:]}


def with_system(row: Row) -> dict[str, Any]:
  """Returns a row with the text of a column `system` or `system_prompt` as the first message; its prompt is then chat.

  A conversation that has such a message keeps its own.

  >>> with_system({"system": "Be brief.", "prompt": "Hi"})["prompt"]
  [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
  """
  said = next((row[name] for name in ("system", "system_prompt") if isinstance(row.get(name), str)), "")
  if not said.strip():
    return dict(row)
  found = dict(row)
  if isinstance(row.get("prompt"), str):
    found["prompt"] = messages.user(row["prompt"])
    for name in ("completion", "single", "chosen", "rejected"):
      if isinstance(row.get(name), str):
        found[name] = messages.assistant(row[name])
    if isinstance(row.get("answers"), list):
      found["answers"] = [messages.assistant(each) if isinstance(each, str) else each for each in row["answers"]]
  whole = [name for name in ("chosen", "rejected") if found.get("prompt") is None]  # conversations with their prompt
  for name in ("prompt", "messages", *whole):
    if messages.is_messages(found.get(name)) and found[name][0].get("role") != "system":
      found[name] = [{"role": "system", "content": said}, *found[name]]
  return found


def _instructed(row: Row) -> list[dict[str, Any]]:
  """Alpaca's instruction as chat, behind what was said before."""
  history = row.get("history") or []
  history = json.loads(history) if isinstance(history, str) else history  # a .csv has texts
  before = [[*messages.user(asked), *messages.assistant(said)] for asked, said in history]
  return [*(message for pair in before for message in pair), *messages.user(instruction(row))]


def _question(row: Row, name: str) -> dict[str, Any]:
  """A question as chat."""
  return {**without(row, name), "prompt": messages.user(row[name])}


PROMPTS = (
  Form("prompts", ("prompt",), dict),
  Form("questions, as chat", ("question",), lambda row: _question(row, "question")),
  Form("problems, as chat", ("problem",), lambda row: _question(row, "problem")),
  Form(
    "conversations, up to the last answer",
    ("messages",),
    lambda row: {**without(row, "messages"), "prompt": messages.asked(row["messages"])},
  ),
  Form(
    "ShareGPT's conversations, up to the last answer",
    ("conversations",),
    lambda row: {**without(row, "conversations"), "prompt": messages.asked(messages.of_turns(row["conversations"]))},
  ),
  Form(
    "Alpaca's instructions, as chat",
    ("instruction",),
    lambda row: {**without(row, "instruction", "input", "history"), "prompt": _instructed(row)},
  ),
)
TEXTS = (Form("plain text", ("text",), dict),)
DEMONSTRATIONS = (
  Form("conversations", ("messages",), dict),
  Form("prompts and completions", ("prompt", "completion"), _single),
  Form(
    "ShareGPT's conversations",
    ("conversations",),
    lambda row: {**row, "messages": messages.of_turns(row["conversations"])},
  ),
  Form("Alpaca's instructions and outputs, as chat", ("instruction", "output"), lambda row: _answered(row, "output")),
  Form(
    "Dolly's instructions and responses, as chat", ("instruction", "response"), lambda row: _answered(row, "response")
  ),
  Form("questions and answers, as chat", ("question", "answer"), lambda row: _answered(row, "answer", "question")),
  Form("problems and solutions, as chat", ("problem", "solution"), lambda row: _answered(row, "solution", "problem")),
  *TEXTS,
)
PREFERENCES = (
  Form(
    "prompts with a chosen and a rejected answer",
    ("prompt", "chosen", "rejected"),
    lambda row: _pair(without(row, "answers")),
  ),
  Form("a chosen and a rejected conversation", ("chosen", "rejected"), lambda row: _dialogues(without(row, "answers"))),
  Form("rankings", ("answers",), dict),
  Form(
    "single answers with a label",
    ("prompt", "completion", "label"),
    lambda row: _single({**without(row, "answers", "completion"), "single": row["completion"]}, "single"),
  ),
)


def _answered(row: Row, answer: str, asked: str = "instruction") -> dict[str, Any]:
  """A question and its answer, as chat; a label in such a row is about something else."""
  prompt = _instructed(row) if asked == "instruction" else messages.user(row[asked])
  return {**without(row, "label"), "prompt": prompt, "completion": messages.assistant(row[answer])}


def read(row: Any, forms: Sequence[Form]) -> tuple[str, dict[str, Any]]:
  """Returns the name of the first form that a row has, and the row as the library reads it.

  Raises:
    ValueError: If it has none, or cannot be read as the one that it has.

  >>> read({"question": "1 + 1?"}, PROMPTS)
  ('questions, as chat', {'prompt': [{'role': 'user', 'content': '1 + 1?'}]})
  """
  form = recognise(row, forms)
  try:
    conversations = {name: messages.plain(row[name]) for name in _CONVERSATIONS if name in row}
    return form.name, with_system(form.convert({**row, **conversations}))
  except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
    raise ValueError(f"not read as {form.name} ({error})") from None


def not_shown(row: Row, converted: Row) -> list[str]:
  """Returns the columns that questions are asked about, and which a row as it is read does not hold.

  >>> row = {"question": "When?", "context": "In May.", "answer": "May"}
  >>> not_shown(row, read(row, PROMPTS)[1])
  ['context']
  """
  shown = "\n".join(messages.words(converted.get(name)) for name in ("prompt", "messages", "text", "chosen"))
  given = {name: row[name] for name in _ASKED_ABOUT if row.get(name) and row[name] == row[name]}
  return [name for name, value in given.items() if str(value) not in shown]


def recognise(row: Any, forms: Sequence[Form]) -> Form:
  """Returns the first form whose columns a row has.

  Raises:
    ValueError: If there is none, with the columns that there are.

  >>> recognise({"question": "1 + 1?", "answer": "#### 2"}, PROMPTS).name
  'questions, as chat'
  >>> recognise({"q": "1 + 1?"}, PROMPTS)
  Traceback (most recent call last):
  ...
  ValueError: no column prompt, question, problem, messages, conversations or instruction; it has q. Rename one, such as
  rename=q:prompt
  """
  if not isinstance(row, Mapping):
    raise ValueError(f"a row must be a mapping of columns, got {type(row).__name__}")
  there = [form for form in forms if all(row.get(name) is not None for name in form.columns)]
  asked = [form for form in there if not (isinstance(row[form.columns[0]], str) and not row[form.columns[0]].strip())]
  if there:  # an empty question is none where there is another one
    return (asked or there)[0]
  *first, last = [" and ".join(form.columns) for form in forms]
  has = ", ".join(f"{name} (null)" if value is None else str(name) for name, value in row.items()) or "none"
  if {"chosen", "rejected"} <= row.keys() and forms is not PREFERENCES:
    raise ValueError(f"preferences, which DPO and reward models learn from; no column {', '.join(first)} or {last}")
  hint = f". Rename one, such as rename={next(iter(row))}:{forms[0].columns[0]}" if len(row) == 1 else ""
  raise ValueError(f"no column {', '.join(first)} or {last}; it has {has}{hint}")
