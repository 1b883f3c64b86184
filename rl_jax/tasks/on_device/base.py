"""The contract of on-device tasks: prompts, verifiers and demonstrations as pure functions over a few characters.

A task is written for one problem and one answer; `sample`, `judge` and `demonstrate` map it over a batch. A character's
token is its place in `Task.characters`, after `<pad>`, `<eos>` and `<unk>`, as in `models.presets.character_tokenizer`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

PAD, EOS, UNKNOWN = 0, 1, 2
SPECIAL = 3  # tokens that are no characters


class Text(NamedTuple):
  """Tokens `[size]`, of which the first `length` are real."""

  tokens: Int[Array, " size"]
  length: Int[Array, ""]


class Answer(NamedTuple):
  """A completion as a verifier reads it: `length` tokens before the end of sequence, and whether there was one."""

  tokens: Int[Array, " T"]
  length: Int[Array, ""]
  terminated: Bool[Array, ""]


class Verdict(NamedTuple):
  """What a verifier says of an answer.

  Attributes:
    reward: What is learned from, in [0, 1].
    solved: Whether the answer is entirely right, the exact match that evaluation counts.
    step_rewards: `[T]`, the reward of each step at the token that ends it (a process reward); None where a task has no
      steps.
  """

  reward: Float[Array, "*batch"]
  solved: Bool[Array, "*batch"]
  step_rewards: Float[Array, "*batch T"] | None = None


class Task(NamedTuple):
  """Problems, verifier and demonstrations.

  Attributes:
    name: Name in tables and file names.
    characters: The vocabulary.
    prompt_length: L, the length of the longest prompt.
    max_new_tokens: T, long enough for every right answer and its end.
    draw: `key -> (prompt, data)`: one problem, and what the verifier must know of it.
    verify: `(data, answer) -> Verdict`.
    solution: `data -> Text`, a right answer, without the end of sequence.
    best_reward: Reward of a right answer.
    baseline: The success rate of the best answer that does not depend on the prompt.
  """

  name: str
  characters: str
  prompt_length: int
  max_new_tokens: int
  draw: Callable[[Array], tuple[Text, Any]]
  verify: Callable[[Any, Answer], Verdict]
  solution: Callable[[Any], Text]
  best_reward: float
  baseline: float

  @property
  def vocab_size(self) -> int:
    return SPECIAL + len(self.characters)


class Problems(NamedTuple):
  """Prompts `[n, L]`, right-padded, with their masks, and what the verifier must know of each."""

  prompts: Int[Array, "n L"]
  prompt_mask: Bool[Array, "n L"]
  data: Any


def sample(task: Task, key: Array, count: int) -> Problems:
  """Draws `count` problems.

  >>> from rl_jax.tasks.on_device import copying
  >>> sample(copying.load(), jax.random.key(0), 5).prompts.shape
  (5, 9)
  """
  prompts, data = jax.vmap(task.draw)(jax.random.split(key, count))
  return Problems(prompts.tokens, _real(prompts, task.prompt_length), data)


def judge(task: Task, data: Any, tokens: Int[Array, "n G T"], mask: Bool[Array, "n G T"]) -> Verdict:
  """Verifies G completions of each of n problems.

  Args:
    task: The task whose verifier to ask.
    data: What the verifier must know of the problems.
    tokens: Completions; the end of sequence, where there is one, is the last real token.
    mask: 1 for real tokens.

  >>> from rl_jax.tasks.on_device import copying
  >>> task = copying.load()
  >>> problems = sample(task, jax.random.key(0), 4)
  >>> tokens, mask = demonstrate(task, problems.data)
  >>> print(judge(task, problems.data, tokens[:, None], mask[:, None]).solved[:, 0])
  [ True  True  True  True]
  """
  count = jnp.sum(mask != 0, axis=-1)
  last = jnp.take_along_axis(tokens, jnp.maximum(count - 1, 0)[..., None], axis=-1)[..., 0]
  terminated = (count > 0) & (last == EOS)
  answers = Answer(tokens, count - terminated, terminated)
  return jax.vmap(jax.vmap(task.verify, in_axes=(None, 0)))(data, answers)


def demonstrate(task: Task, data: Any) -> tuple[Int[Array, "n T"], Bool[Array, "n T"]]:
  """Returns a right completion of each problem, end of sequence included, and its mask.

  >>> from rl_jax.tasks.on_device import stopping
  >>> task = stopping.load()
  >>> tokens, mask = demonstrate(task, sample(task, jax.random.key(0), 1).data)
  >>> decode(task, tokens, mask)
  ['aa']
  """

  def one(datum: Any) -> Text:
    return join([task.solution(datum), Text(jnp.array([EOS]), jnp.int32(1))], task.max_new_tokens)

  answers = jax.vmap(one)(data)
  return answers.tokens, _real(answers, task.max_new_tokens)


def decode(task: Task, tokens: Array, mask: Array) -> list[str]:
  """Returns texts, on the host, for rows `[n, T]`; the end of sequence is not shown, other specials are `?`.

  >>> from rl_jax.tasks.on_device import stopping
  >>> decode(stopping.load(), np.array([[3, 0, 4, 1]]), np.array([[1, 1, 1, 1]]))
  ['0?1']
  """
  symbols = np.array(["?", "", "?", *task.characters])
  return ["".join(symbols[row[real != 0]]) for row, real in zip(np.asarray(tokens), np.asarray(mask), strict=True)]


def encode(task: Task, text: str) -> list[int]:
  """Returns the tokens of a text, `<unk>` for characters that the task does not have.

  >>> from rl_jax.tasks.on_device import stopping
  >>> encode(stopping.load(), "0a!")
  [3, 14, 2]
  """
  return [SPECIAL + task.characters.index(c) if c in task.characters else UNKNOWN for c in text]


def symbol(characters: str, character: str) -> Text:
  """One fixed character as a text, to be joined with others."""
  return Text(jnp.array([SPECIAL + characters.index(character)]), jnp.int32(1))


def number(value: Array, size: int) -> Text:
  """A natural number in decimal digits, which are the first ten characters of the vocabulary.

  Args:
    value: A traced integer, at least 0.
    size: Digits of the largest number.

  >>> text = number(jnp.int32(307), 4)
  >>> print(text.tokens[:3] - SPECIAL, text.length)
  [3 0 7] 3
  """
  length = jnp.maximum(1, jnp.sum(value >= 10 ** np.arange(size)))
  place = jnp.maximum(length - 1 - jnp.arange(size), 0)
  return Text(SPECIAL + value // jnp.array(10 ** np.arange(size))[place] % 10, length)


def join(pieces: Sequence[Text], size: int) -> Text:
  """Puts texts one behind the other, with padding behind the last.

  >>> pair = join([Text(jnp.array([7, 8, 9]), jnp.int32(2)), Text(jnp.array([5]), jnp.int32(1))], 5)
  >>> print(pair.tokens, pair.length)
  [7 8 5 0 0] 3
  """
  place, start = jnp.arange(size), jnp.int32(0)
  tokens = jnp.full(size, PAD)
  for piece in pieces:
    own = jnp.clip(place - start, 0, piece.tokens.shape[0] - 1)
    tokens = jnp.where((place >= start) & (place < start + piece.length), piece.tokens[own], tokens)
    start = start + piece.length
  return Text(tokens, start)


def equals(answer: Answer, text: Text) -> Bool[Array, ""]:
  """Whether an answer stopped and is this text.

  >>> text = Text(jnp.array([5, 6]), jnp.int32(2))
  >>> [bool(equals(Answer(jnp.array([5, 6, end]), jnp.int32(2), jnp.bool_(end == EOS)), text)) for end in (EOS, 7)]
  [True, False]
  """
  return answer.terminated & (answer.length == text.length) & (matches(answer, text) == text.length)


def matches(answer: Answer, text: Text) -> Int[Array, ""]:
  """The number of places at which an answer and a text have the same token.

  >>> answer = Answer(jnp.array([5, 6, 7]), jnp.int32(3), jnp.bool_(False))
  >>> print(matches(answer, Text(jnp.array([5, 7]), jnp.int32(2))))
  1
  """
  size = min(answer.tokens.shape[0], text.tokens.shape[0])
  common = jnp.arange(size) < jnp.minimum(answer.length, text.length)
  return jnp.sum(common & (answer.tokens[:size] == text.tokens[:size]))


def is_number(answer: Answer) -> Bool[Array, ""]:
  """Whether an answer stopped and consists of one or more digits.

  >>> print(is_number(Answer(jnp.array([SPECIAL, EOS]), jnp.int32(1), jnp.bool_(True))))
  True
  """
  digit = (answer.tokens >= SPECIAL) & (answer.tokens < SPECIAL + 10)
  inside = jnp.arange(answer.tokens.shape[0]) < answer.length
  return answer.terminated & (answer.length > 0) & jnp.all(digit | ~inside)


def graded(answer: Answer, text: Text) -> Verdict:
  """1 for the right answer, else up to 1/2 for tokens in their places, by the longer one's length.

  >>> answer = Answer(jnp.array([5, 7, EOS]), jnp.int32(2), jnp.bool_(True))
  >>> verdict = graded(answer, Text(jnp.array([5, 6]), jnp.int32(2)))
  >>> print(verdict.reward, verdict.solved)
  0.25 False
  """
  solved = equals(answer, text)
  share = matches(answer, text) / jnp.maximum(jnp.maximum(answer.length, text.length), 1)
  return Verdict(jnp.where(solved, 1.0, 0.5 * share), solved)


def exact(answer: Answer, text: Text, *, format_reward: float) -> Verdict:
  """1 for the right number, `format_reward` for another one, else 0.

  >>> answer = Answer(jnp.array([5, EOS]), jnp.int32(1), jnp.bool_(True))
  >>> verdict = exact(answer, number(jnp.int32(3), 1), format_reward=0.1)
  >>> print(verdict.reward, verdict.solved)
  0.1 False
  """
  solved = equals(answer, text)
  return Verdict(jnp.where(solved, 1.0, format_reward * is_number(answer)), solved)


def at_least(minimum: int, **arguments: int) -> None:
  """Raises ValueError for an argument below the minimum.

  >>> at_least(1, digits=0)
  Traceback (most recent call last):
  ...
  ValueError: digits must be at least 1, got 0
  """
  for name, value in arguments.items():
    if value < minimum:
      raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _real(text: Text, size: int) -> Bool[Array, "n size"]:
  return jnp.arange(size)[None, :] < text.length[:, None]
