"""A whole training run as one compiled program, whatever it is that learns: a scan over rollouts and their updates."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rl_jax.objectives import Algorithm
from rl_jax.ops import metrics as metrics_lib
from rl_jax.ops.metrics import Metrics
from rl_jax.rollouts.collect import Collect
from rl_jax.runs.settings import require_at_least
from rl_jax.state import Batch, Forward, RLState, TrainState
from rl_jax.train import control as control_lib
from rl_jax.train.control import Control, Controller, make_control
from rl_jax.train.schedule import Schedule, check_updates, orders, over_updates
from rl_jax.train.step import TrainStep, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """The sizes of a run; `kl_coef` may be traced."""

  steps: int = 100  # rollouts
  epochs: int = 1  # passes over a rollout
  minibatches: int = 1  # updates a pass
  kl_coef: float | Array = 0.0  # weight of the KL to the initial policy in the tokens' rewards
  evaluate_every: int = 0  # rollouts between evaluations; 0 for none, not even at the start

  def __post_init__(self):
    require_at_least(self, 1, ("steps", "epochs", "minibatches"))
    require_at_least(self, 0, ("evaluate_every",))
    name, rows = self.rows
    if rows % self.minibatches:
      raise ValueError(f"{name} must be a multiple of minibatches = {self.minibatches}, got {rows}")
    if self.evaluate_every and self.steps % self.evaluate_every:
      raise ValueError(f"steps must be a multiple of evaluate_every = {self.evaluate_every}, got {self.steps}")

  @property
  def rows(self) -> tuple[str, int]:
    """Rows of a batch, and the setting's name."""
    raise NotImplementedError

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


class Parts(NamedTuple):
  """What a run is made of.

  Attributes:
    init: `(key, key of a warm-up) -> params`.
    collect: `state -> Collected`.
    forward: The learner's pass.
    evaluate: `state -> {name: scalar}`.
    keep_reference: Whether a pass reads the initial policy.
    state: Other arguments of `RLState.create`, such as `observation_moments`.
  """

  init: Callable[[Array, Array], Any]
  collect: Collect
  forward: Forward
  evaluate: Callable[[RLState], dict[str, Array]]
  keep_reference: bool
  state: dict[str, Any] = {}


def make_run(
  parts: Parts,
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  sizes: Sizes,
  *,
  controllers: tuple[Controller, ...] = (),
) -> Run:
  """Puts a run together; `train.compiled` and `train.compiled_episodes` give it its parts.

  Args:
    parts: What is collected, learned and measured.
    algorithm: An objective and its advantage.
    optimizer: Any optax transformation.
    sizes: Rollouts, and what each is used for.
    controllers: Move the algorithm's coefficients, or `kl_coef`, after every rollout.

  Raises:
    ValueError: If the algorithm does not go with so many updates, or has a `kl_coef` beside that of the reward.
  """
  check_updates(algorithm, sizes.schedule)
  step = make_train_step(parts.forward, algorithm.objective, optimizer)
  rollout_and_update = _make_rollout_and_update(parts.collect, step, make_control(parts.forward, controllers), sizes)

  def evaluated(state: RLState) -> dict[str, Array]:
    return parts.evaluate(state) if sizes.evaluate_every else {}

  def create(params: Any, key: Array) -> RLState:
    return RLState.create(
      params,
      optimizer,
      key,
      keep_reference=parts.keep_reference,
      coefficients=_coefficients(algorithm, sizes, controllers),
      reward_baseline=0.0 if "reward_baseline" in algorithm.from_rewards().needs else None,
      **parts.state,
    )

  def start(key: Array) -> tuple[RLState, dict[str, Array]]:
    init_key, warmup_key, run_key = jax.random.split(key, 3)
    state = create(parts.init(init_key, warmup_key), run_key)
    return state, evaluated(state)

  def advance(state: RLState) -> tuple[RLState, History]:
    state, train = jax.lax.scan(rollout_and_update, state, length=sizes.steps // sizes.chunks)
    return state, History(train, evaluated(state))

  return Run(start, create, advance, sizes.chunks)


def _coefficients(algorithm: Algorithm, sizes: Sizes, controllers: tuple[Controller, ...]) -> dict[str, Any]:
  """Initial values of what controllers may move."""
  own = algorithm.coefficients
  if sizes.pays_kl and "kl_coef" in own:
    raise ValueError("kl_coef is a coefficient of the objective already: the reward cannot have another one")
  paid = {"kl_coef": sizes.kl_coef} if sizes.pays_kl else {}
  return control_lib.initial(controllers, {**own, **paid}, sizes.schedule)


def _make_rollout_and_update(
  collect: Collect, step: TrainStep, control: Control, sizes: Sizes
) -> Callable[[RLState, None], tuple[RLState, dict[str, Array]]]:
  """Returns the body of the run's scan."""

  def rollout_and_update(state: RLState, _: None) -> tuple[RLState, dict[str, Array]]:
    collected = collect(state)
    order_key = jax.random.fold_in(state.keys().order, state.rollouts)
    policy, step_metrics = _updates(step, state.policy, collected.batch, order_key, sizes.schedule, sizes.rows[1])
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
