"""Rewards by name, as the command line gives them: verifiers, functions of one's own, and reward models."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl_jax import dotted
from rl_jax.models import scorers
from rl_jax.tasks import learned
from rl_jax.tasks.rewards import Reward
from rl_jax.tasks.verifiers import REWARDS


def load(names: Sequence[str], weights: Sequence[float] = ()) -> tuple[Reward, ...]:
  """Returns reward functions by name, such as "math", or by path: `"my_module:reward"`, `"folder/file.py:reward"`.

  The name or folder of a sequence classifier is a reward too, `learned.Learned`.

  Raises:
    ValueError: For a name that is not known, a path that cannot be imported, one that repeats, or a different number
      of weights.

  >>> [reward.name for reward in load(["math:fsum", "gsm8k"])]
  ['fsum', 'gsm8k']
  """
  if weights and len(weights) != len(names):
    raise ValueError(f"reward weights: {len(weights)} for {len(names)} reward functions")
  if wrong := [weight for weight in weights if not math.isfinite(weight)]:
    raise ValueError(f"reward weights must be finite, got {wrong[0]}")
  if len(set(names)) < len(names):
    raise ValueError(f"reward functions must differ, got {', '.join(names)}")
  shown = [_shown(name) for name in names]
  return tuple(
    Reward(_find(name), float(weight), short if shown.count(short) == 1 else name)
    for name, weight, short in zip(names, weights or [1.0] * len(names), shown, strict=True)
  )


def _shown(name: str) -> str:
  """What metrics call a reward: the name of a function, or the last part of a model's."""
  if ":" in name:
    return name.rpartition(":")[2]
  path = Path(name.partition("@")[0])
  return path.parent.name if path.name == "model" and path.parent.name else path.name


def reward_models(names: Sequence[str]) -> list[str]:
  """Returns those of the names that are reward models'.

  >>> reward_models(["math", "org/name", "my_module:reward"])
  ['org/name']
  """
  return [name for name in names if name not in REWARDS and ":" not in name and scorers.is_name(name)]


def _find(name: str) -> Callable[..., Any]:
  if name in REWARDS:
    return REWARDS[name]
  if reward_models([name]):
    return learned.Learned(name)
  if ":" not in name:
    known = ", ".join(REWARDS)
    raise ValueError(
      f"unknown reward {name!r}; there are {known}, 'module:function', 'path/to/file.py:function', and reward models"
    )
  return dotted.load(name, "reward")
