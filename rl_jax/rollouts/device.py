"""Rollouts on the device: problems drawn, completions sampled and judged in pure JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.ops import kl
from rl_jax.ops.masking import masked_mean
from rl_jax.rollouts.collect import Judge, Sample, Sampled, once
from rl_jax.rollouts.experience import rewards_of, rollout_metrics
from rl_jax.rollouts.rollout import Rollout
from rl_jax.sampling.generate import LanguageModel, make_generate
from rl_jax.sampling.samplers import SamplingParams
from rl_jax.state import Forward, Judgment, RLState, Running, Sequences
from rl_jax.tasks.on_device import base as on_device

Complete = Callable[[Any, on_device.Problems, Array], Sampled]


def make_complete(
  task: on_device.Task,
  model: LanguageModel,
  *,
  group_size: int,
  temperature: float | Array = 1.0,
  mask_truncated: bool = False,
) -> Complete:
  """Returns `complete(params, problems, key) -> Sampled`: G completions of each problem.

  >>> from rl_jax.models import presets
  >>> from rl_jax.tasks.on_device import addition
  >>> task, model = addition.load(), presets.load("tiny")
  >>> problems = on_device.sample(task, jax.random.key(0), 2)
  >>> complete = jax.jit(make_complete(task, model.policy, group_size=3))
  >>> judgment, _ = make_judge(task)(complete(model.params, problems, jax.random.key(1)))
  >>> judgment.scores["addition-2"].shape
  (2, 3)
  """
  generate = make_generate(
    model, group_size=group_size, max_new_tokens=task.max_new_tokens, pad_token=on_device.PAD, stop_early=False
  )

  def complete(params: Any, problems: on_device.Problems, key: Array) -> Sampled:
    prompts = problems.prompts, problems.prompt_mask
    out = generate(params, *prompts, jnp.array([on_device.EOS]), key, SamplingParams(temperature))
    mask = out.mask & out.terminated[..., None] if mask_truncated else out.mask
    sequences = Sequences(*prompts, out.tokens, out.mask)
    rollout = Rollout(sequences, mask, out.logp, out.full_logp, out.terminated)
    return Sampled(problems.data, rollout, Running(jnp.zeros((), jnp.int32)))

  return complete


def make_sample(task: on_device.Task, complete: Complete, *, num_prompts: int) -> Sample:
  """Returns `sample(state) -> Sampled`: completions of fresh problems.

  Args:
    task: A task on the device.
    complete: What `make_complete` returns.
    num_prompts: P, prompts a rollout.
  """

  def sample(state: RLState) -> Sampled:
    keys, position = state.keys(), state.running.position
    problems = on_device.sample(task, jax.random.fold_in(keys.problems, position), num_prompts)
    sampled = complete(state.policy.params, problems, jax.random.fold_in(keys.sample, position))
    return sampled._replace(running=state.running._replace(position=position + num_prompts))

  return sample


def make_greedy(task: on_device.Task, model: LanguageModel) -> Callable[[RLState, Sampled], Sampled]:
  """Returns `(state, sampled) -> Sampled`: one greedy completion of each of the problems that were sampled for."""
  complete = make_complete(task, model, group_size=1, temperature=0.0)

  def greedy(state: RLState, sampled: Sampled) -> Sampled:
    prompts, prompt_mask = sampled.rollout.sequences[:2]
    problems = on_device.Problems(prompts, prompt_mask, sampled.problems)
    return complete(state.policy.params, problems, state.key)

  return greedy


def make_judge(task: on_device.Task, *, weight: float = 1.0, process_rewards: bool = False) -> Judge:
  """Returns `judge(sampled) -> (judgment, ())`, which asks the task's verifier.

  Args:
    task: The verdict's reward is the score of the task's name.
    weight: Weight of the task's rewards; 0 to log them alone.
    process_rewards: Whether the rewards of steps count, as the score `TASK/steps`, and not those of the whole.

  `judge` raises ValueError if the task has no steps to reward.
  """
  steps = f"{task.name}/steps"

  def judge(sampled: Sampled) -> tuple[Judgment, Sequence[dict[str, Any]]]:
    _, _, tokens, mask = sampled.rollout.sequences
    verdict = on_device.judge(task, sampled.problems, tokens, mask)
    if not process_rewards:
      return Judgment.of({task.name: verdict.reward}, {task.name: weight}, verdict.solved), ()
    if verdict.step_rewards is None:
      raise ValueError(f"task {task.name!r} has no rewards of steps")
    scores, weights = {task.name: verdict.reward, steps: verdict.step_rewards}, {task.name: 0.0, steps: weight}
    return Judgment.of(scores, weights, verdict.solved), ()

  return judge


def make_evaluate(
  task: on_device.Task, complete: Complete, judge: Judge, forward: Forward, *, problems: int
) -> Callable[[RLState], dict[str, Array]]:
  """Returns `evaluate(state) -> metrics` on completions of the same problems every time.

  The metrics are those of a rollout, and besides, in nats a token: `entropy`, and `kl_ref`, the KL to the reference
  (k3).

  Args:
    task: A task on the device.
    complete: What `make_complete` returns, with one completion a problem.
    judge: The one that judges rollouts.
    forward: The learner's forward pass.
    problems: Problems an evaluation.
  """

  def sample(state: RLState) -> Sampled:
    problem_key, sample_key = jax.random.split(jax.random.key(0))
    return complete(state.policy.params, on_device.sample(task, problem_key, problems), sample_key)

  play = once(sample, judge)

  def evaluate(state: RLState) -> dict[str, Array]:
    played = play(state)
    rollout, (judgment, _) = played.sampled.rollout, played.verdict()
    now: Any = forward(state.policy.params, rollout.sequences)
    start: Any = forward(state.ref_params, rollout.sequences)
    metrics = rollout_metrics(rollout, judgment, rewards_of(judgment, rollout))
    per_token = {"entropy": now.entropy, "kl_ref": kl.k3(now.logp, start.logp)}
    return metrics | {name: masked_mean(x, rollout.sequences.real) for name, x in per_token.items()}

  return evaluate
