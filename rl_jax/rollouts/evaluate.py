"""Evaluation on a task's held-out rows: completions, what is said of them, and a summary."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from rich.progress import track

from rl_jax.rollouts.collect import Judge, Sampled, annotated, known_rewards
from rl_jax.rollouts.text import Complete
from rl_jax.runs.results import EvaluationResult
from rl_jax.state import RLState
from rl_jax.tasks.text import PromptBatch, Prompts


def make_evaluate(
  prompts: Prompts, complete: Complete, judge: Judge, *, weights: Mapping[str, float] = {}, batch_size: int = 64
) -> Callable[[RLState], EvaluationResult]:
  """Returns `evaluate(state) -> EvaluationResult`: every held-out row is answered and judged.

  Args:
    prompts: Held-out rows, rewards and the notion of a solved row.
    complete: What `rollouts.text.make_complete` returns: greedy with one completion a prompt, or n at a temperature.
    judge: The one that judges rollouts.
    weights: Weight of each reward by name, as for the experience.
    batch_size: Prompts at one time.

  `evaluate` raises ValueError if no held-out prompt is within the limit.
  """

  def evaluate(state: RLState) -> EvaluationResult:
    held_out = prompts.held_out()
    count = len(held_out.rows)
    parts = -(-count // batch_size)
    size = -(-count // parts)  # batches of one shape, with as few rows judged twice as can be
    records, rewards, solved = [], [], []
    for start in track(range(0, count, size), description="evaluating", transient=True):
      rows = np.minimum(np.arange(start, start + size), count - 1)  # the last row fills the last batch: one shape
      batch = PromptBatch([], held_out.tokens[rows], held_out.mask[rows], 0, 0)
      rollout = complete(state.policy.params, batch, jax.random.fold_in(jax.random.key(0), start))
      judgment, found = judge(Sampled([held_out.rows[row] for row in rows], rollout, state.running))
      reward = known_rewards(judgment, weights, rollout)
      new = min(size, count - start) * reward.shape[1]
      records += annotated(found, rollout, judgment, reward)[:new]
      rewards.append(np.asarray(reward).reshape(-1)[:new])
      solved.append(None if judgment.solved is None else np.asarray(judgment.solved).reshape(-1)[:new])
    return summary(records, np.concatenate(rewards), solved, held_out.skipped)

  return evaluate


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
