"""Conversations as lists of messages, and what is published in their place."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

_SPEAKERS = {
  "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
  "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
  "function": "tool", "observation": "tool",
}  # fmt: skip
_TURN = re.compile(r"\n\n(Human|Assistant):")


def user(text: Any) -> list[dict[str, Any]]:
  """Returns a conversation of one message of the user."""
  return [{"role": "user", "content": text}]


def assistant(text: Any) -> list[dict[str, Any]]:
  """Returns what an assistant answers."""
  return [{"role": "assistant", "content": text}]


def is_messages(value: Any) -> bool:
  """Whether something is a list of messages, whatever they say."""
  return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def words(value: Any) -> str:
  """Returns what text or messages say.

  >>> words([*user("Hi"), *assistant("Hello")])
  'Hi\\nHello'
  """
  if is_messages(value):
    return "\n".join(str(message.get("content") or "") for message in value)
  return value if isinstance(value, str) else ""


def asks(answer: Sequence[Message]) -> bool:
  """Whether an answer begins with words that are no answer."""
  return answer[0].get("role") in ("system", "user")


def asked(messages: Sequence[Message]) -> list[Any]:
  """Returns a conversation up to its last answer, which is left out.

  >>> asked([*user("Hi"), *assistant("Hello")])
  [{'role': 'user', 'content': 'Hi'}]
  """
  last = messages[-1].get("role") if messages and isinstance(messages[-1], Mapping) else None
  return list(messages[:-1]) if last == "assistant" else list(messages)


def conversation(prompt: Sequence[Message], answer: Sequence[Message]) -> tuple[list[Message], int]:
  """Returns a prompt with an answer that may say some of it again, or more, and where the prompt ends.

  >>> conversation(user("Hi"), [*user("Hi"), *assistant("Hello")])
  ([{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}], 1)
  """
  said, again = ([(each.get("role"), str(each.get("content")).strip()) for each in part] for part in (prompt, answer))
  if not asks(answer):
    return [*prompt, *answer], len(prompt)
  for size in range(min(len(said), len(again)), 0, -1):
    if said[-size:] == again[:size]:
      return [*prompt[:-size], *answer], len(prompt)
  for end in range(len(said) + 1, len(again) + 1):
    if again[end - len(said) : end] == said:
      return list(answer), end
  return [*prompt, *answer], len(prompt)


def of_turns(turns: Sequence[Message]) -> list[dict[str, Any]]:
  """Returns ShareGPT's turns as messages.

  >>> of_turns([{"from": "human", "value": "Hi"}])
  [{'role': 'user', 'content': 'Hi'}]
  """
  found = []
  for turn in turns:
    if turn.get("from") is None:  # some have messages in this column
      found.append({name: value for name, value in turn.items() if value is not None or name == "content"})
      continue
    if (speaker := str(turn["from"]).lower()) not in _SPEAKERS:
      raise ValueError(f"a turn of conversations is from {turn['from']!r}, none of {', '.join(_SPEAKERS)}")
    others = {name: value for name, value in turn.items() if name not in ("from", "value")}
    found.append({**others, "role": _SPEAKERS[speaker], "content": turn["value"]})
  return found


def of_dialogue(text: str) -> list[dict[str, Any]]:
  """Returns a text of HH-RLHF, `\\n\\nHuman: ...\\n\\nAssistant: ...`, as messages.

  >>> of_dialogue("\\n\\nHuman: Hi\\n\\nAssistant: Hello")
  [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
  """
  _, *parts = _TURN.split(text)
  return [
    {"role": _SPEAKERS[speaker.lower()], "content": said.strip()}
    for speaker, said in zip(parts[::2], parts[1::2], strict=True)
  ]


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
  return [_message(each) for each in value] if is_messages(value) else value


def _parsed(text: str) -> Any:
  """The messages that a text is JSON of, or the text."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return text
  forms = ({"role", "content"}, {"from", "value"})
  said = is_messages(value) and all(any(form <= each.keys() for form in forms) for each in value)
  return value if said else text


def _message(message: Message) -> dict[str, Any]:
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
