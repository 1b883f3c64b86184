"""The training loop with host rewards: collect, update, write; stops cleanly and resumes exactly.

`train.compiled` is the other loop, for tasks that run on the device: a whole run as one program.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rl_jax.ops import metrics as metrics_lib
from rl_jax.ops.metrics import Metrics
from rl_jax.rollouts.collect import Collect, Collected
from rl_jax.runs import resources
from rl_jax.runs.checkpoint import Checkpoints, open_checkpoints
from rl_jax.runs.checks import Watch
from rl_jax.runs.directory import RunDirectory, read_lines
from rl_jax.runs.progress import LiveTable
from rl_jax.runs.results import Result
from rl_jax.state import Batch, RLState, TrainState
from rl_jax.train.control import Control
from rl_jax.train.schedule import Schedule, check, orders, over_updates
from rl_jax.train.step import TrainStep

StopUpdates = Callable[[Mapping[str, float]], bool]


def train(
  state: RLState,
  *,
  run: RunDirectory,
  evaluate: Callable[[RLState], Result],
  steps: int,
  evaluations: int = 1,
  snapshots: int = 0,
  save: Callable[[Path, RLState], Any] | None = None,
  frozen: Sequence[str] = (),
  **settings: Any,
) -> tuple[RLState, int]:
  """Does a whole run: resumes where there is a checkpoint, evaluates, fits, and evaluates again.

  Args:
    state: A new one; a checkpoint in the run's folder takes its place.
    run: Where everything goes.
    evaluate: `state -> EvaluationResult`, or other numbers.
    steps: Rollouts in all.
    evaluations: How many there are after the first one, evenly spaced, the last one at the end.
    snapshots: Models that are kept on the way, evenly spaced, each in a folder of `snapshots/` named by its step, and
      evaluated.
    save: `(folder, state)`, writes one; needed for snapshots.
    frozen: Entries of the parameters that are not trained: checkpoints do without them.
    **settings: The other arguments of `fit`.

  Returns:
    What `fit` returns.

  Raises:
    ValueError: If there are to be snapshots, and nothing saves them.
  """
  if snapshots and save is None:
    raise ValueError("snapshots must be 0: nothing here saves them")
  kept = _spaced(steps, snapshots + 1) - {steps}
  evaluated = (_spaced(steps, evaluations) | kept) - {steps}

  def after(step: int, state: RLState) -> None:
    if step in evaluated and not run.has_evaluation(step):
      run.write_evaluation(step, evaluate(state))
    folder = run.folder / "snapshots" / f"{step:06d}"
    if step in kept and save is not None and not folder.exists():
      save(folder, state)

  with open_checkpoints(run.folder / "checkpoints", frozen=frozen) as checkpoints:
    resumed = checkpoints.latest()
    state = checkpoints.resume(state)
    if resumed is not None:
      run.rewind(resumed)
    elif run.set_aside():
      print("no checkpoint to resume from: starting again; the earlier logs are kept as *.jsonl.old", flush=True)
    if resumed is None:
      run.write_evaluation(0, evaluate(state))
    state, done = fit(state, steps=steps, run=run, checkpoints=checkpoints, after=after, **settings)
  if done == steps and not run.has_evaluation(done):
    run.write_evaluation(done, evaluate(state))
  return state, done


def _spaced(steps: int, count: int) -> set[int]:
  return {-(-steps * place // count) for place in range(1, count + 1)}


def fit(
  state: RLState,
  *,
  steps: int,
  collect: Collect,
  update: TrainStep,
  run: RunDirectory,
  checkpoints: Checkpoints,
  checkpoint_every: int = 0,
  schedule: Schedule = Schedule(),
  put: Callable[[Batch], Batch] = lambda batch: batch,
  compiles: Callable[[], int] = lambda: 0,
  stop_updates: StopUpdates | None = None,
  control: Control | None = None,
  after: Callable[[int, RLState], None] = lambda step, state: None,
) -> tuple[RLState, int]:
  """Trains until `steps` rollouts have been collected and used, counting those of the state that comes in.

  The state is saved at the end, every `checkpoint_every` rollouts, on Ctrl-C or SIGTERM (which let the step finish),
  and when a reward function fails. If the update itself fails, its donated state is gone with it, and the last
  checkpoint is what remains.

  Args:
    state: A state from `RLState.create` or a checkpoint.
    steps: Rollouts in all.
    collect: A function from `rollouts.collect.make_collect`.
    update: A function from `train.step.make_train_step`, wrapped by one of `rl_jax.devices`.
    run: Where metrics and samples go.
    checkpoints: Where states go.
    checkpoint_every: Rollouts between checkpoints; 0 for none but the last.
    schedule: What each rollout is used for; the rollouts' own, which decides whether they hold old log-probs.
    put: Puts a batch on the devices, such as `Devices.put`.
    compiles: Returns how many programs have been compiled, for the metric `compiles`.
    stop_updates: `metrics of an update -> bool`: whether a rollout's other updates are left out, such as when
      `approx_kl` is above a target. The metric `updates` counts those that were made. The device is then waited for at
      every update.
    control: A function from `train.control.make_control`, jitted: moves coefficients after a rollout's last update.
    after: `(step, state)`, called after each rollout, before its state is saved.

  Returns:
    The state after the last finished rollout, and how many are finished: fewer than `steps` after Ctrl-C.
  """
  first = done = int(state.rollouts)
  one_step = _make_step(collect, update, _minibatches(check(schedule), put), stop_updates, control)
  watch = _watch(run, first)
  if first:
    after(first, state)  # what an interrupt may have left out
  with LiveTable(steps, first=first) as table, _interrupted() as stop:
    try:
      while done < steps and not stop():
        state, row, records = one_step(state)
        done += 1
        row |= {"compiles": float(compiles()), "peak_gib": resources.peak_gib()}
        run.write_metrics(done, row)
        run.write_samples(done, records)
        table.add(done, row)
        for finding in watch.add(done, row, records):
          table.warn(f"step {done}: {finding.describe()}")
        after(done, state)
        if checkpoint_every and done % checkpoint_every == 0:
          checkpoints.save(done, state)
    finally:
      if done > first and not _was_donated(state):
        checkpoints.save(done, state)
  return state, done


def stop_above(target_kl: float) -> StopUpdates:
  """Returns `metrics of an update -> bool`, for `fit`: whether the policy has gone too far from the one that sampled.

  Args:
    target_kl: The largest `approx_kl` after which updates go on, in nats a token.

  `stop_updates` raises ValueError if the objective does not report `approx_kl`.

  >>> stop_above(0.1)({"approx_kl": 0.2})
  True
  """

  def stop_updates(metrics: Mapping[str, float]) -> bool:
    if "approx_kl" not in metrics:
      raise ValueError(f"target_kl needs the metric approx_kl, which the objective lacks; it has {', '.join(metrics)}")
    return metrics["approx_kl"] > target_kl

  return stop_updates


def _make_step(
  collect: Collect,
  update: TrainStep,
  parts: Callable[[Collected, jax.Array], Iterator[Batch]],
  stop_updates: StopUpdates | None,
  control: Control | None,
) -> Callable[[RLState], tuple[RLState, dict[str, float], Sequence[dict[str, Any]]]]:
  """Returns `state -> (state, metrics, records)`: a rollout, its updates, and what controllers make of them."""

  def step(state: RLState) -> tuple[RLState, dict[str, float], Sequence[dict[str, Any]]]:
    start = time.perf_counter()
    collected = collect(state)
    collected_at = time.perf_counter()
    order_key = jax.random.fold_in(state.keys().order, int(state.rollouts))
    policy, row = _updates(update, state.policy, parts(collected, order_key), stop_updates)
    row = {**collected.metrics, **row}
    if control is not None:
      policy, measured = control(policy, collected.batch, row)
      row |= measured
    row = {name: float(value) for name, value in jax.device_get(row).items()}  # waits for the device
    seconds = time.perf_counter() - start
    row |= {"tokens_per_second": row["tokens"] / seconds, "seconds": seconds, "seconds/rollout": collected_at - start}
    state = collected.state._replace(policy=policy, rollouts=np.int32(int(state.rollouts) + 1))
    return state, row, collected.records

  return step


def _updates(
  update: TrainStep, policy: TrainState, parts: Iterable[Batch], stop_updates: StopUpdates | None
) -> tuple[TrainState, dict[str, Any]]:
  """Updates with one part after the other, until all were used or one says that it is enough."""
  made: list[Metrics] = []
  for part in parts:
    policy, metrics = update(policy, part)
    made.append(metrics)
    if stop_updates is not None and stop_updates(metrics_lib.results(metrics)):
      break
  row = metrics_lib.results(over_updates(jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(made))))
  return policy, row | ({} if stop_updates is None else {"updates": float(len(made))})


def _minibatches(
  schedule: Schedule, put: Callable[[Batch], Batch]
) -> Callable[[Collected, jax.Array], Iterator[Batch]]:
  """Returns `(collected, key) -> the batches of its updates`, on the devices."""

  def parts(collected: Collected, key: jax.Array) -> Iterator[Batch]:
    batch = collected.batch
    if schedule.on_policy:
      yield put(batch)
      return
    if batch.inputs.advantages is not None and batch.inputs.old_logp is None:
      updates = schedule.updates
      raise ValueError(
        f"the batch was made for one update and has no old log-probs: the schedule has {updates} updates"
      )
    rows = jax.tree.leaves(batch)[0].shape[0]
    for part in np.asarray(orders(schedule, key, rows, collected.extra_rows)):
      yield put(jax.tree.map(lambda leaf, part=part: jnp.asarray(leaf)[part], batch))

  return parts


def _watch(run: RunDirectory, first: int) -> Watch:
  """What tells of things that go wrong, with the steps that were made before."""
  watch = Watch(run.config)
  for row in read_lines(run.folder, "metrics.jsonl"):
    if row["step"] <= first:
      watch.add(row["step"], row)
  return watch


def _was_donated(state: RLState) -> bool:
  return any(leaf.is_deleted() for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))


@contextmanager
def _interrupted() -> Iterator[Callable[[], bool]]:
  """Yields a function that tells whether Ctrl-C was pressed or SIGTERM came. The step is then finished first.

  A second one interrupts at once. Outside the main thread signals cannot be handled, and even the first does.
  """
  received = False

  def on_signal(number: int, frame: FrameType | None) -> None:
    nonlocal received
    if received:
      raise KeyboardInterrupt
    received = True
    print("\nstopping after this step; press Ctrl-C again to stop at once", flush=True)

  signals = (signal.SIGINT, signal.SIGTERM)
  try:
    before = [signal.signal(number, on_signal) for number in signals]
  except ValueError:
    yield lambda: False
    return
  try:
    yield lambda: received
  finally:
    for number, handler in zip(signals, before, strict=True):
      signal.signal(number, handler)
