"""How a model reads text and conversations: where a prompt ends, which tokens answer it, and where an answer ends.

A policy sees a prompt's tokens, and goes on until an end of sequence. Demonstrations and preferences are cut in the
same way: the answer's tokens follow the prompt that the sampler would see, up to the first end that it would stop at.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rl_jax.errors import reason

SPLIT = "whose prompt and answer have other tokens together than apart: tokenized apart"
CHANGED = "whose chat template rewrites what was said before, or drops the answer: left out"
LAST = "whose chat template rewrites earlier replies of an answer: the last reply alone is learned"
DATE = datetime.date(2024, 7, 26)  # what Llama 3's templates fall back on

_MARK = "\u2063\u2064\u2063"  # invisible separators: stands for the words of a message while its surroundings are read


class Reader(NamedTuple):
  """How a model reads.

  Attributes:
    tokenizer: A `transformers` tokenizer.
    eos_tokens: All ends of sequence that the model's files name; a policy stops at any of them.
    date: The day that chat templates which ask for it are told: with today's, no run could be repeated.
    vocab_size: How many tokens the model has; a tokenizer may have more, such as one that stands for an image. Not
      checked where nothing is given.
  """

  tokenizer: Any
  eos_tokens: tuple[int, ...]
  date: datetime.date = DATE
  vocab_size: int | None = None

  @property
  def end(self) -> int | None:
    """The end of sequence that closes an answer which has none; None where the model has no end of sequence."""
    own = self.tokenizer.eos_token_id
    return own if own in self.eos_tokens else min(self.eos_tokens, default=None)


class Example(NamedTuple):
  """Tokens, and which of them the policy is to choose: labels to learn."""

  tokens: list[int]
  labels: list[bool]


class Answered(NamedTuple):
  """A prompt with its answer, which may hold words of others between the policy's own.

  Attributes:
    prompt: Tokens of the prompt.
    answer: What follows it; empty where nothing can be learned.
    problem: `SPLIT`, `CHANGED`, `LAST`, or "".
  """

  prompt: list[int]
  answer: Example
  problem: str = ""


class _Turn(NamedTuple):
  """One reply in a conversation: the text that the policy continues, and the text once it has replied."""

  before: str
  after: str
  reply: Mapping[str, Any]
  messages: Sequence[Mapping[str, Any]]  # up to the reply
  learned: bool


def until_end(tokens: Sequence[int], reader: Reader) -> list[int]:
  """Returns an answer's tokens up to its first end of sequence, which is put there if there is none.

  This is the one place that says where an answer ends: a policy stops there too.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> reader = Reader(character_tokenizer("0123456789|"), (1, 13))
  >>> until_end([3, 4], reader), until_end([3, 13, 4, 1], reader)
  ([3, 4, 1], [3, 13])
  """
  for place, token in enumerate(tokens):
    if token in reader.eos_tokens:
      return list(tokens[: place + 1])
  return [*tokens] if reader.end is None else [*tokens, reader.end]


def text_tokens(reader: Reader, text: str) -> list[int]:
  """Returns the tokens of plain text, with the beginning of sequence that the tokenizer puts before it.

  A beginning that the text itself has, because a template rendered it, is not put there twice; an end of sequence that
  the tokenizer would put behind it is left out: a policy would answer after the end of the text.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> text_tokens(Reader(character_tokenizer("0123456789"), (1,)), "42")
  [7, 5]
  """
  plain = plain_tokens(reader, text)
  whole = _known(reader, reader.tokenizer(text)["input_ids"])
  for start in range(len(whole) - len(plain) + 1):
    if whole[start : start + len(plain)] == plain:
      beginning = whole[:start]
      there = next(size for size in range(start, -1, -1) if beginning[start - size :] == plain[:size])
      return beginning[: start - there] + plain
  while len(whole) > 1 and whole[-1] in reader.eos_tokens and whole[-1:] != plain[-1:]:
    whole.pop()
  return whole


def prompt_tokens(reader: Reader, prompt: Any, options: Mapping[str, Any] = {}) -> list[int]:
  """Returns the tokens of a prompt: text as it is, chat messages through the chat template, ready to be answered.

  A chat that ends with words of the assistant is continued.

  Args:
    reader: How the model reads.
    prompt: Text, or a list of chat messages.
    options: What the template is told besides: `row_options` of the prompt's row.

  Raises:
    ValueError: If the prompt is empty, or is a chat that the tokenizer has no chat template for, or refuses.

  >>> from rl_jax.models.presets import load
  >>> reader = Reader(load("tiny").tokenizer, (1,))
  >>> reader.tokenizer.decode(prompt_tokens(reader, [{"role": "user", "content": "Hi"}]))
  'user: Hi\\nassistant: '
  >>> begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Wel"}]
  >>> reader.tokenizer.decode(prompt_tokens(reader, begun))
  'user: Hi\\nassistant: Wel'
  """
  if isinstance(prompt, str):
    tokens = text_tokens(reader, prompt)
  elif not prompt:
    raise ValueError("the prompt holds no messages")
  else:
    tokens = plain_tokens(reader, _prompt_text(reader, prompt, options))
  if not tokens:
    raise ValueError(f"prompt {prompt!r} has no tokens")
  return tokens


def closing(reader: Reader, prompt: Sequence[Any], options: Mapping[str, Any] = {}) -> list[int]:
  """Returns the tokens that the chat template writes behind the end of a reply to a chat, such as a line break.

  >>> from rl_jax.models.presets import load
  >>> closing(Reader(load("tiny").tokenizer, (1,)), [{"role": "user", "content": "Hi"}])
  []
  """
  said = [message for message in prompt if not (_is_reply(message) and message is prompt[-1])]
  text = _render(reader, [*said, {"role": "assistant", "content": _MARK}], False, options)
  if _MARK not in text:
    return []
  tokens = _inner(reader, text.rpartition(_MARK)[2])
  return tokens[len(until_end(tokens, reader)) :]


def row_options(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a row tells the chat template besides the messages: its `tools` and its `chat_template_kwargs`.

  Raises:
    ValueError: If they are of another form.

  >>> row_options({"prompt": "Hi", "tools": None, "chat_template_kwargs": {"enable_thinking": False}})
  {'enable_thinking': False}
  """
  options = dict(_structure(row, "chat_template_kwargs", Mapping) or {})
  if (tools := _structure(row, "tools", Sequence)) is not None:
    options["tools"] = list(tools) or None
  return _without_none(options)


