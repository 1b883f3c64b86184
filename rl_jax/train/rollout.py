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
from rl_jax.ops.advantages import Estimator
from rl_jax.sampling.generate import Generate
from rl_jax.sampling.samplers import Sampler
from rl_jax.tasks import rewards as rewards_lib
from rl_jax.tasks.base import Task
from rl_jax.train import answers, text
from rl_jax.train.dynamic import Drawn, fill
from rl_jax.train.score import Score, Sequences
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
  """What `collect` gives: the state with its position in the data moved on, a batch, metrics and readable samples."""

  state: RLState
  batch: Batch
  metrics: dict[str, float]
  samples: list[dict[str, Any]]


Collect = Callable[[RLState], Collected]


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
  estimator: Estimator = advantages_lib.group_normalized,
  on_policy: bool = True,
  recompute_old_logp: bool = False,
  mask_truncated: bool = False,
  max_draws: int = 1,
  place: Callable[[Any], Any] = lambda tree: tree,
) -> Collect:
  """Returns `collect(state) -> Collected`.

  The reference's pass is dispatched before the rewards are computed, so that the device works while the host does.

  Args:
    task: Prompts and reward functions.
    tokenizer: A `transformers` tokenizer.
    generate: From `sampling.make_generate`, jitted.
    score: From `train.make_score`, jitted.
    objective: Its `needs` decide which passes run.
    sampler: Temperature and filters; `score` must use the same temperature.
    stop_tokens: `[S]`, from `text.stop_tokens`.
    prompts_per_batch: P.
    max_prompt_tokens: Longer prompts are passed over, and counted in the metric `prompts_skipped`.
    estimator: `(rewards [P, G], mask [P, G]) -> advantages [P, G]`.
    on_policy: Whether each batch is used for a single update, so that the learner's own log-probs are the old ones.
    recompute_old_logp: Otherwise: whether old log-probs come from a pass of their own, or from the sampler.
    mask_truncated: Whether completions that were cut off are left out of the loss.
    max_draws: Above 1, prompts are drawn up to so many times, until the batch is full of groups whose rewards differ
      (dynamic sampling); the metric `draws` counts, and the other metrics are of what is trained on.
    place: Puts a pytree with prompts on the leading axis on the devices, such as `parallel.shard_rows` of a mesh.
  """
  if min(prompts_per_batch, max_draws) < 1:
    raise ValueError(f"prompts_per_batch and max_draws must be at least 1, got {prompts_per_batch} and {max_draws}")

  def sample(state: RLState, position: int) -> tuple[text.PromptBatch, Any]:
    """Returns prompts and their completions, as NumPy arrays: waits for the device."""
    prompts = text.draw_prompts(
      task, tokenizer, position, prompts_per_batch, max_prompt_tokens=max_prompt_tokens
    )
    key = jax.random.fold_in(jax.random.split(state.key)[0], position)
    completions = generate(state.policy.params, *place((prompts.tokens, prompts.mask)), stop_tokens, key, sampler)
    return prompts, jax.device_get(completions)

  def logps(state: RLState, rollout: Rollout) -> tuple[Array | None, Array | None]:
    old = ref = None
    if not on_policy:
      old = score(state.policy.params, rollout.sequences).logp if recompute_old_logp else rollout.full_logp
    if "ref_logp" in objective.needs:
      ref = score(state.ref_params, rollout.sequences).logp
    return old, ref

  def draw(state: RLState, position: int) -> Drawn:
    prompts, completions = sample(state, position)
    return Drawn(prompts, completions, *_score_on_host(task, tokenizer, prompts, completions))

  def collect(state: RLState) -> Collected:
    filled, draws, position = None, 1, int(state.position)
    if max_draws > 1:
      filled, draws = fill(partial(draw, state), position, prompts_per_batch, max_draws=max_draws)
    prompts, completions = sample(state, position) if filled is None else filled[:2]
    rollout = _rollout(prompts, completions, state, mask_truncated)
    rollout = rollout._replace(sequences=place(rollout.sequences))
    old_logp, ref_logp = logps(state, rollout)  # dispatched; rewards that are still to be had are computed meanwhile
    scored, samples = _score_on_host(task, tokenizer, prompts, completions) if filled is None else filled[2:]
    rollout = rollout._replace(rewards=scored.total.reshape(completions.stopped.shape))
    batch = _batch(rollout, estimator, old_logp, ref_logp)
    if "noise" in objective.needs:
      key = jax.random.fold_in(jax.random.split(state.key, 3)[2], int(state.position))
      noise = jax.random.uniform(key, batch.inputs.mask.shape)
      batch = batch._replace(inputs=batch.inputs._replace(noise=noise))
    metrics = _metrics(rollout, scored) | {"prompts_skipped": float(prompts.skipped)}
    if max_draws > 1:
      metrics["draws"] = float(draws)
    state = state._replace(position=jnp.asarray(prompts.position, jnp.int32))
    return Collected(state, batch, metrics, samples)

  return collect


