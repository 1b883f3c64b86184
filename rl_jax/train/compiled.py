"""A whole training run as one compiled program, for tasks that run on the device.

    run = compiled(task, model, grpo.objective(), optax.adam(1e-3), Settings(steps=200))
    state, history = jax.jit(run)(jax.random.key(0))              # one run
    states, histories = jax.jit(jax.vmap(run))(keys)              # seeds are an axis

Everything is a pure function of the key, so hyperparameters are an axis too: build the run inside a function of them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rl_jax.objectives import sft
from rl_jax.objectives.base import Inputs, Objective
from rl_jax.ops import advantages
from rl_jax.ops import metrics as metrics_lib
from rl_jax.ops.metrics import Metrics
from rl_jax.tasks.on_device import base as on_device
from rl_jax.train import device_rollout, estimates
from rl_jax.train.score import Score, Sequences, make_score
from rl_jax.train.settings import require_at_least
from rl_jax.train.state import RLState, TrainState
from rl_jax.train.step import Batch, TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Settings:
  """The sizes of a compiled run. The numbers that are no sizes may be traced."""

  steps: int = 100  # rollouts
  prompts: int = 16  # prompts a rollout
  group_size: int = 8  # completions a prompt
  temperature: float | Array = 1.0  # of sampling and of every log-prob
  epochs: int = 1  # passes over a rollout
  minibatches: int = 1  # updates a pass
  kl_in_reward: float | Array = 0.0  # weight of the KL to the initial policy in the tokens' rewards
  process_rewards: bool = False  # learn from the rewards of steps, where the task has them
  mask_truncated: bool = False  # leave completions that were cut off out of the loss
  warmup_steps: int = 0  # updates of supervised learning on demonstrations before
  warmup_examples: int = 64  # demonstrations an update
  evaluate_every: int = 0  # rollouts between evaluations; 0 for none, not even at the start
  evaluation_problems: int = 256  # problems an evaluation, one completion each

  def __post_init__(self):
    require_at_least(
      self, 1, ("steps", "prompts", "group_size", "epochs", "minibatches", "warmup_examples", "evaluation_problems")
    )
    require_at_least(self, 0, ("warmup_steps", "evaluate_every"))
    if isinstance(self.temperature, int | float) and not 0 < self.temperature < math.inf:
      raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
    if self.prompts % self.minibatches:
      raise ValueError(f"prompts must be a multiple of minibatches = {self.minibatches}, got {self.prompts}")
    if self.evaluate_every and self.steps % self.evaluate_every:
      raise ValueError(f"steps must be a multiple of evaluate_every = {self.evaluate_every}, got {self.steps}")

  @property
  def chunks(self) -> int:
    return self.steps // self.evaluate_every if self.evaluate_every else 1


class History(NamedTuple):
  """Metrics over time.

  Attributes:
    train: `{name: [steps]}`, of each rollout and its updates.
    evaluation: `{name: [chunks]}`, after each chunk; where a whole run returns it, `[1 + chunks]`, from the start on.
  """

  train: dict[str, Array]
  evaluation: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Run:
  """A run as pure functions. Called, it is the whole run; in chunks, a host can show progress and save states between.

  Attributes:
    start: `key -> (state, {name: scalar})`: initialisation, supervised warm-up, and the first evaluation.
    advance: `state -> (state, History)`: the rollouts up to the next evaluation, and that evaluation.
    chunks: How often to advance.
  """

  start: Callable[[Array], tuple[RLState, dict[str, Array]]]
  advance: Callable[[RLState], tuple[RLState, History]]
  chunks: int

  def __call__(self, key: Array) -> tuple[RLState, History]:
    state, first = self.start(key)
    state, history = jax.lax.scan(lambda state, _: self.advance(state), state, length=self.chunks)
    train = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), history.train)
    evaluation = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, history.evaluation)
    return state, History(train, evaluation)


def compiled(
  task: on_device.Task,
  model: Any,
  objective: Objective,
  optimiser: optax.GradientTransformation,
  settings: Settings,
  *,
  estimator: Callable[..., Any] | estimates.Estimate = advantages.group_normalized,
  warmup_optimiser: optax.GradientTransformation | None = None,
  reward_model: Callable[[Sequences], Array] | None = None,
) -> Run:
  """Returns a whole training run, `run(key) -> (final state, history)`, to be jitted, mapped over keys, or sharded.

  With the same key, task and sizes it makes the updates of `loop.fit`.

  Args:
    task: From `tasks.on_device`.
    model: `models.transformer.Policy`, or `models.heads.ActorCritic` where the objective needs values.
    objective: What to minimise; its numbers may be traced.
    optimiser: Of the reinforcement learning, fresh after the warm-up.
    settings: Sizes.
    estimator: Of advantages, in one of the forms of `estimates.adapt`, or what that returns; an objective's module
      names its own.
    warmup_optimiser: Of the supervised warm-up; Adam at 1e-3 by default.
    reward_model: `sequences -> [P, G]`, to learn from in place of the task's rewards.

  Raises:
    ValueError: If the objective or the estimator needs what neither task nor model gives.

  >>> from rl_jax.models import presets
  >>> from rl_jax.objectives import rloo
  >>> from rl_jax.tasks.on_device import stopping
  >>> task, model = stopping.load(), presets.load("tiny").policy
  >>> settings = Settings(steps=2, prompts=2, group_size=2)
  >>> run = compiled(task, model, rloo.objective(), optax.sgd(0.1), settings, estimator=advantages.leave_one_out)
  >>> state, history = run(jax.random.key(0))
  >>> int(state.policy.step), history.train["reward"].shape
  (2, (2,))
  """
  estimate = estimates.adapt(estimator)
  critic = getattr(model, "value", None)
  if critic is None and {"values", "old_values"} & (objective.needs | estimate.needs):
    raise ValueError("the objective or the estimator needs values: give a model with a value head (models.heads)")
  score = make_score(model, temperature=settings.temperature, value=critic)
  collect = device_rollout.make_collect(
    task,
    model,
    score,
    objective,
    estimate,
    prompts=settings.prompts,
    group_size=settings.group_size,
    temperature=settings.temperature,
    on_policy=settings.epochs * settings.minibatches == 1,
    kl_in_reward=settings.kl_in_reward,
    process_rewards=settings.process_rewards,
    mask_truncated=settings.mask_truncated,
    reward_model=reward_model,
  )
  step = make_train_step(score, objective, optimiser)
  evaluate = device_rollout.make_evaluate(
    task, model, score, problems=settings.evaluation_problems, temperature=settings.temperature
  )
  warm_up = make_warmup(
    task, score, warmup_optimiser or optax.adam(1e-3), steps=settings.warmup_steps, examples=settings.warmup_examples
  )

  def evaluated(state: RLState) -> dict[str, Array]:
    return evaluate(state) if settings.evaluate_every else {}

  def start(key: Array) -> tuple[RLState, dict[str, Array]]:
    init_key, warmup_key, run_key = jax.random.split(key, 3)
    params = warm_up(model.init(init_key), warmup_key)
    state = RLState.create(params, optimiser, run_key, keep_reference=True)
    return state, evaluated(state)

  def rollout_and_update(state: RLState, _: None) -> tuple[RLState, dict[str, Array]]:
    state, batch, metrics = collect(state)
    order_key = jax.random.fold_in(state.keys().order, state.rollouts)
    policy, step_metrics = _updates(step, state.policy, batch, order_key, settings)
    return state._replace(policy=policy, rollouts=state.rollouts + 1), metrics | metrics_lib.values(step_metrics)

  def advance(state: RLState) -> tuple[RLState, History]:
    state, train = jax.lax.scan(rollout_and_update, state, length=settings.steps // settings.chunks)
    return state, History(train, evaluated(state))

  return Run(start, advance, settings.chunks)


def _updates(
  step: TrainStep, policy: TrainState, batch: Batch, key: Array, settings: Settings
) -> tuple[TrainState, Metrics]:
  """The updates that one rollout is used for, in the order of `loop.fit`."""
  if settings.epochs * settings.minibatches == 1:
    return step(policy, batch)

  def order(epoch: Array) -> Array:
    rows = jax.random.permutation(jax.random.fold_in(key, epoch), settings.prompts)
    return rows.reshape(settings.minibatches, -1)

  parts = jax.vmap(order)(jnp.arange(settings.epochs)).reshape(settings.epochs * settings.minibatches, -1)

  def update(policy: TrainState, part: Array) -> tuple[TrainState, Metrics]:
    return step(policy, jax.tree.map(lambda leaf: leaf[part], batch))

  policy, metrics = jax.lax.scan(update, policy, parts)
  return policy, metrics_lib.reduce(metrics)


def make_warmup(
  task: on_device.Task, score: Score, tx: optax.GradientTransformation, *, steps: int, examples: int
) -> Callable[[Any, Array], Any]:
  """Returns `(params, key) -> params`: supervised learning on demonstrations, fresh ones for each update."""
  step = make_train_step(score, sft.objective(), tx)

  def update(state: TrainState, key: Array) -> tuple[TrainState, None]:
    problems = on_device.sample(task, key, examples)
    tokens, mask = (x[:, None] for x in on_device.demonstrate(task, problems.data))
    batch = Batch(Sequences(problems.prompts, problems.prompt_mask, tokens, mask), Inputs(mask=mask))
    return step(state, batch)[0], None

  def warm_up(params: Any, key: Array) -> Any:
    if not steps:
      return params
    keys = jax.random.split(key, steps)
    return jax.lax.scan(update, TrainState.create(params, tx), keys)[0].params

  return warm_up