def _structure(row: Mapping[str, Any], name: str, kind: type) -> Any:
  """A column that is a structure, or JSON of it, as data sets keep what differs from row to row."""
  value = row.get(name) or None  # a .csv has empty cells
  try:
    value = json.loads(value) if isinstance(value, str) else value
  except ValueError:
    pass
  if value is not None and (isinstance(value, str) or not isinstance(value, kind)):
    raise ValueError(f"column {name!r} must be a {'list' if kind is Sequence else 'mapping'}, or JSON of one")
  return value


def answered(reader: Reader, prompt: Any, answer: Any, options: Mapping[str, Any] = {}) -> Answered:
  """Returns the tokens of a prompt and of its answer, which ends where the policy would.

  Text is tokenized as one; where the answer's beginning joins the prompt's end in one token, the two are tokenized
  apart, as a model that continues the prompt would see them. Of an answer in messages the assistant's words are labels,
  and what others say in between is not; where the template rewrites earlier replies, the last one alone is a label,
  after what the policy would see.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> answered(Reader(character_tokenizer("0123456789"), (1,)), "42", "7")
  Answered(prompt=[7, 5], answer=Example(tokens=[10, 1], labels=[True, True]), problem='')
  """
  if isinstance(prompt, str):
    return _answered_text(reader, prompt, answer)
  last = max((place for place, message in enumerate(answer) if _is_reply(message)), default=-1)
  turns = _turns(reader, prompt, list(answer)[: last + 1], options)
  if not turns:
    raise ValueError("the answer holds no message of the assistant")
  start = plain_tokens(reader, turns[0].before)
  if turns[0].messages != list(prompt):  # others speak first: their words are no part of the prompt
    start = plain_tokens(reader, _render(reader, prompt, False, options))
  one, problem = _joined(reader, turns, options), ""
  if len(turns) > 1 and not _begins(one, start):
    start, problem = plain_tokens(reader, _render(reader, prompt, False, options)), LAST
    one = _joined(reader, turns[-1:], options)
  if one is None or not _begins(one, start):
    return Answered(start, Example([], []), CHANGED)
  return Answered(start, Example(one.tokens[len(start) :], one.labels[len(start) :]), problem)