def _rollout(
  prompts: text.PromptBatch, completions: Any, state: RLState, mask_truncated: bool
) -> Rollout:
  longest = int(completions.mask.sum(axis=-1).max())
  length = min(text.bucketed(longest), completions.mask.shape[-1])
  mask = completions.mask[..., :length]
  return Rollout(
    sequences=Sequences(
      jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask), completions.tokens[..., :length], mask
    ),
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
  group = completions.tokens.shape[1]
  rows = [row for row in prompts.rows for _ in range(group)]
  flat = (-1, completions.tokens.shape[-1])
  tokens, mask = completions.tokens.reshape(flat), completions.mask.reshape(flat)
  texts, _, scored = answers.score(task, tokenizer, rows, tokens, mask)
  by_row = np.stack([*scored.parts.values()], axis=1).tolist()
  parts = [{name: _or_none(value) for name, value in zip(scored.parts, values, strict=True)} for values in by_row]
  samples = [
    {"prompt": row["prompt"], "completion": reply, "reward": float(reward), "rewards": part, "tokens": int(real.sum())}
    for row, reply, reward, part, real in zip(rows, texts, scored.total, parts, mask, strict=True)
  ]
  return scored, samples


def _batch(rollout: Rollout, estimator: Estimator, old_logp: Array | None, ref_logp: Array | None) -> Batch:
  rewarded = ~np.isnan(rollout.rewards)
  estimates = estimator(jnp.asarray(np.nan_to_num(rollout.rewards), jnp.float32), jnp.asarray(rewarded))
  mask = rollout.mask & rewarded[..., None]
  per_token = jnp.broadcast_to(estimates[..., None], mask.shape)
  inputs = Inputs(
    mask=jnp.asarray(mask),
    advantages=per_token,
    old_logp=old_logp,
    ref_logp=ref_logp,
    behaviour_logp=jnp.asarray(rollout.behaviour_logp),
  )
  return Batch(rollout.sequences, inputs)


def _metrics(rollout: Rollout, scored: rewards_lib.Scored) -> dict[str, float]:
  rewarded = ~np.isnan(rollout.rewards)
  known = rollout.rewards[rewarded]
  constant = advantages_lib.zero_variance(jnp.asarray(np.nan_to_num(rollout.rewards)), jnp.asarray(rewarded))
  lengths = np.asarray(rollout.sequences.completion_mask).sum(axis=-1)
  parts = {f"reward/{name}": float(np.nanmean(part)) for name, part in scored.parts.items() if not _all_nan(part)}
  return {
    "reward": float(known.mean()) if known.size else float("nan"),
    "reward_std": float(known.std()) if known.size else float("nan"),
    "zero_variance": float(np.mean(constant)),
    "completion_tokens": float(lengths.mean()),
    "tokens": float(lengths.sum()),
    "stopped": float(rollout.stopped.mean()),
    **(parts if len(parts) > 1 else {}),
  }


def _or_none(value: float) -> float | None:
  return None if np.isnan(value) else value


def _all_nan(values: np.ndarray) -> bool:
  return bool(np.isnan(values).all())
