"""A whole training run as one compiled program, for tasks that run on the device.

    run = compiled(task, model, objectives.load("grpo"), optax.adam(1e-3), Config(steps=200))
    state, history = jax.jit(run)(jax.random.key(0))              # one run
    states, histories = jax.jit(jax.vmap(run))(keys)              # seeds are an axis

Everything is a pure function of the key, so hyperparameters are an axis too: build the run inside a function of them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rl_jax.models.transformer import Policy
from rl_jax.objectives import Algorithm, sft
from rl_jax.objectives.base import Inputs
from rl_jax.ops import kl
from rl_jax.ops.shaping import Shaping
from rl_jax.rollouts import device
from rl_jax.rollouts.collect import Collect, Judge, Source, compose, with_reward_model
from rl_jax.runs.settings import require_at_least
from rl_jax.state import Batch, Forward, RewardModel, Sequences, TrainState
from rl_jax.tasks.on_device import base as on_device
from rl_jax.train.control import Controller
from rl_jax.train.forward import make_forward, make_values
from rl_jax.train.step import make_train_step
from rl_jax.train.whole_run import Parts, Run, Sizes, make_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sizes):
  """The sizes of a compiled run; `temperature` and `kl_coef` may be traced."""

  num_prompts: int = 16  # prompts a rollout
  group_size: int = 8  # completions a prompt
  temperature: float | Array = 1.0  # temperature of sampling and of every log-prob
  spread: float = 0.0  # above 0: a reward is spread over the tokens, with this discount going back; 0: at the end
  task_weight: float = 1.0  # weight of the task's rewards, beside a reward model's; 0 to measure them alone
  process_rewards: bool = False  # learn from the rewards of steps, where the task has them, and not from the whole's
  mask_truncated: bool = False  # leave completions that were truncated out of the loss
  warmup_steps: int = 0  # updates of supervised learning on demonstrations before the first rollout
  warmup_examples: int = 64  # demonstrations an update
  evaluation_problems: int = 256  # problems an evaluation, one completion each

  def __post_init__(self):
    require_at_least(self, 1, ("num_prompts", "group_size", "warmup_examples", "evaluation_problems"))
    require_at_least(self, 0, ("warmup_steps", "spread", "task_weight"))
    if self.spread > 1:
      raise ValueError(f"spread must be at most 1, got {self.spread}")
    if isinstance(self.temperature, int | float) and not 0 < self.temperature < math.inf:
      raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
    super().__post_init__()

  @property
  def rows(self) -> tuple[str, int]:
    return "num_prompts", self.num_prompts


def compiled(
  task: on_device.Task,
  model: Policy,
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  config: Config,
  *,
  controllers: tuple[Controller, ...] = (),
  warmup_optimizer: optax.GradientTransformation | None = None,
  reward_model: RewardModel | None = None,
) -> Run:
  """Returns a whole training run, `run(key) -> (final state, history)`, to be jitted, mapped over keys, or sharded.

  With the same key, task and sizes it makes the updates of `loop.fit`.

  Args:
    task: A task from `tasks.on_device`.
    model: A policy, with a value head (`models.heads.with_value_head`) where the algorithm needs values.
    algorithm: An objective and its advantage, such as `objectives.load("grpo")`; its numbers may be traced.
    optimizer: Optimizer of the reinforcement learning, fresh after the warm-up.
    config: Sizes.
    controllers: Move the algorithm's coefficients, or `kl_coef`, after every rollout.
    warmup_optimizer: Optimizer of the supervised warm-up; Adam at 1e-3 by default.
    reward_model: `sequences -> [P, G]`, scores `learned` that count beside the task's.

  Raises:
    ValueError: If the algorithm needs what neither task nor model gives.

  >>> from rl_jax import objectives
  >>> from rl_jax.models import presets
  >>> from rl_jax.tasks.on_device import stopping
  >>> task, model = stopping.load(), presets.load("tiny").policy
  >>> run = compiled(
  ...     task, model, objectives.load("rloo"), optax.sgd(0.1), Config(steps=2, num_prompts=2, group_size=2))
  >>> state, history = run(jax.random.key(0))
  >>> int(state.policy.step), history.train["reward"].shape
  (2, (2,))
  """
  forward = make_forward(model, temperature=config.temperature)
  judge = _make_judge(task, config, reward_model)
  answer = device.make_complete(task, model, group_size=1, temperature=config.temperature)
  warm_up = make_warmup(
    task, forward, warmup_optimizer or optax.adam(1e-3), steps=config.warmup_steps, examples=config.warmup_examples
  )
  parts = Parts(
    init=lambda key, warmup_key: warm_up(model.init(key), warmup_key),
    collect=_make_collect(task, model, algorithm, forward, judge, config),
    forward=forward,
    evaluate=device.make_evaluate(task, answer, judge, forward, problems=config.evaluation_problems),
    keep_reference="ref_logp" in algorithm.needs or config.pays_kl or config.evaluate_every > 0,
  )
  return make_run(parts, algorithm, optimizer, config, controllers=controllers)


def _make_judge(task: on_device.Task, config: Config, reward_model: RewardModel | None) -> Judge:
  """The task's verifier, with a reward model beside it if there is one; the same for rollouts and evaluation."""
  judge = device.make_judge(task, weight=config.task_weight, process_rewards=config.process_rewards)
  if reward_model is not None:
    return with_reward_model(judge, reward_model)
  if not config.task_weight:
    raise ValueError("there is nothing to learn from: task_weight is 0, and there is no reward model")
  return judge


def _make_collect(
  task: on_device.Task, model: Policy, algorithm: Algorithm, forward: Forward, judge: Judge, config: Config
) -> Collect:
  """The life of a batch on the device."""
  complete = device.make_complete(
    task, model, group_size=config.group_size, temperature=config.temperature, mask_truncated=config.mask_truncated
  )
  sample = device.make_sample(task, complete, num_prompts=config.num_prompts)
  return compose(
    Source(sample, judge, device.make_greedy(task, model)),
    algorithm,
    on_policy=config.schedule.on_policy,
    shaping=Shaping(spread=config.spread or None, kl=kl.k1 if config.pays_kl else None),
    reference=lambda state, sequences: jnp.asarray(forward(state.ref_params, sequences).logp),
    values=None if model.value is None else make_values(model),
  )


def make_warmup(
  task: on_device.Task, forward: Forward, optimizer: optax.GradientTransformation, *, steps: int, examples: int
) -> Callable[[Any, Array], Any]:
  """Returns `(params, key) -> params`: supervised learning on demonstrations, fresh ones for each update."""
  step = make_train_step(forward, sft.objective(), optimizer)

  def update(state: TrainState, key: Array) -> tuple[TrainState, None]:
    problems = on_device.sample(task, key, examples)
    tokens, mask = (x[:, None] for x in on_device.demonstrate(task, problems.data))
    batch = Batch(Sequences(problems.prompts, problems.prompt_mask, tokens, mask), Inputs(mask=mask))
    return step(state, batch)[0], None

  def warm_up(params: Any, key: Array) -> Any:
    if not steps:
      return params
    keys = jax.random.split(key, steps)
    return jax.lax.scan(update, TrainState.create(params, optimizer), keys)[0].params

  return warm_up
