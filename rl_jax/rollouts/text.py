"""Rollouts on text: prompts from a task on the host, completions decoded and judged by Python functions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rl_jax.rollouts.collect import Judge, Sample, Sampled
from rl_jax.rollouts.rollout import Rollout
from rl_jax.sampling.generate import Generate
from rl_jax.sampling.samplers import SamplingParams
from rl_jax.state import Judgment, RLState, Sequences
from rl_jax.tasks import judging
from rl_jax.tasks.text import PromptBatch, Prompts, bucketed

SHORTEST = 8  # slots of a completion: below it, every length would be a program of its own to compile
GREEDY = SamplingParams(temperature=0.0)

Complete = Callable[[Any, PromptBatch, jax.Array], Rollout]


def make_complete(
  generate: Generate,
  stop_tokens: np.ndarray,
  *,
  sampling: SamplingParams = SamplingParams(),
  mask_truncated: bool = False,
  put: Callable[[Any], Any] = lambda tree: tree,
) -> Complete:
  """Returns `complete(params, prompts, key) -> Rollout`, of NumPy arrays: it waits for the device.

  Args:
    generate: A function from `sampling.make_generate`, jitted.
    stop_tokens: `[S]`, those that end a completion.
    sampling: Temperature and filters.
    mask_truncated: Whether completions that were truncated are left out of the loss.
    put: Puts a pytree with prompts on the leading axis on the devices, such as `Devices.put`.
  """

  def complete(params: Any, prompts: PromptBatch, key: jax.Array) -> Rollout:
    given: Any = (prompts.tokens, prompts.mask)
    out = jax.device_get(generate(params, *put(given), stop_tokens, key, sampling))
    longest = int(out.mask.sum(axis=-1).max())
    length = min(bucketed(max(longest, SHORTEST)), out.mask.shape[-1])
    mask = out.mask[..., :length]
    return Rollout(
      Sequences(given[0], given[1], out.tokens[..., :length], mask),
      mask=mask & out.terminated[..., None] if mask_truncated else mask,
      behavior_logp=out.logp[..., :length],
      full_logp=out.full_logp[..., :length],
      terminated=out.terminated,
    )

  return complete


def make_sample(
  prompts: Prompts, complete: Complete, *, num_prompts: int, put: Callable[[Any], Any] = lambda tree: tree
) -> Sample:
  """Returns `sample(state) -> Sampled`: completions of the next prompts of the data.

  Args:
    prompts: Where they come from.
    complete: What `make_complete` returns.
    num_prompts: P, prompts a rollout.
    put: Puts a pytree with prompts on the leading axis on the devices.

  Raises:
    ValueError: If `num_prompts` is below 1.
  """
  if num_prompts < 1:
    raise ValueError(f"num_prompts must be at least 1, got {num_prompts}")

  def sample(state: RLState) -> Sampled:
    position = int(state.running.position)
    batch = prompts.draw(position, num_prompts)
    rollout = complete(state.policy.params, batch, jax.random.fold_in(state.keys().sample, position))
    running = state.running._replace(position=np.int32(batch.position))
    return Sampled(batch.rows, put(rollout), running, {"prompts_skipped": float(batch.skipped)})

  return sample


def make_greedy(generate: Generate, stop_tokens: np.ndarray, *, put: Callable[[Any], Any] = lambda tree: tree) -> Any:
  """Returns `(state, sampled) -> Sampled`: one greedy completion of each of the prompts that were sampled for.

  Args:
    generate: A function from `sampling.make_generate` with `group_size=1`, jitted.
    stop_tokens: `[S]`.
    put: Puts a pytree with prompts on the leading axis on the devices.
  """
  complete = make_complete(generate, stop_tokens, sampling=GREEDY, put=put)

  def greedy(state: RLState, sampled: Sampled) -> Sampled:
    given: Any = sampled.rollout.sequences[:2]
    batch = PromptBatch(sampled.problems, given[0], given[1], 0, 0)
    return sampled._replace(rollout=put(complete(state.policy.params, batch, state.key)))

  return greedy


def make_judge(prompts: Prompts) -> Judge:
  """Returns `judge(sampled) -> (judgment, records)`, which calls the task's reward functions on decoded completions."""

  def judge(sampled: Sampled) -> tuple[Judgment, Sequence[dict[str, Any]]]:
    return judging.judge(prompts.task, prompts.decode, sampled.problems, sampled.rollout.sequences)

  return judge
