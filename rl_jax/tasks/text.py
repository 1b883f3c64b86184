"""Between text and padded token arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from rl_jax.tasks.base import Row, Task
from rl_jax.tasks.files import is_chat
from rl_jax.tasks.reading import Reader, closing, prompt_tokens, row_options


class PromptBatch(NamedTuple):
  """Rows of a task as right-padded tokens.

  Attributes:
    rows: The task's rows.
    tokens: `[P, L]`, with L one of the sizes of `bucketed`.
    mask: `[P, L]`, True for real tokens.
    position: The index of the next row that was not drawn.
    skipped: Rows that were passed over because their prompt was too long.
  """

  rows: list[Row]
  tokens: np.ndarray
  mask: np.ndarray
  position: int
  skipped: int


def bucketed(length: int) -> int:
  """Returns `length` rounded up to one of four sizes between powers of two: few shapes mean few compiles.

  At most a fifth of the result is padding.

  >>> [bucketed(length) for length in (5, 9, 18, 100, 1000)]
  [5, 10, 20, 112, 1024]
  """
  step = 1 << max(length.bit_length() - 3, 0)
  return -(-length // step) * step


def pad(sequences: Sequence[Sequence[int]], pad_token: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns right-padded tokens and their mask.

  >>> pad([[5, 6], [7]], 0)[0].tolist()
  [[5, 6], [7, 0]]
  """
  length = bucketed(max(len(tokens) for tokens in sequences))
  padded = np.full((len(sequences), length), pad_token, np.int32)
  mask = np.zeros((len(sequences), length), bool)
  for row, tokens in enumerate(sequences):
    padded[row, : len(tokens)] = tokens
    mask[row, : len(tokens)] = True
  return padded, mask


class Ending(NamedTuple):
  """How completions end, and what a reward model reads there, as in the answers that it has learned from.

  Attributes:
    stops: Tokens that end a completion.
    own: Those of them that are no end of sequence, such as a task's line break.
    end: The end of sequence, which is read in their place; None where there is none.
    closing: What the chat template writes behind it.
  """

  stops: Sequence[int] = ()
  own: Sequence[int] = ()
  end: int | None = None
  closing: Sequence[int] = ()


NO_ENDING = Ending()


