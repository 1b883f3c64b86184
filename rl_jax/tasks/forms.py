"""Forms of rows as they are published: what stands in which column is recognised by the columns that there are.

A form makes of a row what the rest of the library reads: prompts with their other columns, demonstrations, or
preferences. Its name is told once, when rows are read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

_SPEAKERS = {
  "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
  "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
  "function": "tool", "observation": "tool",
}  # fmt: skip
_TURN = re.compile(r"\n\n(Human|Assistant):")


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


def user(text: Any) -> list[dict[str, Any]]:
  """Returns a conversation of one message of the user."""
  return [{"role": "user", "content": text}]


def assistant(text: Any) -> list[dict[str, Any]]:
  """Returns what an assistant answers."""
  return [{"role": "assistant", "content": text}]


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
  """Returns Alpaca's instruction with its input.

  >>> instruction({"instruction": "Add.", "input": "1, 2"})
  'Add.\\n\\n1, 2'
  """
  given = row.get("input") or ""
  return f"{row['instruction']}\n\n{given}" if given else row["instruction"]


def turns(row: Row) -> list[dict[str, Any]]:
  """Returns ShareGPT's conversation as messages.

  >>> turns({"conversations": [{"from": "human", "value": "Hi"}]})
  [{'role': 'user', 'content': 'Hi'}]
  """
  found = []
  for turn in row["conversations"]:
    if "from" not in turn:  # some have messages in this column
      found.append(turn)
      continue
    if turn["from"] not in _SPEAKERS:
      raise ValueError(f"a turn of conversations is from {turn['from']!r}, none of {', '.join(_SPEAKERS)}")
    found.append({"role": _SPEAKERS[turn["from"]], "content": turn["value"]})
  return found


def asked(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
  """Returns a conversation up to its last answer, which is left out.

  >>> asked([*user("Hi"), *assistant("Hello")])
  [{'role': 'user', 'content': 'Hi'}]
  """
  last = messages[-1].get("role") if messages and isinstance(messages[-1], Mapping) else None
  return list(messages[:-1]) if last == "assistant" else list(messages)


def dialogue(text: str) -> list[dict[str, Any]]:
  """Returns a text of HH-RLHF, `\\n\\nHuman: ...\\n\\nAssistant: ...`, as messages.

  >>> dialogue("\\n\\nHuman: Hi\\n\\nAssistant: Hello")
  [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
  """
  _, *parts = _TURN.split(text)
  return [
    {"role": _SPEAKERS[speaker.lower()], "content": said.strip()}
    for speaker, said in zip(parts[::2], parts[1::2], strict=True)
  ]


def _dialogues(row: Row) -> dict[str, Any]:
  both = {name: row[name] for name in ("chosen", "rejected")}
  if all(isinstance(text, str) and text.startswith("\n\nHuman:") for text in both.values()):
    both = {name: dialogue(text) for name, text in both.items()}
  return {**row, **both}


def _asked_in_text(row: Row) -> dict[str, Any]:
  """A prompt, and whole conversations as answers: what both begin with is the prompt (UltraFeedback)."""
  answers = [row["chosen"], row["rejected"]]
  if not all(_is_messages(answer) for answer in answers):
    return dict(row)
  if all(answer[0].get("role") in ("system", "user") for answer in answers):
    said = [message.get("content") for message in answers[0]]
    if isinstance(row["prompt"], str) and row["prompt"] not in said:
      raise ValueError("chosen and rejected are conversations in which the prompt is not said")
    return without(row, "prompt")
  return {**row, "prompt": user(row["prompt"])} if isinstance(row["prompt"], str) else dict(row)


def _is_messages(value: Any) -> bool:
  return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


PROMPTS = (
  Form("prompts", ("prompt",), dict),
  Form("questions, as chat", ("question",), lambda row: {**without(row, "question"), "prompt": user(row["question"])}),
  Form("problems, as chat", ("problem",), lambda row: {**without(row, "problem"), "prompt": user(row["problem"])}),
  Form(
    "conversations, up to the last answer",
    ("messages",),
    lambda row: {**without(row, "messages"), "prompt": asked(row["messages"])},
  ),
  Form(
    "ShareGPT's conversations, up to the last answer",
    ("conversations",),
    lambda row: {**without(row, "conversations"), "prompt": asked(turns(row))},
  ),
  Form(
    "Alpaca's instructions, as chat",
    ("instruction",),
    lambda row: {**without(row, "instruction", "input"), "prompt": user(instruction(row))},
  ),
)
TEXTS = (Form("plain text", ("text",), dict),)
DEMONSTRATIONS = (
  Form("conversations", ("messages",), dict),
  Form("prompts and completions", ("prompt", "completion"), dict),
  Form("ShareGPT's conversations", ("conversations",), lambda row: {**row, "messages": turns(row)}),
  Form(
    "Alpaca's instructions and outputs, as chat",
    ("instruction", "output"),
    lambda row: {**row, "prompt": user(instruction(row)), "completion": assistant(row["output"])},
  ),
  Form(
    "questions and answers, as chat",
    ("question", "answer"),
    lambda row: {**row, "prompt": user(row["question"]), "completion": assistant(row["answer"])},
  ),
  Form(
    "problems and solutions, as chat",
    ("problem", "solution"),
    lambda row: {**row, "prompt": user(row["problem"]), "completion": assistant(row["solution"])},
  ),
  *TEXTS,
)
PREFERENCES = (
  Form("rankings", ("answers",), dict),
  Form(
    "prompts with a chosen and a rejected answer",
    ("prompt", "chosen", "rejected"),
    lambda row: _asked_in_text(without(row, "answers")),
  ),
  Form("a chosen and a rejected conversation", ("chosen", "rejected"), lambda row: _dialogues(without(row, "answers"))),
  Form(
    "single answers with a label",
    ("prompt", "completion", "label"),
    lambda row: {**without(row, "answers", "completion"), "single": row["completion"]},
  ),
)


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
  for form in forms:
    if all(row.get(name) is not None for name in form.columns):
      return form
  *first, last = [" and ".join(form.columns) for form in forms]
  has = ", ".join(f"{name} (null)" if value is None else str(name) for name, value in row.items()) or "none"
  if {"chosen", "rejected"} <= row.keys() and forms is not PREFERENCES:
    raise ValueError(f"preferences, which DPO and reward models learn from; no column {', '.join(first)} or {last}")
  hint = f". Rename one, such as rename={next(iter(row))}:{forms[0].columns[0]}" if row else ""
  raise ValueError(f"no column {', '.join(first)} or {last}; it has {has}{hint}")


def with_plain_text(value: Any) -> Any:
  """Returns a value with the parts of messages' contents, where they are lists of texts, joined.

  Raises:
    ValueError: For a part that is no text.

  >>> with_plain_text([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
  [{'role': 'user', 'content': 'Hi'}]
  """
  if not _is_messages(value):
    return value
  return [
    {**message, "content": _joined(message["content"])} if isinstance(message.get("content"), list) else message
    for message in value
  ]


def _joined(parts: Sequence[Any]) -> str:
  for part in parts:
    if not isinstance(part, str) and not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
      kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
      raise ValueError(f"a message has a part of type {kind!r}; text alone is read")
  return "".join(part if isinstance(part, str) else part["text"] for part in parts)
