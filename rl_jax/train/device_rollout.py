"""One batch of experience on the device: draw problems, sample completions, judge them, estimate advantages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.objectives.base import Inputs, Objective
from rl_jax.ops import kl, rewards
from rl_jax.ops.masking import masked_mean, masked_sum
from rl_jax.sampling.generate import Completions, LanguageModel, make_generate
from rl_jax.sampling.samplers import Sampler
from rl_jax.tasks.on_device import base as on_device
from rl_jax.train.estimates import Estimate, Experience
from rl_jax.train.score import Score, Scores, Sequences
from rl_jax.train.state import RLState
from rl_jax.train.step import Batch

FILLED = frozenset(Inputs._fields) - {"scores", "ratings", "kl_baseline"}


class Judged(NamedTuple):
  """Completions of problems, as a score function reads them, and what the verifier says."""

  sequences: Sequences
  completions: Completions
  verdict: on_device.Verdict


Play = Callable[[Any, on_device.Problems, Array], Judged]
Collect = Callable[[RLState], tuple[RLState, Batch, dict[str, Array]]]


def make_play(task: on_device.Task, model: LanguageModel, *, group_size: int, temperature: float | Array = 1.0) -> Play:
  """Returns `play(params, problems, key) -> Judged`: G completions of each problem and their verdicts.

  >>> from rl_jax.models import presets
  >>> from rl_jax.tasks.on_device import addition
  >>> task, model = addition.load(), presets.load("tiny")
  >>> problems = on_device.sample(task, jax.random.key(0), 2)
  >>> play = make_play(task, model.policy, group_size=3)
  >>> play(model.params, problems, jax.random.key(1)).verdict.reward.shape
  (2, 3)
  """
  generate = make_generate(
    model, group_size=group_size, max_new_tokens=task.max_new_tokens, pad_token=on_device.PAD, stop_early=False
  )

  def play(params: Any, problems: on_device.Problems, key: Array) -> Judged:
    prompts = problems.prompts, problems.prompt_mask
    completions = generate(params, *prompts, jnp.array([on_device.EOS]), key, Sampler(temperature))
    verdict = on_device.judge(task, problems.data, completions.tokens, completions.mask)
    return Judged(Sequences(*prompts, completions.tokens, completions.mask), completions, verdict)

  return play


def make_collect(
  task: on_device.Task,
  model: LanguageModel,
  score: Score,
  objective: Objective,
  estimate: Estimate,
  *,
  prompts: int,
  group_size: int,
  temperature: float | Array = 1.0,
  on_policy: bool = True,
  kl_in_reward: float | Array = 0.0,
  process_rewards: bool = False,
  mask_truncated: bool = False,
  reward_model: Callable[[Sequences], Array] | None = None,
) -> Collect:
  """Returns `collect(state) -> (state, batch, metrics)`, pure: the device's counterpart of `rollout.make_collect`.

  Args:
    task: On the device.
    model: Pure functions of the parameters.
    score: From `make_score`, at the same temperature, with a value head where values are needed.
    objective: Its `needs` decide which passes run. `target_mask` marks the completions that were solved.
    estimate: From `estimates.adapt`.
    prompts: P.
    group_size: G.
    temperature: Of sampling.
    on_policy: Whether each batch is used for a single update, so that the learner's own log-probs are the old ones.
    kl_in_reward: Weight of the KL (k1) to the reference in each token's reward; a Python 0 leaves it out.
    process_rewards: Whether the rewards of steps are learnt from, instead of the one of the whole answer.
    mask_truncated: Whether completions that were cut off are left out of the loss.
    reward_model: `sequences -> [P, G]`, whose scores are learnt from in place of the task's rewards, which are still
      measured; the metric `learned` is their mean.

  Raises:
    ValueError: If the objective needs a field that a task has nothing for, or the task has no steps to reward.
  """
  if objective.needs - FILLED:
    raise ValueError(f"the objective needs {', '.join(sorted(objective.needs - FILLED))}, which no rollout gives")
  play = make_play(task, model, group_size=group_size, temperature=temperature)
  play_greedy = make_play(task, model, group_size=1, temperature=0.0)
  with_kl = not (isinstance(kl_in_reward, int | float) and kl_in_reward == 0)
  with_values = bool({"values", "old_values"} & (objective.needs | estimate.needs))

  def token_rewards(judged: Judged, mask: Array, old: Any, ref: Any) -> Array:
    verdict = judged.verdict
    if process_rewards and verdict.step_rewards is None:
      raise ValueError(f"task {task.name!r} has no rewards of steps")
    given: Any = verdict.step_rewards if process_rewards else rewards.terminal(verdict.reward, judged.completions.mask)
    return rewards.with_kl(given, old, ref, mask, coef=kl_in_reward) if with_kl else given

  def old_scores(params: Any, judged: Judged) -> Scores:
    """What the policy that sampled says of its batch: a pass of its own only where values are needed."""
    if with_values:
      return jax.lax.stop_gradient(score(params, judged.sequences))
    return Scores(judged.completions.full_logp, None)

  def collect(state: RLState) -> tuple[RLState, Batch, dict[str, Array]]:
    keys = state.keys()
    streams = (keys.sample, keys.noise, keys.problems)
    sample_key, noise_key, problem_key = (jax.random.fold_in(stream, state.position) for stream in streams)
    problems = on_device.sample(task, problem_key, prompts)
    judged = play(state.policy.params, problems, sample_key)
    metrics = summary(judged)
    if reward_model is not None:
      learned = reward_model(judged.sequences)
      judged = judged._replace(verdict=judged.verdict._replace(reward=learned))
      metrics["learned"] = jnp.mean(learned)
    completions, verdict = judged.completions, judged.verdict
    mask = completions.mask & completions.stopped[..., None] if mask_truncated else completions.mask
    old = old_scores(state.policy.params, judged)
    needs_reference = with_kl or "ref_logp" in objective.needs
    ref_logp: Any = score(state.ref_params, judged.sequences).logp if needs_reference else None
    if with_kl:
      metrics["kl_completion"] = jnp.mean(masked_sum(old.logp - ref_logp, completions.mask, axis=-1))
    experience = Experience(
      mask, token_rewards(judged, completions.mask, old.logp, ref_logp), jnp.ones_like(completions.stopped), old.values
    )
    if "greedy_rewards" in estimate.needs:
      played = play_greedy(state.policy.params, problems, sample_key)
      greedy = (played.verdict.reward if reward_model is None else reward_model(played.sequences))[:, 0]
      experience = experience._replace(greedy_rewards=greedy)
    inputs = Inputs(
      mask=mask,
      old_logp=None if on_policy else completions.full_logp,
      ref_logp=ref_logp,
      behaviour_logp=completions.logp,
      old_values=old.values,
      target_mask=mask & verdict.solved[..., None] if "target_mask" in objective.needs else None,
      noise=jax.random.uniform(noise_key, mask.shape) if "noise" in objective.needs else None,
      **estimate.fields(experience),
    )
    state = state._replace(position=state.position + prompts)
    return state, Batch(judged.sequences, inputs), metrics

  return collect


def summary(judged: Judged) -> dict[str, Array]:
  """Returns the metrics of a rollout, under the names that `rollout.make_collect` gives them."""
  verdict, lengths = judged.verdict, jnp.sum(judged.completions.mask, axis=-1)
  wrong = masked_mean(lengths.astype(jnp.float32), ~verdict.solved)
  return {
    "reward": jnp.mean(verdict.reward),
    "reward_std": jnp.std(verdict.reward),
    "zero_variance": jnp.mean(jnp.all(verdict.reward == verdict.reward[:, :1], axis=-1)),
    "solved": jnp.mean(verdict.solved),
    "completion_tokens": jnp.mean(lengths),
    "wrong_tokens": wrong,
    "stopped": jnp.mean(judged.completions.stopped),
  }


def make_evaluate(
  task: on_device.Task, model: LanguageModel, score: Score, *, problems: int, temperature: float | Array = 1.0
) -> Callable[[RLState], dict[str, Array]]:
  """Returns `evaluate(state) -> metrics` on one completion of each of the same problems every time.

  The metrics are those of `summary` but for `zero_variance`, and besides, in nats a token: `entropy`, and `kl`, the KL
  to the reference (k3).
  """
  play = make_play(task, model, group_size=1, temperature=temperature)

  def evaluate(state: RLState) -> dict[str, Array]:
    problem_key, sample_key = jax.random.split(jax.random.key(0))
    judged = play(state.policy.params, on_device.sample(task, problem_key, problems), sample_key)
    now: Any = score(state.policy.params, judged.sequences)
    start: Any = score(state.ref_params, judged.sequences)
    mask = judged.completions.mask
    per_token = {"entropy": now.entropy, "kl": kl.k3(now.logp, start.logp)}
    rollout = summary(judged)
    del rollout["zero_variance"]  # there is one completion a problem
    return rollout | {name: masked_mean(values, mask) for name, values in per_token.items()}

  return evaluate