def _begins(example: Example | None, start: Sequence[int]) -> bool:
  return example is not None and example.tokens[: len(start)] == start


def _answered_text(reader: Reader, prompt: str, answer: str) -> Answered:
  start = prompt_tokens(reader, prompt)
  whole, problem = text_tokens(reader, prompt + answer), ""
  follows = whole[len(start) :]
  if whole[: len(start)] != start:
    follows, problem = _inner(reader, answer), SPLIT
  tokens = until_end(follows, reader)
  return Answered(start, Example(tokens, [True] * len(tokens)), problem)


def whole(reader: Reader, prompt: Any, answer: Any, options: Mapping[str, Any] = {}) -> list[int]:
  """Returns the tokens of a prompt with its answer as one text, for whoever judges it.

  Of a chat it is all that the template writes; behind text there is an end of sequence.

  >>> from rl_jax.models.presets import load
  >>> reader = Reader(load("tiny").tokenizer, (1,))
  >>> said = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello"}]
  >>> reader.tokenizer.decode(whole(reader, *said))
  'user: Hi\\nassistant: Hello\\n'
  """
  if isinstance(prompt, str):
    start, (tokens, _), _ = _answered_text(reader, prompt, answer)
    return [*start, *tokens]
  said = [*prompt, *answer]
  if _is_reply(prompt[-1]):
    said = [*prompt[:-1], {**prompt[-1], "content": _words(prompt[-1]) + _words(answer[0])}, *answer[1:]]
  return plain_tokens(reader, _render(reader, said, False, options))


def conversation(
  reader: Reader, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] = {}
) -> tuple[list[Example], str]:
  """Returns a conversation with the assistant's words as labels, and what was wrong, or "".

  One example where each reply only adds to what was said; where the template rewrites earlier turns, such as their
  thoughts, one a reply, each after what the policy would see. A message with the weight 0 is not learned.

  >>> from rl_jax.models.presets import load
  >>> reader = Reader(load("tiny").tokenizer, (1,))
  >>> said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
  >>> (example,), _ = conversation(reader, [{"role": role, "content": words} for role, words in said])
  >>> reader.tokenizer.decode([t for t, learned in zip(example.tokens, example.labels) if learned])
  'b\\nd\\n<eos>'
  """
  first = first_answer(messages)
  if first is None:
    raise ValueError("messages holds none of the assistant that answers")
  turns = _turns(reader, list(messages[:first]), list(messages[first:]), options)
  one = _joined(reader, turns, options)
  if one is not None:
    return ([one] if any(one.labels) else []), ""
  each = [_joined(reader, [turn], options) for turn in turns if turn.learned]
  found = [example for example in each if example is not None]
  return found, CHANGED if len(found) < len(each) else ""


def first_answer(messages: Sequence[Mapping[str, Any]]) -> int | None:
  """Returns the place of the first message of the assistant that answers: one that opens a conversation does not.

  >>> first_answer([{"role": role} for role in ("system", "assistant", "user", "assistant")])
  3
  """
  others = [place for place, message in enumerate(messages) if not _is_reply(message)]
  asked = next((place for place in others if messages[place]["role"] == "user"), min(others, default=len(messages)))
  return next((place for place in range(asked, len(messages)) if _is_reply(messages[place])), None)


