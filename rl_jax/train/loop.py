"""The training loop with host rewards: collect, update, write; stops cleanly and resumes exactly.

`compiled` is the other loop, for tasks that run on the device: a whole run as one program.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import FrameType
from typing import Any

import jax
import numpy as np

from rl_jax.ops import metrics as metrics_lib
from rl_jax.ops.metrics import Metrics
from rl_jax.train import memory
from rl_jax.train.checkpoint import Checkpoints, open_checkpoints
from rl_jax.train.compiled import compiled as compiled
from rl_jax.train.evaluate import Evaluation, Measured
from rl_jax.train.metrics_io import RunDirectory
from rl_jax.train.progress import LiveTable
from rl_jax.train.rollout import Collect, Collected
from rl_jax.train.state import RLState, TrainState
from rl_jax.train.step import Batch, TrainStep


def train(
  state: RLState, *, run: RunDirectory, test: Callable[[RLState], Evaluation | Measured], steps: int, **settings: Any
) -> tuple[RLState, int]:
  """Does a whole run: resumes where there is a checkpoint, evaluates, fits, and evaluates again.

  Args:
    state: A new one; a checkpoint in the run's folder takes its place.
    run: Where everything goes.
    test: `state -> Evaluation`, or other numbers.
    steps: Rollouts in all.
    **settings: The other arguments of `fit`.

  Returns:
    What `fit` returns.
  """
  with open_checkpoints(run.folder / "checkpoints") as checkpoints:
    resumed = checkpoints.latest()
    state = checkpoints.resume(state)
    if resumed is not None:
      run.rewind(resumed)
    elif run.set_aside():
      print("no checkpoint to resume from: starting again; the earlier logs are kept as *.jsonl.old", flush=True)
    if resumed is None:
      run.write_evaluation(0, test(state))
    state, done = fit(state, steps=steps, run=run, checkpoints=checkpoints, **settings)
  if done == steps and not run.has_evaluation(done):
    run.write_evaluation(done, test(state))
  return state, done


def fit(
  state: RLState,
  *,
  steps: int,
  collect: Collect,
  update: TrainStep,
  run: RunDirectory,
  checkpoints: Checkpoints,
  checkpoint_every: int = 0,
  epochs: int = 1,
  minibatches: int = 1,
  place: Callable[[Batch], Batch] = lambda batch: batch,
  compiles: Callable[[], int] = lambda: 0,
  enough: Callable[[dict[str, float]], bool] | None = None,
) -> tuple[RLState, int]:
  """Trains until `steps` rollouts have been collected and used, counting those of the state that comes in.

  Each rollout is used for `epochs * minibatches` updates. The state is saved at the end, every `checkpoint_every`
  rollouts, on Ctrl-C or SIGTERM (which let the step finish), and when a reward function fails. If the update itself
  fails, its donated state is gone with it, and the last checkpoint is what remains.

  Args:
    state: From `RLState.create` or a checkpoint.
    steps: Rollouts in all.
    collect: From `train.rollout.make_collect`.
    update: From `train.step.make_train_step`, wrapped by one of `train.parallel`.
    run: Where metrics and samples go.
    checkpoints: Where states go.
    checkpoint_every: Rollouts between checkpoints; 0 for none but the last.
    epochs: Passes over each rollout.
    minibatches: Parts of a rollout, split by prompts; each is one update.
    place: Puts a batch on the devices, such as `parallel.shard_rows` of a mesh.
    compiles: Returns how many programs have been compiled, for the metric `compiles`.
    enough: `metrics of an update -> bool`: whether a rollout's other updates are left out, such as when `approx_kl` is
      above a limit. The metric `updates` counts those that were made. The device is then waited for at every update.

  Returns:
    The state after the last finished rollout, and how many are finished: fewer than `steps` after Ctrl-C.
  """
  if min(epochs, minibatches) < 1:
    raise ValueError(f"epochs and minibatches must be at least 1, got {epochs} and {minibatches}")
  first = int(state.rollouts)
  done = first
  with LiveTable(steps, first=first) as table, _interrupted() as stop:
    try:
      while done < steps and not stop():
        start = time.perf_counter()
        collected = collect(state)
        collected_at = time.perf_counter()
        order_key = jax.random.fold_in(state.keys().order, done)
        parts = _minibatches(collected, order_key, epochs, minibatches)
        policy, metrics, count = _updates(update, state.policy, map(place, parts), enough)
        values = metrics_lib.results(metrics)  # waits for the device
        done += 1
        state = collected.state._replace(policy=policy, rollouts=np.int32(done))
        seconds = time.perf_counter() - start
        row = collected.metrics | values
        if enough is not None:
          row["updates"] = float(count)
        row["tokens_per_second"] = row.pop("tokens") / seconds
        row |= {"seconds": seconds, "seconds/rollout": collected_at - start}
        row |= {"compiles": float(compiles()), "peak_gib": memory.peak_gib()}
        run.write_metrics(done, row)
        run.write_samples(done, collected.samples)
        table.add(done, row)
        if row.get("prompts_skipped"):
          table.warn(f"step {done}: {row['prompts_skipped']:.0f} prompts were too long and passed over")
        if np.isnan(row.get("reward", 0.0)):
          table.warn(f"step {done}: no reward function applied to any completion")
        if row["skipped"]:
          table.warn(f"step {done}: loss or gradient not finite; {row['skipped']:.0%} of its updates were left out")
        if checkpoint_every and done % checkpoint_every == 0:
          checkpoints.save(done, state)
    finally:
      if done > first and not _was_donated(state):
        checkpoints.save(done, state)
  return state, done


def _updates(
  update: TrainStep, policy: TrainState, parts: Iterable[Batch], enough: Callable[[dict[str, float]], bool] | None
) -> tuple[TrainState, Metrics, int]:
  """Updates with one part after the other, until all were used or one says that it is enough."""
  collected = []
  for part in parts:
    policy, metrics = update(policy, part)
    collected.append(metrics)
    if enough is not None and enough(metrics_lib.results(metrics)):
      break
  return policy, metrics_lib.reduce(jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(collected))), len(collected)


def _minibatches(collected: Collected, key: jax.Array, epochs: int, minibatches: int) -> Iterator[Batch]:
  """Shuffles the rows of each kind, and gives every minibatch the same number of each."""
  batch = collected.batch
  if epochs * minibatches == 1:
    yield batch
    return
  rows = jax.tree.leaves(batch)[0].shape[0]
  bounds = np.cumsum((0, rows - collected.extra_rows, collected.extra_rows))
  for epoch in range(epochs):
    kinds = []
    for kind, (first, last) in enumerate(pairwise(bounds)):
      epoch_key = jax.random.fold_in(key, epoch + epochs * kind)
      order = first + np.asarray(jax.random.permutation(epoch_key, int(last - first)))
      kinds.append(order.reshape(minibatches, order.size // minibatches))
    for part in np.concatenate(kinds, axis=1):
      yield jax.tree.map(lambda leaf, part=part: leaf[part], batch)


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
