"""One batch of experience: draw prompts, sample completions, score them on the host, estimate advantages."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rl_jax.objectives.base import Inputs, Objective
from rl_jax.ops import advantages as advantages_lib
from rl_jax.ops import returns as returns_lib
from rl_jax.ops.masking import masked_count, masked_mean, masked_sum
from rl_jax.sampling.generate import Generate
from rl_jax.sampling.samplers import Sampler
from rl_jax.tasks import rewards as rewards_lib
from rl_jax.tasks.base import Task
from rl_jax.train import answers, estimates, text
from rl_jax.train.dynamic import Drawn, fill
from rl_jax.train.estimates import Experience
from rl_jax.train.passes import Passes, make_passes
from rl_jax.train.score import RewardModel, Score, Sequences, Values
from rl_jax.train.shaping import PLAIN, Shaping, normalized, standardized, token_rewards
from rl_jax.train.state import RLState
from rl_jax.train.step import Batch


class Rollout(NamedTuple):
  """G completions of each of P prompts with their rewards.

  Attributes:
    sequences: Prompts and completions with their masks of real tokens.
    mask: `[P, G, T]`, 1 where the policy chose the token and it is trained on.
    behaviour_logp: Of the distribution that was sampled from.
    full_logp: Of the untruncated distribution at the same temperature.
    rewards: `[P, G]`; NaN where no reward function applied.
    stopped: `[P, G]`, whether a stop token ended the completion.
    version: Updates behind the policy that sampled it.
  """

  sequences: Sequences
  mask: Bool[Array, "P G T"]
  behaviour_logp: Float[Array, "P G T"]
  full_logp: Float[Array, "P G T"]
  rewards: Float[np.ndarray, "P G"]
  stopped: Bool[Array, "P G"]
  version: Int[Array, ""]


class Collected(NamedTuple):
  """What `collect` gives.

  Attributes:
    state: With its position in the data moved on.
    batch: To learn from.
    metrics: Of the rollout.
    samples: For readers.
    rewards: NaN where none applied; None where the batch comes from a data set.
    extra_rows: How many of the batch's last rows are of another kind than the others, such as pretraining text; every
      minibatch gets its share of them.
  """

  state: RLState
  batch: Batch
  metrics: dict[str, float]
  samples: list[dict[str, Any]]
  rewards: Float[np.ndarray, "P G"] | None = None
  extra_rows: int = 0


Collect = Callable[[RLState], Collected]
SHORTEST = 8  # slots of a completion: below it, every length would be a program of its own to compile
FILLED = frozenset(Inputs._fields) - {"scores", "ratings", "kl_baseline"}


def make_collect(
  *,
  task: Task,
  tokenizer: Any,
  generate: Generate,
  score: Score,
  objective: Objective,
  sampler: Sampler,
  stop_tokens: np.ndarray,
  prompts_per_batch: int,
  max_prompt_tokens: int,
  estimator: Callable[..., Any] | estimates.Estimate = advantages_lib.group_normalized,
  shaping: Shaping = PLAIN,
  reward_model: RewardModel | None = None,
  reference: Callable[[RLState, Sequences], Array] | None = None,
  values: Callable[[Any, Sequences], Values] | None = None,
  answer: Generate | None = None,
  control: Callable[[Array, Array], Array] | None = None,
  on_policy: bool = True,
  recompute_old_logp: bool = False,
  mask_truncated: bool = False,
  max_draws: int = 1,
  place: Callable[[Any], Any] = lambda tree: tree,
) -> Collect:
  """Returns `collect(state) -> Collected`.

  The passes of reference, critic and reward model are dispatched before the host's rewards are computed, so that the
  device works while the host does. No pass runs that nothing needs.

  Args:
    task: Prompts and reward functions.
    tokenizer: A `transformers` tokenizer.
    generate: From `sampling.make_generate`, jitted, on the state's parameters.
    score: From `train.make_score`, jitted; it gives values where the objective or the estimator needs them and there
      is no `values`.
    objective: Its `needs` decide which passes run. `target_mask` marks the completions that the task says are solved.
    sampler: Temperature and filters; `score` must use the same temperature.
    stop_tokens: `[S]`, from `text.stop_tokens`.
    prompts_per_batch: P.
    max_prompt_tokens: Longer prompts are passed over, and counted in the metric `prompts_skipped`.
    estimator: Of advantages, in one of the forms of `estimates.adapt`, or what that returns.
    shaping: How scores become rewards of tokens; a KL in it takes its weight from the state.
    reward_model: Gives completions, or their tokens, scores that are added to the task's rewards.
    reference: `(state, sequences) -> log-probs [P, G, T]`; by default `score` with the state's `ref_params`.
    values: From `make_values`, jitted, of a critic; by default values come from `score`. With `with_last` an answer
      that was cut off is worth the value of where it stopped; otherwise it counts as finished.
    answer: As `generate`, one completion a prompt, where the estimator compares with the greedy one.
    control: `(kl_coef, KL in nats a completion) -> kl_coef`, from `ops.controllers`.
    on_policy: Whether each batch is used for a single update, so that the learner's own log-probs are the old ones.
    recompute_old_logp: Otherwise: whether old log-probs come from a pass of their own, or from the sampler.
    mask_truncated: Whether completions that were cut off are left out of the loss.
    max_draws: Above 1, prompts are drawn up to so many times, until the batch is full of groups whose rewards differ
      (dynamic sampling); the metric `draws` counts, and the other metrics are of what is trained on.
    place: Puts a pytree with prompts on the leading axis on the devices, such as `parallel.shard_rows` of a mesh.

  Raises:
    ValueError: For numbers below 1, and if the objective or the estimator needs what nothing here gives.
  """
  if min(prompts_per_batch, max_draws) < 1:
    raise ValueError(f"prompts_per_batch and max_draws must be at least 1, got {prompts_per_batch} and {max_draws}")
  estimate = estimates.adapt(estimator)
  if missing := sorted(objective.needs - FILLED):
    raise ValueError(f"the objective needs {missing[0]}, which no rollout gives")
  if not task.rewards and reward_model is None:
    raise ValueError(f"task {task.name!r} needs at least one reward function")
  if "greedy_rewards" in estimate.needs and answer is None:
    raise ValueError("the estimator compares with greedy completions: pass `answer`, which makes them")
  if max_draws > 1 and reward_model is not None:
    raise ValueError("max_draws above 1 looks at the rewards of the task alone: it does not go with a reward model")
  passes = make_passes(
    score,
    objective.needs | estimate.needs | ({"ref_logp"} if shaping.kl is not None else set()),
    reference=reference,
    values=values,
    reward_model=reward_model,
    on_policy=on_policy,
    recompute_old_logp=recompute_old_logp,
  )

  def sample(state: RLState, position: int) -> tuple[text.PromptBatch, Any]:
    """Returns prompts and their completions, as NumPy arrays: waits for the device."""
    prompts = text.draw_prompts(task, tokenizer, position, prompts_per_batch, max_prompt_tokens=max_prompt_tokens)
    key = jax.random.fold_in(state.keys().sample, position)
    completions = generate(state.policy.params, *place((prompts.tokens, prompts.mask)), stop_tokens, key, sampler)
    return prompts, jax.device_get(completions)

  def draw(state: RLState, position: int) -> Drawn:
    prompts, completions = sample(state, position)
    return Drawn(prompts, completions, *_score_on_host(task, tokenizer, prompts, completions))

  def greedy_rewards(state: RLState, prompts: text.PromptBatch) -> Array | None:
    """The greedy completions' scores `[P]`, judged and shaped as those of the samples are, without a KL."""
    if "greedy_rewards" not in estimate.needs or answer is None:
      return None
    greedy = sampler._replace(temperature=0.0)
    inputs = place((prompts.tokens, prompts.mask))
    completions = jax.device_get(answer(state.policy.params, *inputs, stop_tokens, state.key, greedy))
    learned = None
    if reward_model is not None:
      sequences = Sequences(*map(jnp.asarray, (prompts.tokens, prompts.mask, completions.tokens, completions.mask)))
      learned = reward_model(place(sequences))
    scored, _ = _score_on_host(task, tokenizer, prompts, completions)
    total = jnp.asarray(np.nan_to_num(_total(scored, learned, completions.stopped.shape)), jnp.float32)
    stopped, mask = jnp.asarray(completions.stopped), jnp.asarray(completions.mask)
    scores = _of_steps(standardized(total, state.reward_moments), learned, stopped, mask)
    return jnp.sum(token_rewards(shaping._replace(kl=None), scores, stopped, mask), axis=-1)[:, 0]

  def collect(state: RLState) -> Collected:
    filled, draws, position = None, 1, int(state.position)
    if max_draws > 1:
      filled, draws = fill(partial(draw, state), position, prompts_per_batch, max_draws=max_draws)
    prompts, completions = sample(state, position) if filled is None else filled[:2]
    rollout = _rollout(prompts, completions, state, mask_truncated)
    rollout = rollout._replace(sequences=place(rollout.sequences))
    said = passes(state, rollout.sequences, rollout.full_logp)  # dispatched: the host scores meanwhile, if it has to
    scored, samples = _score_on_host(task, tokenizer, prompts, completions) if filled is None else filled[2:]
    rollout = rollout._replace(rewards=_total(scored, said.scores, completions.stopped.shape))
    metrics = _metrics(rollout, scored, said.scores) | {"prompts_skipped": float(prompts.skipped)}
    state, experience, kl_metrics = _experience(state, rollout, said, shaping, control)
    experience = experience._replace(greedy_rewards=greedy_rewards(state, prompts))
    inputs = Inputs(
      mask=experience.mask,
      old_logp=None if on_policy else said.old_logp,
      ref_logp=said.ref_logp if "ref_logp" in objective.needs else None,
      behaviour_logp=jnp.asarray(rollout.behaviour_logp),
      old_values=experience.values,
      target_mask=_target_mask(task, prompts, rollout, samples) if "target_mask" in objective.needs else None,
      **estimate.fields(experience),
    )
    if "noise" in objective.needs:
      key = jax.random.fold_in(state.keys().noise, position)
      inputs = inputs._replace(noise=jax.random.uniform(key, inputs.mask.shape))
    metrics |= kl_metrics | _value_metrics(inputs)
    if max_draws > 1:
      metrics["draws"] = float(draws)
    for sample_, score_ in zip(samples, rollout.rewards.reshape(-1), strict=True):
      sample_["reward"] = float(score_)
    state = state._replace(position=jnp.asarray(prompts.position, jnp.int32))
    return Collected(state, Batch(rollout.sequences, inputs), metrics, samples, rollout.rewards)

  return collect


