"""Forms of rows as they are published: what stands in which column is recognised by the columns that there are.

A form makes of a row what the rest of the library reads: prompts with their other columns, demonstrations, or
preferences. Its name is told once, when rows are read.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

_SPEAKERS = {
  "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
  "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
  "function": "tool", "observation": "tool",
}  # fmt: skip
_ASKED_ABOUT = ("context", "passage", "choices", "options")
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
  """Returns Alpaca's instruction with its input, or Dolly's with its context.

  >>> instruction({"instruction": "Add.", "input": "1, 2"})
  'Add.\\n\\n1, 2'
  """
  parts = [row["instruction"]]
  for name in ("input", "context"):
    value = row.get(name)
    if value is not None and value != "" and value == value:  # tables have NaN where nothing is
      parts.append(value)
  if wrong := [part for part in parts if not isinstance(part, str)]:
    raise ValueError(f"instruction and input must be text, got {wrong[0]!r:.80}")
  return "\n\n".join(parts)


def turns(row: Row) -> list[dict[str, Any]]:
  """Returns ShareGPT's conversation as messages.

  >>> turns({"conversations": [{"from": "human", "value": "Hi"}]})
  [{'role': 'user', 'content': 'Hi'}]
  """
  found = []
  for turn in row["conversations"]:
    if turn.get("from") is None:  # some have messages in this column
      found.append({name: value for name, value in turn.items() if value is not None or name == "content"})
      continue
    if (speaker := str(turn["from"]).lower()) not in _SPEAKERS:
      raise ValueError(f"a turn of conversations is from {turn['from']!r}, none of {', '.join(_SPEAKERS)}")
    found.append({**without(turn, "from", "value"), "role": _SPEAKERS[speaker], "content": turn["value"]})
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


def _pair(row: Row) -> dict[str, Any]:
  """A prompt and two answers, either of which may say the prompt again: what both begin with is the prompt then."""
  prompt, answers = row["prompt"], [row["chosen"], row["rejected"]]
  if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
    if not prompt or not all(answer.startswith(prompt) for answer in answers):
      return dict(row)
    if prompt.startswith("\n\nHuman:"):
      return _dialogues(without(row, "prompt"))
    return {**row, **{name: row[name][len(prompt) :] for name in ("chosen", "rejected")}}
  if not all(_is_messages(answer) for answer in answers):
    return dict(row)
  if isinstance(prompt, str):
    said = [[str(each.get("content")).strip() for each in answer] for answer in answers if _asks(answer)]
    if any(prompt.strip() not in each for each in said):
      raise ValueError("chosen and rejected are conversations in which the prompt is not said")
    prompt = user(prompt)
  if not any(_asks(answer) for answer in answers):
    return {**row, "prompt": prompt}
  chosen, rejected = (conversation(prompt, answer)[0] for answer in answers)
  return {**without(row, "prompt"), "chosen": chosen, "rejected": rejected}


def _single(row: Row, name: str = "completion") -> dict[str, Any]:
  """A prompt and an answer, which may say the prompt again."""
  if not (_is_messages(row["prompt"]) and _is_messages(row[name])):
    return dict(row)
  whole, end = conversation(row["prompt"], row[name])
  return {**row, "prompt": whole[:end], name: whole[end:]}


def conversation(prompt: Sequence[Row], answer: Sequence[Row]) -> tuple[list[Row], int]:
  """Returns a prompt with an answer that may say some of it again, or more, and where the prompt ends.

  >>> conversation(user("Hi"), [*user("Hi"), *assistant("Hello")])
  ([{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}], 1)
  """
  said, again = ([(each.get("role"), str(each.get("content")).strip()) for each in part] for part in (prompt, answer))
  if not _asks(answer):
    return [*prompt, *answer], len(prompt)
  for size in range(min(len(said), len(again)), 0, -1):
    if said[-size:] == again[:size]:
      return [*prompt[:-size], *answer], len(prompt)
  for end in range(len(said) + 1, len(again) + 1):
    if again[end - len(said) : end] == said:
      return list(answer), end
  return [*prompt, *answer], len(prompt)


def _asks(answer: Sequence[Row]) -> bool:
  return answer[0].get("role") in ("system", "user")


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
    found["prompt"] = user(row["prompt"])
    for name in ("completion", "single", "chosen", "rejected"):
      if isinstance(row.get(name), str):
        found[name] = assistant(row[name])
    if isinstance(row.get("answers"), list):
      found["answers"] = [assistant(each) if isinstance(each, str) else each for each in row["answers"]]
  whole = ("prompt",) if found.get("prompt") is not None else ("messages", "chosen", "rejected")
  for name in whole:
    if _is_messages(found.get(name)) and found[name][0].get("role") != "system":
      found[name] = [{"role": "system", "content": said}, *found[name]]
  return found


def _instructed(row: Row) -> list[dict[str, Any]]:
  """Alpaca's instruction as chat, behind what was said before."""
  before = [[*user(asked), *assistant(said)] for asked, said in row.get("history") or ()]
  return [*(message for pair in before for message in pair), *user(instruction(row))]


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
    lambda row: {**without(row, "instruction", "input", "history"), "prompt": _instructed(row)},
  ),
)
TEXTS = (Form("plain text", ("text",), dict),)
DEMONSTRATIONS = (
  Form("conversations", ("messages",), dict),
  Form("prompts and completions", ("prompt", "completion"), _single),
  Form("ShareGPT's conversations", ("conversations",), lambda row: {**row, "messages": turns(row)}),
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
  prompt = _instructed(row) if asked == "instruction" else user(row[asked])
  return {**without(row, "label"), "prompt": prompt, "completion": assistant(row[answer])}


def read(row: Any, forms: Sequence[Form]) -> tuple[str, dict[str, Any]]:
  """Returns the name of the first form that a row has, and the row as the library reads it.

  Raises:
    ValueError: If it has none, or cannot be read as the one that it has.

  >>> read({"question": "1 + 1?"}, PROMPTS)
  ('questions, as chat', {'prompt': [{'role': 'user', 'content': '1 + 1?'}]})
  """
  form = recognise(row, forms)
  try:
    return form.name, with_system(form.convert({name: plain(value) for name, value in row.items()}))
  except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
    raise ValueError(f"not read as {form.name} ({error})") from None


def not_shown(row: Row, converted: Row) -> list[str]:
  """Returns the columns that questions are asked about, and which a row as it is read does not hold.

  >>> row = {"question": "When?", "context": "In May.", "answer": "May"}
  >>> not_shown(row, read(row, PROMPTS)[1])
  ['context']
  """
  shown = str([converted.get(name) for name in ("prompt", "messages", "text", "chosen")])
  return [name for name in _ASKED_ABOUT if row.get(name) and str(row[name]) not in shown]


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
    if all(row.get(name) not in (None, "") for name in form.columns):
      return form
  for form in forms:  # what is empty is told of by whoever reads it
    if all(row.get(name) is not None for name in form.columns):
      return form
  *first, last = [" and ".join(form.columns) for form in forms]
  has = ", ".join(f"{name} (null)" if value is None else str(name) for name, value in row.items()) or "none"
  if {"chosen", "rejected"} <= row.keys() and forms is not PREFERENCES:
    raise ValueError(f"preferences, which DPO and reward models learn from; no column {', '.join(first)} or {last}")
  hint = f". Rename one, such as rename={next(iter(row))}:{forms[0].columns[0]}" if len(row) == 1 else ""
  raise ValueError(f"no column {', '.join(first)} or {last}; it has {has}{hint}")


def plain(value: Any) -> Any:
  """Returns a column's value with messages in the form that templates read.

  Messages may stand as JSON in a text, as a .csv has them; contents may be lists of texts, which are joined; and roles
  may be ShareGPT's.

  Raises:
    ValueError: For a part that is no text.

  >>> plain([{"role": "human", "content": [{"type": "text", "text": "Hi"}]}])
  [{'role': 'user', 'content': 'Hi'}]
  """
  value = _parsed(value) if isinstance(value, str) and re.match(r"\s*\[\s*\{", value) else value
  return [_message(each) for each in value] if _is_messages(value) else value


def _parsed(text: str) -> Any:
  """The messages that a text is JSON of, or the text."""
  try:
    value = json.loads(text)
  except ValueError:
    return text
  return value if _is_messages(value) and all({"role", "content"} <= each.keys() for each in value) else text


def _message(message: Row) -> dict[str, Any]:
  found = dict(message)
  if isinstance(found.get("content"), list):
    found["content"] = _joined(found["content"])
  if found.get("role") in ("human", "gpt", "model", "Human", "Assistant", "User"):
    found["role"] = _SPEAKERS[found["role"].lower()]
  return found


def _joined(parts: Sequence[Any]) -> str:
  for part in parts:
    if not isinstance(part, str) and not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
      kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
      raise ValueError(f"a message has a part of type {kind!r}; text alone is read")
  return "".join(part if isinstance(part, str) else part["text"] for part in parts)
