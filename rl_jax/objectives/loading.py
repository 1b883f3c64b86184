"""An objective with the advantages that belong to it, found by name or made of one's own."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from rl_jax import dotted
from rl_jax.objectives.base import Objective
from rl_jax.ops.estimates import Advantage

_PARTS = ("base", "loading", "pairs", "__main__")  # what objectives are made of


def names() -> list[str]:
  """Returns the names of the objectives, which are the modules of this package other than those they are made of.

  >>> "grpo" in names()
  True
  """
  modules = pkgutil.iter_modules([str(Path(__file__).parent)])
  return sorted(module.name for module in modules if module.name not in _PARTS)


class Algorithm(NamedTuple):
  """What a loop trains by.

  Attributes:
    name: Name in messages and tables.
    objective: `coefficients -> Objective`, called inside the traced step: a controller moves the coefficients.
    advantage: How advantages are estimated; None for objectives that do not learn from rewards.
    coefficients: The initial values of what controllers move, by name; mostly empty.
    several_updates: Whether it makes sense only where a rollout is used for more than one update.
  """

  name: str
  objective: Callable[[Mapping[str, Any]], Objective]
  advantage: Advantage | None
  coefficients: Mapping[str, float | Array] = {}
  several_updates: bool = False

  @property
  def needs(self) -> frozenset[str]:
    """The fields of `Inputs` that the objective reads, whatever its coefficients are moved to."""
    return self.objective({name: jnp.asarray(value) for name, value in self.coefficients.items()}).needs

  @property
  def needs_values(self) -> bool:
    """Whether the objective or its advantage reads what a critic says."""
    of_advantage = frozenset() if self.advantage is None else self.advantage.needs
    return bool({"values", "old_values"} & (self.needs | of_advantage))

  def from_rewards(self) -> Advantage:
    """Returns the advantage.

    Raises:
      ValueError: If there is none.
    """
    if self.advantage is None:
      raise ValueError(f"objective {self.name!r} does not learn from rewards: its module has no `advantage`")
    return self.advantage


def algorithm(objective: Objective, advantage: Advantage, *, name: str = "objective") -> Algorithm:
  """Puts an objective and an estimate of advantages together.

  >>> from functools import partial
  >>> from rl_jax.objectives import grpo
  >>> from rl_jax.ops import advantages, estimates
  >>> unscaled = estimates.per_completion(partial(advantages.group_normalized, scale="none"))
  >>> sorted(algorithm(grpo.objective(kl_coef=0), unscaled).needs)
  ['advantages', 'logp', 'old_logp']
  """
  return Algorithm(name, lambda coefficients: objective, advantage)


def load(name: str, /, *, fallback: Mapping[str, Any] = {}, moving: Sequence[str] = (), **settings: Any) -> Algorithm:
  """Returns an objective and its advantage, by name or by the path of one's own, such as `"my_module:objective"`.

  Args:
    name: One of `names()`, or `"module:function"`; the function's module is of the form that `rl_jax.objectives` says.
    fallback: Settings that are used where the objective has them and nothing else is given, such as `length`.
    moving: Settings of the objective that controllers move: they become coefficients, which start as given.
    **settings: The objective's hyperparameters and its advantage's; they may be traced arrays.

  Raises:
    ValueError: If there is no such objective, it makes no use of a setting, or requires one that is not given.

  >>> ppo = load("ppo", clip_low=0.1, lam=0.9)
  >>> sorted(ppo.needs), sorted(ppo.from_rewards().needs)
  (['advantages', 'logp', 'old_logp', 'old_values', 'returns', 'values'], ['token_rewards', 'values'])
  >>> load("rloo", clip_low=0.1)
  Traceback (most recent call last):
  ...
  ValueError: objective 'rloo' makes no use of clip_low; it has no settings
  """
  module, factory = find(name)
  estimate = getattr(module, "advantage", None)
  if isinstance(estimate, Advantage):
    raise ValueError(f"objective {name!r}: its module's advantage must be a function that returns one (use partial)")
  own, of_advantage = _settings(factory), {} if estimate is None else _settings(estimate)
  if unknown := sorted((set(settings) - own.keys() - of_advantage.keys()) | (set(moving) - own.keys())):
    known = ", ".join(dict.fromkeys([*own, *of_advantage]))
    raise ValueError(f"objective {name!r} makes no use of {', '.join(unknown)}; it has {known or 'no settings'}")
  chosen = dict(fallback) | settings
  given, for_advantage = (
    {key: value for key, value in chosen.items() if key in known} for known in (own, of_advantage)
  )
  every = {**of_advantage, **own}
  if missing := [key for key, default in every.items() if default is inspect.Parameter.empty and key not in chosen]:
    raise ValueError(f"objective {name!r} needs the setting {missing[0]}")
  start = {key: given.get(key, own[key]) for key in moving}
  if without := [key for key, value in start.items() if value is None]:
    raise ValueError(f"setting {without[0]} of objective {name!r} has no number to begin with")
  advantage = None if estimate is None else estimate(**for_advantage)
  if advantage is not None and not isinstance(advantage, Advantage):
    kind = type(advantage).__name__
    raise ValueError(f"objective {name!r}: its module's advantage must return an ops.estimates.Advantage, got {kind}")

  def objective(coefficients: Mapping[str, float | Array]) -> Objective:
    return factory(**given | {key: coefficients[key] for key in moving})

  if not isinstance(made := factory(**given | start), Objective):
    raise ValueError(f"objective {name!r} must return an objectives.base.Objective, got {type(made).__name__}")
  return Algorithm(name, objective, advantage, start, getattr(module, "several_updates", False))


def settings_of(name: str) -> tuple[str, ...]:
  """Returns the names of an objective's hyperparameters, its advantage's included.

  >>> settings_of("dapo")
  ('clip_low', 'clip_high')
  """
  module, factory = find(name)
  return tuple({**_settings(factory), **_settings(getattr(module, "advantage", lambda: None))})


def find(name: str) -> tuple[Any, Callable[..., Objective]]:
  """Returns an objective's module and its factory.

  Raises:
    ValueError: If there is no such objective.

  >>> find("grpo")[0].__name__
  'rl_jax.objectives.grpo'
  """
  if ":" in name:
    factory = dotted.load(name, "objective")
    return sys.modules[name.partition(":")[0]], factory
  if name not in names():
    raise ValueError(
      f"unknown objective {name!r}; there are {', '.join(names())}, and paths such as my_module:objective"
    )
  module = importlib.import_module(f"rl_jax.objectives.{name}")
  return module, module.objective


def _settings(factory: Callable[..., Any]) -> dict[str, Any]:
  """The names and defaults of a factory's settings."""
  parameters = inspect.signature(factory).parameters.items()
  return {name: parameter.default for name, parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
