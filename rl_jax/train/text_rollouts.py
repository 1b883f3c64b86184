"""Rollouts and evaluation on text, put together for a learner: what `train.compiled` does for tasks on the device."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rl_jax.devices import Devices
from rl_jax.objectives import Algorithm
from rl_jax.ops.shaping import PLAIN, Shaping
from rl_jax.rollouts import text
from rl_jax.rollouts.collect import Collect, Source, compose, once, with_reward_model
from rl_jax.rollouts.dynamic import play_until_full
from rl_jax.rollouts.evaluate import Draws, make_evaluate
from rl_jax.runs.results import EvaluationResult
from rl_jax.sampling.generate import Generate, make_generate
from rl_jax.sampling.samplers import SamplingParams
from rl_jax.state import RewardModel, RLState, Sequences, Values
from rl_jax.tasks import rewards
from rl_jax.tasks.text import Prompts, pad_token
from rl_jax.train.actors import Learner
from rl_jax.train.schedule import Schedule, check_algorithm, reads_old_logp


class TextRollouts(NamedTuple):
  """What a loop needs of a task on text.

  Attributes:
    collect: `state -> Collected`.
    evaluate: `state -> EvaluationResult`, greedy, on the held-out rows; and of several answers to some, where asked.
  """

  collect: Collect
  evaluate: Callable[[RLState], EvaluationResult]


def make_text_rollouts(
  prompts: Prompts,
  learner: Learner,
  algorithm: Algorithm,
  devices: Devices,
  *,
  num_prompts: int,
  group_size: int,
  max_new_tokens: int,
  sampling: SamplingParams = SamplingParams(),
  schedule: Schedule = Schedule(),
  shaping: Shaping = PLAIN,
  reward_model: RewardModel | None = None,
  values: Callable[[Any, Sequences], Values] | None = None,
  recompute_old_logp: bool = False,
  mask_truncated: bool = False,
  max_draws: int = 1,
  evaluation_samples: int = 0,
) -> TextRollouts:
  """Puts play, outputs and experience together.

  Args:
    prompts: Task, tokenizer, and what ends an answer.
    learner: The policy that samples; its forward passes must be at the sampling's temperature.
    algorithm: An objective and its advantage.
    devices: Where everything runs.
    num_prompts: P, prompts a rollout.
    group_size: G, completions a prompt.
    max_new_tokens: T, tokens of the longest completion.
    sampling: Temperature and filters.
    schedule: What each rollout is used for; the loop must be given the same one.
    shaping: How rewards of completions become rewards of tokens; a KL takes its weight from the state's `kl_coef`.
    reward_model: Its scores, `learned`, are added to the task's rewards.
    values: A critic's pass, where the algorithm needs values.
    recompute_old_logp: Whether old log-probs come from a pass of their own, or from the sampler.
    mask_truncated: Whether completions that were truncated are left out of the loss.
    max_draws: Above 1, prompts are drawn up to so many times, until all groups have rewards that differ.
    evaluation_samples: Answers to each of some held-out prompts, sampled as in training; 0 for greedy ones alone.

  Raises:
    ValueError: If the algorithm needs what nothing gives, or there is nothing to learn from.
  """
  check_algorithm(algorithm, schedule, group_size)
  rewards.check_any(prompts.task.rewards, reward_model is not None)

  def generate_of(size: int) -> Generate:
    return _make_generate(prompts, learner, devices, size, max_new_tokens)

  generate, generate_greedy = generate_of(group_size), generate_of(1)
  complete = text.make_complete(
    generate, prompts.stop_tokens, sampling=sampling, mask_truncated=mask_truncated, put=devices.put
  )
  judge = text.make_judge(prompts)
  if reward_model is not None:
    judge = with_reward_model(judge, reward_model)
  read = reads_old_logp(algorithm, schedule, kl_in_reward=shaping.kl is not None)
  forward = devices.jit(learner.forward(temperature=sampling.temperature))
  collect = compose(
    Source(
      text.make_sample(prompts, complete, num_prompts=num_prompts, put=devices.put),
      judge,
      text.make_greedy(generate_greedy, prompts.stop_tokens, put=devices.put),
    ),
    algorithm,
    on_policy=schedule.on_policy,
    shaping=shaping,
    reference=learner.reference(devices, temperature=sampling.temperature),
    values=None if values is None else devices.jit(values),
    recompute_old_logp=forward if recompute_old_logp and read else None,
    make_play=partial(play_until_full, max_draws=max_draws, put=devices.put) if max_draws > 1 else once,
    jit=devices.jit,
  )
  complete_greedy = text.make_complete(generate_greedy, prompts.stop_tokens, sampling=text.GREEDY)
  draws = None
  if evaluation_samples:
    complete_some = text.make_complete(generate_of(evaluation_samples), prompts.stop_tokens, sampling=sampling)
    draws = Draws(complete_some, batch_size=max(num_prompts * group_size // evaluation_samples, 1))
  return TextRollouts(collect, make_evaluate(prompts, complete_greedy, judge, draws=draws))


def _make_generate(
  prompts: Prompts, learner: Learner, devices: Devices, group_size: int, max_new_tokens: int
) -> Generate:
  """The learner's sampler, jitted: it never draws a token that the tokenizer lacks."""
  generate = make_generate(
    learner.model.policy,
    group_size=group_size,
    max_new_tokens=max_new_tokens,
    pad_token=pad_token(prompts.tokenizer),
    known_tokens=learner.model.known_tokens,
  )
  return devices.jit(learner.lift(generate))
