"""Settings that experiments on the device share: small models, many seeds, and a supervised warm-up before the rest."""

import dataclasses
from typing import Any

import optax

from experiments.configs import Checked
from rl_jax.models import presets
from rl_jax.models.transformer import TransformerConfig
from rl_jax.runs.settings import require_at_least, require_positive
from rl_jax.tasks import on_device
from rl_jax.tasks.load import parse_options
from rl_jax.train.optimizers import make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedsConfig(Checked):
  seeds: int = 8  # runs of everything, side by side
  layers: int = 1  # layers of the model
  width: int = 64  # width of the model
  warmup_steps: int = 800  # updates of supervised learning on right answers before the rest
  warmup_examples: int = 128  # answers an update
  warmup_rate: float = 2e-3  # learning rate of Adam in the warm-up
  learning_rate: float = 3e-4  # learning rate of Adam after it
  max_grad_norm: float = 1.0  # gradients are scaled down to this norm after it
  seed: int = 0  # seed of everything random

  def check(self) -> None:
    require_at_least(self, 2, ("seeds",))
    require_at_least(self, 1, ("layers", "width", "warmup_examples"))
    require_at_least(self, 0, ("warmup_steps", "warmup_rate", "learning_rate", "seed"))
    require_positive(self, ("max_grad_norm",))
    super().check()

  def make_shape(self, task: on_device.Task) -> TransformerConfig:
    """Returns the shape of a model that reads and writes the task's characters."""
    return presets.small(task.vocab_size, layers=self.layers, width=self.width)

  def make_optimizer(self) -> optax.GradientTransformation:
    """Returns Adam behind a clip of the gradient's norm."""
    return make_optimizer(self.learning_rate, max_grad_norm=self.max_grad_norm)

  def make_warmup_optimizer(self) -> optax.GradientTransformation:
    """Returns Adam."""
    return optax.adam(self.warmup_rate)

  @property
  def warmup(self) -> dict[str, Any]:
    """The warm-up's part of `train.compiled.Config`."""
    return {"warmup_steps": self.warmup_steps, "warmup_examples": self.warmup_examples}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig(SeedsConfig):
  task: str = "addition"  # addition, copying, countdown, modular, parity, sorting, stopping
  task_options: tuple[str, ...] = ()  # the task's settings, such as digits=3
  num_prompts: int = 32  # prompts a rollout
  group_size: int = 8  # completions a prompt

  def check(self) -> None:
    require_at_least(self, 1, ("num_prompts",))
    require_at_least(self, 2, ("group_size",))
    super().check()

  @property
  def sizes(self) -> dict[str, Any]:
    """The shape of a rollout, and the warm-up, for `train.compiled.Config`."""
    return {"num_prompts": self.num_prompts, "group_size": self.group_size, **self.warmup}

  def load_task(self) -> on_device.Task:
    """Returns the task with its options."""
    return on_device.load(self.task, **parse_options(self.task_options))