def _total(scored: rewards_lib.Scored, learned: Array | None, shape: tuple[int, ...]) -> np.ndarray:
  """The task's rewards and a reward model's together `[P, G]`; NaN only where there is neither."""
  given = scored.total.reshape(shape)
  if learned is None:
    return given
  learned_total = np.asarray(learned).reshape(*shape, -1).sum(axis=-1)
  return np.nan_to_num(given) + learned_total


def _experience(
  state: RLState, rollout: Rollout, said: Passes, shaping: Shaping, control: Any
) -> tuple[RLState, Experience, dict[str, float]]:
  """Shapes the rewards, and moves on what of the state depends on them."""
  rewarded = jnp.asarray(~np.isnan(rollout.rewards))
  # What is left out of the loss still has its reward, which a group's other completions are compared with.
  mask = rollout.sequences.completion_mask & rewarded[..., None]
  scores = jnp.asarray(np.nan_to_num(rollout.rewards), jnp.float32)
  scores, seen = normalized(scores, rewarded, state.reward_moments)
  if said.scores is not None and said.scores.ndim == mask.ndim and seen is not None:
    raise ValueError("rewards of tokens do not go with normalisation by the moments of completions' scores")
  scores = _of_steps(scores, said.scores, rollout.stopped, mask)
  old = rollout.full_logp if said.old_logp is None else said.old_logp
  given = token_rewards(
    shaping, scores, rollout.stopped, mask, old_logp=old, ref_logp=said.ref_logp, kl_coef=state.kl_coef
  )
  trained = rollout.mask & rewarded[..., None]
  values, last = (None, None) if said.values is None else said.values
  last = None if last is None else jnp.where(rollout.stopped, 0, last)
  experience = Experience(trained, given, rewarded, values, last_values=last)
  state = state._replace(reward_moments=seen)
  if said.ref_logp is None or shaping.kl is None or state.kl_coef is None:
    return state, experience, {}
  divergence = masked_sum(old - said.ref_logp, mask)
  per_completion = divergence / jnp.maximum(jnp.sum(rewarded), 1)
  metrics = {
    "kl_coef": float(state.kl_coef),
    "kl": float(divergence / jnp.maximum(masked_count(mask), 1)),
    "kl_completion": float(per_completion),
  }
  if control is not None:
    state = state._replace(kl_coef=control(state.kl_coef, per_completion))
  return state, experience, metrics