class Prompts(NamedTuple):
  """Where a run's prompts come from, as a model reads them, and what ends an answer; for rollouts and evaluation alike.

  Attributes:
    task: Rows and rewards.
    reader: How the model reads.
    stop_tokens: `[S]`, those that end a completion.
    max_prompt_tokens: Longer prompts are passed over, and counted.
    keep_special_tokens: Whether rewards and samples have special tokens as text.
  """

  task: Task
  reader: Reader
  stop_tokens: np.ndarray
  max_prompt_tokens: int
  keep_special_tokens: bool = False

  @property
  def tokenizer(self) -> Any:
    return self.reader.tokenizer

  def encode(self, row: Row) -> list[int]:
    """Returns the tokens of a row's prompt.

    Raises:
      ValueError: If the model cannot read it.
    """
    return prompt_tokens(self.reader, row["prompt"], row_options(row))

  def decode(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
    """Returns the texts of `[N, T]` completions, as rewards read them."""
    return decode(self.tokenizer, tokens, mask, keep_special_tokens=self.keep_special_tokens)

  @property
  def ending(self) -> Ending:
    """How completions end, for a reward model."""
    row, stops = self.task.row(0), self.stop_tokens.tolist()
    behind = closing(self.reader, row["prompt"], row_options(row)) if is_chat(row["prompt"]) else []
    return Ending(stops, [stop for stop in stops if stop not in self.reader.eos_tokens], self.reader.end, behind)

  def draw(self, position: int, count: int) -> PromptBatch:
    """Takes the next `count` rows of the task from `position` on.

    Raises:
      ValueError: If the first thousand prompts from `position` on are over the limit.
    """
    rows, encoded, skipped, start = [], [], 0, position
    while len(rows) < count:
      row = self.task.row(position)
      tokens = self.encode(row)
      position += 1
      if len(tokens) <= self.max_prompt_tokens:
        rows.append(row)
        encoded.append(tokens)
        continue
      skipped += 1
      if skipped >= 1000 and not rows:
        limit = f"max_prompt_tokens={self.max_prompt_tokens}"
        raise ValueError(f"task {self.task.name!r}: rows {start} to {position - 1} are over {limit}")
    return PromptBatch(rows, *pad(encoded, pad_token(self.tokenizer)), position, skipped)

  def held_out(self) -> PromptBatch:
    """Takes all held-out rows.

    Raises:
      ValueError: If no prompt is within the limit.
    """
    encoded = [(row, self.encode(row)) for row in self.task.evaluation]
    kept = [(row, tokens) for row, tokens in encoded if len(tokens) <= self.max_prompt_tokens]
    if not kept:
      limit = f"max_prompt_tokens={self.max_prompt_tokens}"
      raise ValueError(f"no held-out prompt of {self.task.name!r} is within {limit}")
    tokens = pad([tokens for _, tokens in kept], pad_token(self.tokenizer))
    return PromptBatch([row for row, _ in kept], *tokens, 0, len(encoded) - len(kept))


def make_prompts(
  task: Task,
  reader: Reader,
  *,
  stop: Sequence[str] = (),
  max_prompt_tokens: int = 512,
  keep_special_tokens: bool = False,
) -> Prompts:
  """Returns a task's prompts for a model. Where the rows have an end, all of them are read, and refused here or never.

  Args:
    task: Rows and rewards.
    reader: How the model reads.
    stop: Texts of one token that end a completion; the task's own by default.
    max_prompt_tokens: Longer prompts are passed over.
    keep_special_tokens: Whether rewards and samples have special tokens as text.

  Raises:
    ValueError: As `stop_tokens`, or for a prompt that the model cannot read, by its place.

  >>> from rl_jax import tasks
  >>> from rl_jax.models.presets import load
  >>> model = load("tiny")
  >>> drawn = make_prompts(tasks.load("arithmetic"), Reader(model.tokenizer, model.eos_tokens)).draw(0, 2)
  >>> drawn.tokens.shape[0], drawn.position, drawn.skipped
  (2, 2, 0)
  """
  prompts = Prompts(task, reader, stop_tokens(reader, stop or task.stop), max_prompt_tokens, keep_special_tokens)
  for place, row in track(task.rows, description="reading prompts", transient=True, disable=not task.rows):
    try:
      prompts.encode(row)
    except ValueError as error:
      raise ValueError(f"{place}: {error}") from None
  return prompts


def pad_token(tokenizer: Any) -> int:
  """Returns the tokenizer's padding token, or its end of sequence where it has none.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> pad_token(character_tokenizer("0123456789"))
  0
  """
  return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def one_token(tokenizer: Any, text: str, name: str) -> int:
  """Returns the token that a text is, after a letter or by itself; `name` says in the error what the text is for.

  A tokenizer that puts a space before everything, as SentencePiece does, has another token for a text by itself.

  Raises:
    ValueError: If it is not one token.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> one_token(character_tokenizer("ab."), ".", "stop text")
  5
  """
  before = tokenizer("a", add_special_tokens=False)["input_ids"]
  after = tokenizer("a" + text, add_special_tokens=False)["input_ids"]
  if after[: len(before)] == before and len(after) == len(before) + 1:
    return after[-1]
  alone = tokenizer(text, add_special_tokens=False)["input_ids"]
  if len(alone) == 1:
    return alone[0]
  raise ValueError(f"{name} {text!r} is {len(alone)} tokens of this tokenizer; it must be one")


def stop_tokens(reader: Reader, texts: Sequence[str] = ()) -> np.ndarray:
  """Returns the tokens that end a completion: the model's ends of sequence, and each of `texts`.

  Raises:
    ValueError: If a text is not one token, or nothing ends a completion.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> stop_tokens(Reader(character_tokenizer("ab."), (1,)), [".", "b"]).tolist()
  [1, 4, 5]
  """
  tokens = {*reader.eos_tokens, *(one_token(reader.tokenizer, text, "stop text") for text in texts)}
  if not tokens:
    raise ValueError("the model has no end-of-sequence token and the task no stop text")
  return np.asarray(sorted(tokens), np.int32)


def decode(tokenizer: Any, tokens: np.ndarray, mask: np.ndarray, *, keep_special_tokens: bool = False) -> list[str]:
  """Returns the texts of `[N, T]` completions, without special tokens unless they are to be kept.

  >>> from rl_jax.models.presets import character_tokenizer
  >>> decode(character_tokenizer("abc"), np.array([[3, 5, 1, 0]]), np.array([[True, True, True, False]]))
  ['ac']
  """
  return [
    tokenizer.decode(row[real], skip_special_tokens=not keep_special_tokens, clean_up_tokenization_spaces=False)
    for row, real in zip(tokens, mask, strict=True)
  ]


def as_replies(rows: Sequence[Row], texts: Sequence[str]) -> list[Any]:
  """Returns completions in the form of their prompts: text, or a list with one assistant message.

  >>> as_replies([{"prompt": [{"role": "user", "content": "Hi"}]}], ["Hello"])
  [[{'role': 'assistant', 'content': 'Hello'}]]
  """
  return [
    text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
    for row, text in zip(rows, texts, strict=True)
  ]
