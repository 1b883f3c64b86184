"""Evaluation on a task's held-out rows: completions, what is said of them, and a summary."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from rl_jax.ops.statistics import majority_at_k, pass_at_k
from rl_jax.rollouts.collect import Judge, Sample, Sampled, annotated, once
from rl_jax.rollouts.experience import rewards_of
from rl_jax.rollouts.text import Complete
from rl_jax.runs.results import EvaluationResult
from rl_jax.state import RLState, Running
from rl_jax.tasks.text import PromptBatch, Prompts

Record = dict[str, Any]


class Draws(NamedTuple):
  """Several answers to a prompt, besides the greedy one.

  Attributes:
    complete: What `rollouts.text.make_complete` returns: n completions a prompt, at a temperature.
    prompts: How many of the held-out prompts are answered so, the first ones.
    batch_size: Prompts at one time.
  """

  complete: Complete
  prompts: int = 64
  batch_size: int = 16


def make_evaluate(
  prompts: Prompts, complete: Complete, judge: Judge, *, batch_size: int = 64, draws: Draws | None = None
) -> Callable[[RLState], EvaluationResult]:
  """Returns `evaluate(state) -> EvaluationResult`: every held-out row is answered and judged.

  Args:
    prompts: Held-out rows, rewards and the notion of a solved row.
    complete: What `rollouts.text.make_complete` returns: greedy, with one completion a prompt.
    judge: The one that judges rollouts.
    batch_size: Prompts at one time.
    draws: Several answers to some of the prompts, for pass@k and maj@k; the same random numbers every time.

  `evaluate` raises ValueError if no held-out prompt is within the limit.
  """

  def evaluate(state: RLState) -> EvaluationResult:
    held_out = prompts.held_out()
    greedy = _answers(state, held_out, complete, judge, batch_size)
    drawn = []
    if draws is not None:
      drawn = _answers(state, _first(held_out, draws.prompts), draws.complete, judge, draws.batch_size)
    result = summary(greedy, drawn, prompts.task.answer, held_out.skipped)
    return result._replace(samples=[*greedy, *(_drawn(record) for record in drawn)])

  return evaluate


def _first(held_out: PromptBatch, count: int) -> PromptBatch:
  return held_out._replace(rows=held_out.rows[:count], tokens=held_out.tokens[:count], mask=held_out.mask[:count])


def _answers(state: RLState, held_out: PromptBatch, complete: Complete, judge: Judge, batch_size: int) -> list[Record]:
  """Answers to all rows, with what was said of them and their tokens: one record each, in order."""
  count = len(held_out.rows)
  parts = -(-count // batch_size)
  size = -(-count // parts)  # batches of one shape, with as few rows judged twice as can be
  play, records = once(make_sample(held_out, complete, size), judge), []
  for start in track(range(0, count, size), description="evaluating", transient=True):
    played = play(state._replace(running=Running(jnp.int32(start))))
    rollout, (judgment, found) = played.sampled.rollout, played.verdict()
    rewards = rewards_of(judgment, rollout).known
    for place, record in enumerate(annotated(found, rollout, judgment, rewards)):
      row, draw = divmod(place, rewards.shape[1])
      real = np.asarray(rollout.sequences.completion_mask[row, draw]) != 0
      given = held_out.tokens[min(start + row, count - 1)], held_out.mask[min(start + row, count - 1)]
      record = {name: value for name, value in record.items() if name != "tokens"}
      tokens = np.asarray(rollout.sequences.completions[row, draw])[real].tolist()
      ids = {"prompt_token_ids": given[0][given[1]].tolist(), "token_ids": tokens}
      records.append({"problem": start + row, "draw": draw} | record | ids)
  return [record for record in records if record["problem"] < count]


def _drawn(record: Record) -> Record:
  """A record of one of several answers; the greedy one's has the prompt already."""
  kept = {name: value for name, value in record.items() if not name.startswith("prompt")}
  return kept | {"draw": record["draw"] + 1}


def make_sample(held_out: PromptBatch, complete: Complete, size: int) -> Sample:
  """Returns `sample(state) -> Sampled`: answers to the next `size` held-out rows, the last one repeated at the end."""

  def sample(state: RLState) -> Sampled:
    start = int(state.running.position)
    rows = np.minimum(np.arange(start, start + size), len(held_out.rows) - 1)
    batch = PromptBatch([held_out.rows[row] for row in rows], held_out.tokens[rows], held_out.mask[rows], 0, 0)
    rollout = complete(state.policy.params, batch, jax.random.fold_in(jax.random.key(0), start))
    return Sampled(batch.rows, rollout, Running(jnp.int32(start + size)))

  return sample


def summary(
  greedy: Sequence[Record], drawn: Sequence[Record], answer: Callable[[str], str], skipped: int
) -> EvaluationResult:
  """Returns the result of all answers together.

  Args:
    greedy: One record a prompt.
    drawn: Those of several answers, prompt by prompt.
    answer: `completion -> answer`, of which equal ones are votes for the same.
    skipped: Prompts that were not asked.
  """
  known = [record["reward"] for record in greedy if not np.isnan(record["reward"])]
  names = list(greedy[0]["rewards"])
  scores = {name: _mean([record["rewards"][name] for record in greedy]) for name in names} if len(names) > 1 else {}
  return EvaluationResult(
    reward=float(np.mean(known)) if known else float("nan"),
    solved=sum(record["solved"] for record in greedy) if "solved" in greedy[0] else None,
    count=len(greedy),
    skipped=skipped,
    scores=scores,
    drawn=of_draws(drawn, answer) if drawn and "solved" in drawn[0] else {},
  )


def of_draws(drawn: Sequence[Record], answer: Callable[[str], str]) -> dict[str, float]:
  """Returns pass@k and maj@k for k of 1, 2, 4, ... and the number of answers to a prompt.

  >>> rows = [{"problem": 0, "completion": text, "solved": text == "7"} for text in ("7", "7 ", "8", "9")]
  >>> of_draws([row | {"solved": "7" in row["completion"]} for row in rows], str.strip)
  {'pass@1': 0.5, 'pass@2': 0.8333333333333334, 'pass@4': 1.0, 'maj@1': 0.5, 'maj@2': 0.5, 'maj@4': 1.0}
  """
  problems: dict[int, list[Record]] = {}
  for record in drawn:
    problems.setdefault(record["problem"], []).append(record)
  solved = np.array([[record["solved"] for record in records] for records in problems.values()])
  answers = [[answer(record["completion"]) for record in records] for records in problems.values()]
  count = solved.shape[-1]
  ks = sorted({1 << i for i in range(count.bit_length()) if 1 << i <= count} | {count})
  passed = {f"pass@{k}": float(np.mean(pass_at_k(solved, k))) for k in ks}
  votes = {
    f"maj@{k}": float(np.mean([majority_at_k(a, s, k) for a, s in zip(answers, solved.tolist(), strict=True)]))
    for k in ks
  }
  return passed | votes


def _mean(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return float(np.mean(known)) if known else None
