"""A whole training run as one compiled program, for tasks that run on the device.

    run = compiled(task, model, objectives.load("grpo"), optax.adam(1e-3), Config(steps=200))
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

from rl_jax.models.transformer import Policy
from rl_jax.objectives import Algorithm, sft
from rl_jax.objectives.base import Inputs
from rl_jax.ops import kl
from rl_jax.ops import metrics as metrics_lib
from rl_jax.ops.metrics import Metrics
from rl_jax.ops.shaping import Shaping
from rl_jax.rollouts import device
from rl_jax.rollouts.collect import Collect, Judge, Source, compose, with_reward_model
from rl_jax.runs.settings import require_at_least
from rl_jax.state import Batch, Forward, RewardModel, RLState, Sequences, TrainState
from rl_jax.tasks.on_device import base as on_device
from rl_jax.train import control as control_lib
from rl_jax.train.control import Control, Controller, make_control
from rl_jax.train.forward import make_forward, make_values
from rl_jax.train.schedule import Schedule, check_updates, orders, over_updates
from rl_jax.train.step import TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes of a compiled run; `temperature` and `kl_coef` may be traced."""

  steps: int = 100  # rollouts
  num_prompts: int = 16  # prompts a rollout
  group_size: int = 8  # completions a prompt
  temperature: float | Array = 1.0  # temperature of sampling and of every log-prob
  epochs: int = 1  # passes over a rollout
  minibatches: int = 1  # updates a pass
  kl_coef: float | Array = 0.0  # weight of the KL to the initial policy in the tokens' rewards
  spread: float = 0.0  # above 0: a reward is spread over the tokens, with this discount going back; 0: at the end
  task_weight: float = 1.0  # weight of the task's rewards, beside a reward model's; 0 to measure them alone
  process_rewards: bool = False  # learn from the rewards of steps, where the task has them, and not from the whole's
  mask_truncated: bool = False  # leave completions that were truncated out of the loss
  warmup_steps: int = 0  # updates of supervised learning on demonstrations before the first rollout
  warmup_examples: int = 64  # demonstrations an update
  evaluate_every: int = 0  # rollouts between evaluations; 0 for none, not even at the start
  evaluation_problems: int = 256  # problems an evaluation, one completion each

  def __post_init__(self):
    sizes = ("steps", "num_prompts", "group_size", "epochs", "minibatches", "warmup_examples", "evaluation_problems")
    require_at_least(self, 1, sizes)
    require_at_least(self, 0, ("warmup_steps", "evaluate_every", "spread", "task_weight"))
    if self.spread > 1:
      raise ValueError(f"spread must be at most 1, got {self.spread}")
    if isinstance(self.temperature, int | float) and not 0 < self.temperature < math.inf:
      raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
    if self.num_prompts % self.minibatches:
      raise ValueError(f"num_prompts must be a multiple of minibatches = {self.minibatches}, got {self.num_prompts}")
    if self.evaluate_every and self.steps % self.evaluate_every:
      raise ValueError(f"steps must be a multiple of evaluate_every = {self.evaluate_every}, got {self.steps}")

  @property
  def chunks(self) -> int:
    """Evaluations after the first, and parts that a host may save between."""
    return self.steps // self.evaluate_every if self.evaluate_every else 1

  @property
  def schedule(self) -> Schedule:
    """What each rollout is used for."""
    return Schedule(self.epochs, self.minibatches)

  @property
  def pays_kl(self) -> bool:
    """Whether there is a KL in the reward: a Python 0 leaves it out, with the reference's pass."""
    return not (isinstance(self.kl_coef, int | float) and self.kl_coef == 0)


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
    start: `key -> (state, {name: scalar})`: initialization, supervised warm-up, and the first evaluation.
    create: `(parameters, key) -> state`: a new run around parameters, such as those that another run started from.
    advance: `state -> (state, History)`: the rollouts up to the next evaluation, and that evaluation.
    chunks: How often to advance.
  """

  start: Callable[[Array], tuple[RLState, dict[str, Array]]]
  create: Callable[[Any, Array], RLState]
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
  check_updates(algorithm, config.schedule)
  forward = make_forward(model, temperature=config.temperature)
  judge = _make_judge(task, config, reward_model)
  collect = _make_collect(task, model, algorithm, forward, judge, config)
  step, control = make_train_step(forward, algorithm.objective, optimizer), make_control(forward, controllers)
  rollout_and_update = _make_rollout_and_update(collect, step, control, config)
  answer = device.make_complete(task, model, group_size=1, temperature=config.temperature)
  evaluate = device.make_evaluate(task, answer, judge, forward, problems=config.evaluation_problems)
  warm_up = make_warmup(
    task, forward, warmup_optimizer or optax.adam(1e-3), steps=config.warmup_steps, examples=config.warmup_examples
  )

  def evaluated(state: RLState) -> dict[str, Array]:
    return evaluate(state) if config.evaluate_every else {}

  def create(params: Any, key: Array) -> RLState:
    return _create_state(params, key, algorithm, optimizer, config, controllers)

  def start(key: Array) -> tuple[RLState, dict[str, Array]]:
    init_key, warmup_key, run_key = jax.random.split(key, 3)
    state = create(warm_up(model.init(init_key), warmup_key), run_key)
    return state, evaluated(state)

  def advance(state: RLState) -> tuple[RLState, History]:
    state, train = jax.lax.scan(rollout_and_update, state, length=config.steps // config.chunks)
    return state, History(train, evaluated(state))

  return Run(start, create, advance, config.chunks)


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


def _create_state(
  params: Any,
  key: Array,
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  config: Config,
  controllers: tuple[Controller, ...],
) -> RLState:
  """A new run's state around parameters that are their own reference."""
  own = algorithm.coefficients
  if config.pays_kl and "kl_coef" in own:
    raise ValueError("kl_coef is a coefficient of the objective already: the reward cannot have another one")
  paid = {"kl_coef": config.kl_coef} if config.pays_kl else {}
  coefficients = control_lib.initial(controllers, {**own, **paid}, config.schedule)
  baseline = 0.0 if "reward_baseline" in algorithm.from_rewards().needs else None
  compares = "ref_logp" in algorithm.needs or config.pays_kl or config.evaluate_every > 0
  return RLState.create(
    params, optimizer, key, keep_reference=compares, coefficients=coefficients, reward_baseline=baseline
  )


