"""Any reasoning-gym dataset by name, with its own scorer.

Reference: Z. Stojanovski et al., "Reasoning Gym", arXiv:2505.24760.
"""

import functools
from collections.abc import Sequence
from typing import Any

from rl_jax.tasks.base import Row, Task
from rl_jax.tasks.rewards import Reward

_INSTRUCTION = "Answer with the final answer alone, between <answer> and </answer>."
_TRAIN_SIZE = 20_000  # most datasets make a row when it is asked for, but some make all of them at once


def load(name: str, *, evaluation_size: int = 64, seed: int = 0, chat: bool = True, **options: Any) -> Task:
  """Returns the task of a reasoning-gym dataset.

  Args:
    name: The dataset's name, such as "chain_sum"; `reasoning_gym.factory.DATASETS` lists them.
    evaluation_size: Held-out problems, from another seed. A dataset with few different problems may repeat some.
    seed: Seed of the problems. Training comes round to the first problem after 20,000.
    chat: Whether a prompt is a chat message, or plain text for models without a chat template.
    **options: Options of the dataset, such as `min_terms=2`.

  Raises:
    ValueError: If reasoning-gym is not installed, or knows no such dataset or option.

  >>> task = load("chain_sum", evaluation_size=1, chat=False, min_terms=2, max_terms=2)
  >>> entry = task.row(0)["entry"]
  >>> task.solved(completions=[f"<answer>{entry['answer']}</answer>"], entry=[entry])
  [True]
  """
  try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
    from reasoning_gym.utils import extract_answer
  except ImportError:
    raise ValueError("reasoning-gym tasks need reasoning-gym: pip install 'rl-jax[tasks]'") from None
  if not isinstance(evaluation_size, int) or evaluation_size < 1:
    raise ValueError(f"evaluation_size must be a positive integer, got {evaluation_size!r}")
  if name not in DATASETS:
    raise ValueError(f"unknown reasoning-gym dataset {name!r}; there are {', '.join(sorted(DATASETS))}")
  try:
    train = reasoning_gym.create_dataset(name, size=_TRAIN_SIZE, seed=seed, **options)
    held_out = reasoning_gym.create_dataset(name, size=evaluation_size, seed=seed + 2**30, **options)
  except (TypeError, AssertionError) as error:
    raise ValueError(f"reasoning-gym dataset {name!r}: {error}") from None

  def to_row(entry: dict) -> Row:
    text = f"{entry['question']}\n{_INSTRUCTION}"
    return {"prompt": [{"role": "user", "content": text}] if chat else text + "\n", "entry": entry}

  def grade(completion: Any, entry: dict) -> float:
    return _grade(train, extract_answer, completion, entry)

  def reasoning_gym_score(completions: Sequence[Any], entry: Sequence[dict], **_) -> list[float]:
    return [grade(*pair) for pair in zip(completions, entry, strict=True)]

  def solved(completions: Sequence[Any], entry: Sequence[dict], **_) -> list[bool]:
    return [grade(*pair) >= 1 for pair in zip(completions, entry, strict=True)]

  evaluation = [to_row(held_out[index]) for index in range(evaluation_size)]
  questions = {row["entry"]["question"] for row in evaluation}

  @functools.lru_cache(maxsize=1024)
  def row(index: int) -> Row:
    """The problem at `index`, or the next one that is not held out."""
    for place in range(index, index + _TRAIN_SIZE):
      if (entry := train[place % _TRAIN_SIZE])["question"] not in questions:
        return to_row(entry)
    raise ValueError(f"reasoning-gym dataset {name!r}: all its problems are held out; use a smaller evaluation_size")

  return Task(
    name, row, evaluation, (Reward(reasoning_gym_score, 1.0, "score"),), solved, lambda text: str(extract_answer(text))
  )


def _grade(dataset: Any, extract_answer: Any, completion: Any, entry: dict) -> float:
  text = completion if isinstance(completion, str) else completion[-1]["content"]
  try:
    return float(dataset.score_answer(extract_answer(text), entry))
  except Exception:  # some datasets' scorers cannot read what a model may write
    return 0.0
