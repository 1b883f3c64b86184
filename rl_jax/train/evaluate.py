"""Greedy evaluation on a task's held-out rows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from rl_jax.analysis.statistics import wilson_interval
from rl_jax.sampling.generate import Generate
from rl_jax.sampling.samplers import Sampler
from rl_jax.tasks.base import Task
from rl_jax.train import answers, text
from rl_jax.train.score import RewardModel, Sequences


class Evaluation(NamedTuple):
  """Results on `count` held-out rows.

  Attributes:
    reward: Mean reward; NaN or None where no reward applied.
    solved: How many were solved exactly; None where the task cannot tell.
    count: Rows that were tried.
    skipped: Rows whose prompt was over the limit.
    samples: Prompts, completions and rewards.
    learned: Mean score of a reward model; None without one.
  """

  reward: float | None
  solved: int | None
  count: int
  skipped: int
  samples: list[dict[str, Any]]
  learned: float | None = None

  def describe(self) -> str:
    """Returns one line: the solved fraction with its 95 % interval, or the mean reward; and a reward model's score."""
    problems = f"{self.count} held-out problems" + (f" ({self.skipped} too long)" if self.skipped else "")
    learned = "" if self.learned is None else f"learnt reward {self.learned:.3f}"
    if self.solved is not None:
      low, high = wilson_interval(self.solved, self.count)
      interval = f"95 % interval {low:.3f} to {high:.3f}"
      solved = f"{self.solved / self.count:.3f} solved, {interval}, {self.solved} of {problems}"
      return f"{solved}; {learned}" if learned else solved
    if self.reward is not None and not np.isnan(self.reward):
      return f"mean reward {self.reward:.3f}{', ' + learned if learned else ''} on {problems}"
    return f"{learned} on {problems}" if learned else f"no reward applied to any of {problems}"


class Measured(NamedTuple):
  """Held-out numbers of a supervised model, in place of a rollout's evaluation."""

  values: Mapping[str, float]
  samples: Sequence[Mapping[str, Any]] = ()

  def describe(self) -> str:
    values = {name: float("nan") if value is None else value for name, value in self.values.items()}
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def evaluate(
  params: Any,
  *,
  task: Task,
  tokenizer: Any,
  generate: Generate,
  stop_tokens: np.ndarray,
  max_prompt_tokens: int,
  batch_size: int = 64,
  reward_model: RewardModel | None = None,
) -> Evaluation:
  """Answers every held-out row greedily and scores the answers.

  Args:
    params: Of the policy.
    task: Held-out rows, rewards and the notion of a solved row.
    tokenizer: A `transformers` tokenizer.
    generate: From `sampling.make_generate` with `group_size=1`, jitted.
    stop_tokens: `[S]`, from `text.stop_tokens`.
    max_prompt_tokens: Longer prompts are left out, and counted.
    batch_size: Prompts at one time.
    reward_model: `sequences -> scores`, jitted, whose mean is reported besides.

  Raises:
    ValueError: If no held-out prompt is within the limit.
  """
  encoded = [(row, text.encode(tokenizer, row["prompt"])) for row in task.evaluation]
  kept = [(row, tokens) for row, tokens in encoded if len(tokens) <= max_prompt_tokens]
  if not kept:
    raise ValueError(f"no held-out prompt of {task.name!r} is within max_prompt_tokens={max_prompt_tokens}")
  rows = [row for row, _ in kept]
  pad_token = text.pad_token(tokenizer)
  tokens, mask = text.pad([tokens for _, tokens in kept], pad_token)
  batch_size = min(batch_size, len(rows))
  fill = -len(rows) % batch_size  # repeat the last rows, so that every batch has the same shape
  order = np.minimum(np.arange(len(rows) + fill), len(rows) - 1).reshape(-1, batch_size)
  outputs, scores = [], []
  for part in track(order, description="evaluating", transient=True):
    out = generate(params, tokens[part], mask[part], stop_tokens, jax.random.key(0), Sampler(temperature=0.0))
    outputs.append(out)
    if reward_model is not None:
      sequences = Sequences(*map(jnp.asarray, (tokens[part], mask[part], out.tokens, out.mask)))
      scores.append(np.asarray(reward_model(sequences)).reshape(len(part), -1).sum(axis=-1))
  completions = np.concatenate([np.asarray(out.tokens[:, 0]) for out in outputs])[: len(rows)]
  real = np.concatenate([np.asarray(out.mask[:, 0]) for out in outputs])[: len(rows)]
  texts, replies, scored = answers.score(task, tokenizer, rows, completions, real)
  solved = None if task.solved is None else sum(answers.solved(task, rows, replies, completions, real))
  samples: list[dict[str, Any]] = [
    {"prompt": row["prompt"], "completion": reply, "reward": float(reward)}
    for row, reply, reward in zip(rows, texts, scored.total, strict=True)
  ]
  learned = None
  if scores:
    each = np.concatenate(scores)[: len(rows)]
    learned = float(each.mean())
    samples = [sample | {"learned": float(score)} for sample, score in zip(samples, each, strict=True)]
  rewarded = scored.total[~np.isnan(scored.total)]
  reward = float(rewarded.mean()) if rewarded.size else float("nan")
  return Evaluation(reward, solved, len(rows), len(encoded) - len(rows), samples, learned)