def _make_rollout_and_update(
  collect: Collect, step: TrainStep, control: Control, config: Config
) -> Callable[[RLState, None], tuple[RLState, dict[str, Array]]]:
  """Returns the body of the run's scan."""

  def rollout_and_update(state: RLState, _: None) -> tuple[RLState, dict[str, Array]]:
    collected = collect(state)
    order_key = jax.random.fold_in(state.keys().order, state.rollouts)
    policy, step_metrics = _updates(step, state.policy, collected.batch, order_key, config.schedule, config.num_prompts)
    metrics = collected.metrics | metrics_lib.values(step_metrics)
    policy, measured = control(policy, collected.batch, metrics)
    return collected.state._replace(policy=policy, rollouts=state.rollouts + 1), metrics | measured

  return rollout_and_update


def _updates(
  step: TrainStep, policy: TrainState, batch: Batch, key: Array, schedule: Schedule, rows: int
) -> tuple[TrainState, Metrics]:
  """The updates that one rollout is used for, in the order of `loop.fit`."""
  if schedule.on_policy:
    return step(policy, batch)

  def update(policy: TrainState, part: Array) -> tuple[TrainState, Metrics]:
    return step(policy, jax.tree.map(lambda leaf: leaf[part], batch))

  policy, metrics = jax.lax.scan(update, policy, orders(schedule, key, rows))
  return policy, over_updates(metrics)


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