def _of_steps(total: Array, learned: Array | None, stopped: Array, mask: Array) -> Array:
  """Scores of tokens, the task's at the end, where a process reward model gave its part by tokens; else the totals."""
  if learned is None or learned.ndim < mask.ndim:
    return total
  return learned + token_rewards(PLAIN, total - jnp.sum(learned, axis=-1), stopped, mask)


def _value_metrics(inputs: Inputs) -> dict[str, float]:
  if inputs.old_values is None or inputs.returns is None:
    return {}
  explained = returns_lib.explained_variance(inputs.old_values, inputs.returns, inputs.mask)
  return {"explained_variance": float(explained), "value": float(masked_mean(inputs.old_values, inputs.mask))}


def _rollout(prompts: text.PromptBatch, completions: Any, state: RLState, mask_truncated: bool) -> Rollout:
  longest = int(completions.mask.sum(axis=-1).max())
  length = min(text.bucketed(max(longest, SHORTEST)), completions.mask.shape[-1])
  mask = completions.mask[..., :length]
  return Rollout(
    sequences=Sequences(jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask), completions.tokens[..., :length], mask),
    mask=mask & completions.stopped[..., None] if mask_truncated else mask,
    behaviour_logp=completions.logp[..., :length],
    full_logp=completions.full_logp[..., :length],
    rewards=np.full(completions.stopped.shape, np.nan),
    stopped=completions.stopped,
    version=state.policy.step,
  )


