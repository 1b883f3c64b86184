"""Evaluation on a task's held-out rows: completions, what is said of them, and a summary."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from rl_jax.rollouts.collect import Judge, Sample, Sampled, annotated, once
from rl_jax.rollouts.experience import rewards_of
from rl_jax.rollouts.text import Complete
from rl_jax.runs.results import EvaluationResult
from rl_jax.state import RLState, Running
from rl_jax.tasks.text import PromptBatch, Prompts


def make_evaluate(
  prompts: Prompts, complete: Complete, judge: Judge, *, batch_size: int = 64
) -> Callable[[RLState], EvaluationResult]:
  """Returns `evaluate(state) -> EvaluationResult`: every held-out row is answered and judged.

  Args:
    prompts: Held-out rows, rewards and the notion of a solved row.
    complete: What `rollouts.text.make_complete` returns: greedy with one completion a prompt, or n at a temperature.
    judge: The one that judges rollouts.
    batch_size: Prompts at one time.

  `evaluate` raises ValueError if no held-out prompt is within the limit.
  """

  def evaluate(state: RLState) -> EvaluationResult:
    held_out = prompts.held_out()
    count = len(held_out.rows)
    parts = -(-count // batch_size)
    size = -(-count // parts)  # batches of one shape, with as few rows judged twice as can be
    records, rewards, solved = [], [], []
    play = once(make_sample(held_out, complete, size), judge)
    for start in track(range(0, count, size), description="evaluating", transient=True):
      played = play(state._replace(running=Running(jnp.int32(start))))
      rollout, (judgment, found) = played.sampled.rollout, played.verdict()
      reward = rewards_of(judgment, rollout).known
      new = min(size, count - start) * reward.shape[1]
      records += annotated(found, rollout, judgment, reward)[:new]
      rewards.append(np.asarray(reward).reshape(-1)[:new])
      solved.append(None if judgment.solved is None else np.asarray(judgment.solved).reshape(-1)[:new])
    return summary(records, np.concatenate(rewards), solved, held_out.skipped)

  return evaluate


def make_sample(held_out: PromptBatch, complete: Complete, size: int) -> Sample:
  """Returns `sample(state) -> Sampled`: answers to the next `size` held-out rows, the last one repeated at the end."""

  def sample(state: RLState) -> Sampled:
    start = int(state.running.position)
    rows = np.minimum(np.arange(start, start + size), len(held_out.rows) - 1)
    batch = PromptBatch([held_out.rows[row] for row in rows], held_out.tokens[rows], held_out.mask[rows], 0, 0)
    rollout = complete(state.policy.params, batch, jax.random.fold_in(jax.random.key(0), start))
    return Sampled(batch.rows, rollout, Running(jnp.int32(start + size)))

  return sample


def summary(records: Any, rewards: np.ndarray, solved: Any, skipped: int) -> EvaluationResult:
  """Returns the result of all answers together."""
  known = rewards[~np.isnan(rewards)]
  names = list(records[0]["rewards"])
  scores = {name: _mean([record["rewards"][name] for record in records]) for name in names} if len(names) > 1 else {}
  samples = [{name: value for name, value in record.items() if name != "tokens"} for record in records]
  return EvaluationResult(
    reward=float(known.mean()) if known.size else float("nan"),
    solved=None if any(part is None for part in solved) else int(sum(part.sum() for part in solved)),
    count=len(records),
    skipped=skipped,
    scores=scores,
    samples=samples,
  )


def _mean(values: list[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return float(np.mean(known)) if known else None