def _turns(
  reader: Reader, prompt: Sequence[Mapping[str, Any]], answer: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> list[_Turn]:
  """The replies in an answer. Where the prompt ends with the assistant's words, the first one continues them."""
  continued = bool(prompt) and bool(answer) and _is_reply(prompt[-1]) and _is_reply(answer[0])
  said = list(prompt)
  turns = []
  for place, message in enumerate(answer):
    if _is_reply(message):
      if continued and place == 0:
        before = _prompt_text(reader, said, options)
        whole = [*said[:-1], {**said[-1], "content": _words(said[-1]) + _words(message)}]
      else:
        before, whole = _render(reader, said, True, options), [*said, message]
      after = _render(reader, whole, False, options)
      turns.append(_Turn(before, after, message, list(said), message.get("weight") != 0))
      said = whole
    else:
      said = [*said, message]
  return turns


def _joined(reader: Reader, turns: Sequence[_Turn], options: Mapping[str, Any]) -> Example | None:
  """One example of all replies, or None where the tokens of one are not those of the next one's beginning."""
  tokens, labels, follows, ended = list[int](), list[bool](), list[int](), list[int]()
  for turn in turns:
    before = plain_tokens(reader, turn.before)
    if before[: len(tokens)] != tokens:
      return None
    reply = _reply_tokens(reader, turn, before, options)
    if reply is None:
      return None
    follows, ended = reply, until_end(reply, reader)
    learned = min(len(ended), len(follows)) if turn.learned else 0
    labels += [False] * (len(before) - len(tokens)) + [place < learned for place in range(len(follows))]
    tokens = [*before, *follows]
  start = len(tokens) - len(follows)
  return Example([*tokens[:start], *ended], [*labels, turns[-1].learned][: start + len(ended)])


def _reply_tokens(reader: Reader, turn: _Turn, before: Sequence[int], options: Mapping[str, Any]) -> list[int] | None:
  """The tokens that follow once the policy has replied, what the template puts behind its end included."""
  silent = {key: value for key, value in turn.reply.items() if key != "tool_calls"}
  if turn.reply.get("tool_calls") and _render(reader, [*turn.messages, silent], False, options) == turn.after:
    return None  # the template does not say which tool was called
  if turn.after.startswith(turn.before) and _words(turn.reply).strip() in turn.after[len(turn.before) :]:
    whole = plain_tokens(reader, turn.after)
    if whole[: len(before)] == list(before):
      return whole[len(before) :]
    return _inner(reader, turn.after[len(turn.before) :])
  # The template rewrites what it asked to be continued, or leaves a part of the reply out: the reply's own words then,
  # and what a message is closed with.
  marked = _render(reader, [*turn.messages, {**turn.reply, "content": _MARK}], False, options)
  if _MARK not in marked or not _words(turn.reply):
    return None
  opening, _, closing = marked.rpartition(_MARK)
  words = _without_opening(turn.before, _words(turn.reply))
  return _inner(reader, _space_between(turn.before, opening) + words + closing)


def _space_between(before: str, opening: str) -> str:
  """The white space that a template writes behind the prompt, before the reply's words."""
  ends = [text.rstrip() for text in (before, opening)]
  if ends[0][-4:] != ends[1][-4:]:
    return ""
  asked, written = (text[len(end) :] for text, end in zip((before, opening), ends, strict=True))
  return written.removeprefix(asked)


def _without_opening(before: str, words: str) -> str:
  """Words without the tag that the prompt ends with, such as the `<think>` that opens a reply's thoughts."""
  tag = re.search(r"<[^<>]+>\s*$", before)
  if tag is None or not words.lstrip().startswith(tag[0].strip()):
    return words
  after = words.lstrip().removeprefix(tag[0].strip())
  # The prompt has written the line break behind the tag.
  return after.lstrip() if tag[0].strip() != tag[0] else after


def _is_open(words: str, template: str) -> bool:
  """Whether words begin with a tag that the template writes too, such as `<think>`, and do not close it."""
  tag = re.match(r"\s*<([^<>/\s]+)>", words)
  return tag is not None and f"<{tag[1]}>" in template and f"</{tag[1]}>" not in words


def _is_reply(message: Mapping[str, Any]) -> bool:
  return message["role"] == "assistant"


def _words(message: Mapping[str, Any]) -> str:
  return message.get("content") or ""


def _prompt_text(reader: Reader, prompt: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
  """The text of a chat that is to be answered, or continued where it ends with the assistant's words."""
  if not _is_reply(prompt[-1]):
    return _render(reader, prompt, True, options)
  last = prompt[-1]
  marked = _render(reader, [*prompt[:-1], {**last, "content": _words(last) + _MARK}], False, options)
  begun = marked.rpartition(_MARK)[0]
  continues = _MARK in marked and _words(last).strip() in begun
  if continues and not _is_open(_words(last), reader.tokenizer.chat_template):
    return begun
  # A template that drops thoughts, or closes empty ones before those that are not closed yet: the words stand behind
  # what asks for a reply, as a policy would have written them.
  asked = _render(reader, prompt[:-1], True, options)
  asks = _words(last) and asked != _render(reader, prompt[:-1], False, options)
  if not asks and continues:
    return begun
  if not asks:
    raise ValueError(f"the model's chat template drops the assistant's words: they cannot be continued in {prompt!r}")
  return asked + _without_opening(asked, _words(last))


def _inner(reader: Reader, text: str) -> list[int]:
  """The tokens of text in the middle of a text: SentencePiece puts a space before the first word of every text."""
  before, after = plain_tokens(reader, "\n"), plain_tokens(reader, "\n" + text)
  return after[len(before) :] if after[: len(before)] == before else plain_tokens(reader, text)


def plain_tokens(reader: Reader, text: str) -> list[int]:
  """Returns the tokens of text as it stands.

  Raises:
    ValueError: If the model has no such token.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> plain_tokens(Reader(character_tokenizer("0123456789"), (1,)), "42")
  [7, 5]
  """
  return _known(reader, reader.tokenizer(text, add_special_tokens=False)["input_ids"])


def _known(reader: Reader, tokens: Sequence[int]) -> list[int]:
  if reader.vocab_size is not None and tokens and (last := max(tokens)) >= reader.vocab_size:
    shown = reader.tokenizer.convert_ids_to_tokens(last)
    raise ValueError(f"the text holds {shown!r}, token {last}, and the model has {reader.vocab_size} tokens")
  return list(tokens)


def _render(reader: Reader, messages: Sequence[Any], reply: bool, options: Mapping[str, Any]) -> str:
  """The text of a chat, with `reply` up to where the assistant's answer begins."""
  if reader.tokenizer.chat_template is None:
    raise ValueError("the prompt is a list of chat messages, but this model's tokenizer has no chat template")
  template = reader.tokenizer.get_chat_template(None, options.get("tools"))
  # Files of columns fill up what a message does not have; a template takes a key that is there for one that is meant.
  known = [{"content": "", **_without_none(message)} for message in messages]
  options = _without_none(options)
  try:
    return reader.tokenizer.apply_chat_template(
      known, chat_template=_dated(template, reader.date), add_generation_prompt=reply, tokenize=False, **options
    )
  except Exception as error:  # a template's own, and those of what it calls
    raise ValueError(f"the model's chat template refuses {list(messages)!r}: {reason(error)}") from None


def _without_none(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _without_none(part) for key, part in value.items() if part is not None}
  return [_without_none(part) for part in value] if isinstance(value, list | tuple) else value


@functools.cache
def _dated(template: str, date: datetime.date) -> str:
  """The template with a date of its own in place of today's, which `transformers` would tell it."""
  if "strftime_now" not in template:
    return template
  codes = ("%-d", "%-m", *(f"%{letter}" for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"), "%%")
  filters = "".join(f" | replace({code!r}, {date.strftime(code)!r})" for code in codes)
  return f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}{{{{ '' }}}}{template}"