def _score_on_host(
  task: Task, tokenizer: Any, prompts: text.PromptBatch, completions: Any
) -> tuple[rewards_lib.Scored, list[dict[str, Any]]]:
  """Calls the task's reward functions; where it has none, every reward is NaN."""
  group = completions.tokens.shape[1]
  rows = [row for row in prompts.rows for _ in range(group)]
  flat = (-1, completions.tokens.shape[-1])
  tokens, mask = completions.tokens.reshape(flat), completions.mask.reshape(flat)
  texts, _, scored = answers.score(task, tokenizer, rows, tokens, mask)
  parts = [{name: _or_none(values[row]) for name, values in scored.parts.items()} for row in range(len(rows))]
  samples = [
    {"prompt": row["prompt"], "completion": reply, "reward": float(reward), "rewards": part, "tokens": int(real.sum())}
    for row, reply, reward, part, real in zip(rows, texts, scored.total, parts, mask, strict=True)
  ]
  return scored, samples


def _metrics(rollout: Rollout, scored: rewards_lib.Scored, learned: Array | None) -> dict[str, float]:
  rewarded = ~np.isnan(rollout.rewards)
  known = rollout.rewards[rewarded]
  constant = advantages_lib.zero_variance(jnp.asarray(np.nan_to_num(rollout.rewards)), jnp.asarray(rewarded))
  lengths = np.asarray(rollout.sequences.completion_mask).sum(axis=-1)
  parts = {f"reward/{name}": float(np.nanmean(part)) for name, part in scored.parts.items() if not _all_nan(part)}
  if learned is not None:
    parts["reward/learned"] = float(np.asarray(learned).reshape(*rollout.rewards.shape, -1).sum(axis=-1).mean())
  return {
    "reward": float(known.mean()) if known.size else float("nan"),
    "reward_std": float(known.std()) if known.size else float("nan"),
    "zero_variance": float(np.mean(constant)),
    "completion_tokens": float(lengths.mean()),
    "tokens": float(lengths.sum()),
    "stopped": float(rollout.stopped.mean()),
    **(parts if len(parts) > 1 else {}),
  }


def _target_mask(task: Task, prompts: text.PromptBatch, rollout: Rollout, samples: list[dict[str, Any]]) -> Any:
  """The tokens of solved completions; of none, where the task cannot tell."""
  if task.solved is None:
    return jnp.zeros(rollout.mask.shape, bool)
  shape = rollout.mask.shape[:2]
  rows = [row for row in prompts.rows for _ in range(shape[1])]
  replies = text.as_replies(rows, [sample["completion"] for sample in samples])
  flat = (rollout.sequences.completions, rollout.sequences.completion_mask)
  tokens, real = (np.asarray(each).reshape(len(rows), -1) for each in flat)
  solved = answers.solved(task, rows, replies, tokens, real)
  return rollout.mask & jnp.asarray(np.reshape(solved, shape))[..., None]


def _or_none(value: float) -> float | None:
  return None if np.isnan(value) else float(value)


def _all_nan(values: np.ndarray) -> bool:
  return bool(np.isnan(values).all())
