"""The life of a batch: completions are sampled, models read them, judges score them, and advantages are estimated.

    play(state)                                      -> Played: a rollout, and what will be said of it
    outputs(state, rollout)                          -> Outputs: log-probs and values, from passes that something needs
    experience(key, running, coefficients, rollout,
               outputs, judgment)                    -> what moves on, the batch, metrics, rewards; pure, jitted

Host tasks (`rollouts.text`) and tasks on the device (`rollouts.device`) each have their own way to sample and to judge,
a `Source`; all else is written once, here and in `outputs` and `experience`, and `compose` puts it together.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rl_jax.objectives.loading import Algorithm
from rl_jax.ops.shaping import PLAIN, Shaping, of_completion
from rl_jax.rollouts.experience import MakeExperience, check_needs, make_experience
from rl_jax.rollouts.outputs import RunModels, make_outputs
from rl_jax.rollouts.rollout import Rollout
from rl_jax.state import Batch, Forward, Greedy, Judgment, RewardModel, RLState, Running, Values


class Sampled(NamedTuple):
  """Completions of prompts, before anything is said of them.

  Attributes:
    problems: What a judge must know of the prompts: rows of a task, or an on-device task's data.
    rollout: Arrays, on the devices.
    running: The state's `running`, with its position in the data moved on.
    metrics: What only sampling knows, such as `prompts_skipped`.
  """

  problems: Any
  rollout: Rollout
  running: Running
  metrics: Mapping[str, float] = {}


class Played(NamedTuple):
  """Completions, and what will be said of them.

  Attributes:
    sampled: Completions of P prompts.
    verdict: `() -> (judgment, records)`: calls the judges. It is asked for once the models' passes are dispatched, so
      that the device works while the host calls reward functions. On the device there are no records.
  """

  sampled: Sampled
  verdict: Callable[[], tuple[Judgment, Sequence[dict[str, Any]]]]


class Collected(NamedTuple):
  """What `collect` gives.

  Attributes:
    state: The state, with what the rollout moved on.
    batch: The batch to learn from.
    metrics: The rollout's metrics; for `loop.fit`, "tokens" among them.
    records: Completions for readers, one each; none on the device.
    rewards: `[P, G]`, NaN where none applied; None where the batch comes from a data set.
    extra_rows: How many of the batch's last rows are of another kind than the others, such as pretraining text; every
      minibatch gets its share of them.
  """

  state: RLState
  batch: Batch
  metrics: dict[str, Any]
  records: Sequence[dict[str, Any]] = ()
  rewards: Float[Array, "P G"] | None = None
  extra_rows: int = 0


Sample = Callable[[RLState], Sampled]
Judge = Callable[[Sampled], tuple[Judgment, Sequence[dict[str, Any]]]]
Play = Callable[[RLState], Played]
Collect = Callable[[RLState], Collected]


class Source(NamedTuple):
  """Where completions come from, and who judges them.

  Attributes:
    sample: `state -> Sampled`, completions of fresh prompts.
    judge: `sampled -> (judgment, records)`.
    greedy: `(state, sampled) -> Sampled`, one greedy completion of each of the same prompts.
  """

  sample: Sample
  judge: Judge
  greedy: Callable[[RLState, Sampled], Sampled]


def once(sample: Sample, judge: Judge) -> Play:
  """Returns `play(state) -> Played`: one draw of prompts.

  >>> from types import SimpleNamespace
  >>> play = once(lambda state: state + 1, lambda sampled: (10 * sampled, ()))
  >>> play(1).sampled, play(1).verdict()
  (2, (20, ()))
  """

  def play(state: RLState) -> Played:
    sampled = sample(state)
    return Played(sampled, lambda: judge(sampled))

  return play


def with_greedy(play: Play, complete: Callable[[RLState, Sampled], Sampled], judge: Judge) -> Play:
  """Returns a `play` whose judgment also tells of each prompt's greedy completion, for advantages that compare with it.

  Args:
    play: Draws and judges the samples.
    complete: `(state, sampled) -> Sampled`, one greedy completion of each of the same prompts.
    judge: The one that judges the samples.
  """

  def play_both(state: RLState) -> Played:
    played = play(state)
    answered = complete(state, played.sampled)

    def verdict() -> tuple[Judgment, Sequence[dict[str, Any]]]:
      judgment, records = played.verdict()
      scores = judge(answered)[0].scores
      greedy = Greedy(scores, answered.rollout.sequences.real, answered.rollout.terminated)
      return judgment._replace(greedy=greedy), records

    return played._replace(verdict=verdict)

  return play_both


def with_reward_model(judge: Judge, reward_model: RewardModel, *, name: str = "learned") -> Judge:
  """Returns a judge that adds a reward model's scores; its pass is dispatched before the other judges are called.

  Args:
    judge: The task's judge.
    reward_model: `sequences -> [P, G]`, or `[P, G, T]` for scores of tokens; they count once.
    name: Name of the scores, in metrics.

  Raises:
    ValueError: When it judges, if the task has a reward of that name.
  """

  def judge_both(sampled: Sampled) -> tuple[Judgment, Sequence[dict[str, Any]]]:
    learned = reward_model(sampled.rollout.sequences)
    judgment, records = judge(sampled)
    if name in judgment.every:
      raise ValueError(f"the task has a reward function {name!r}, which is the reward model's name")
    scores, weights = {**judgment.scores, name: learned}, {**judgment.weights, name: 1.0}
    return judgment._replace(scores=scores, weights=weights), records

  return judge_both


def compose(
  source: Source,
  algorithm: Algorithm,
  *,
  on_policy: bool,
  shaping: Shaping = PLAIN,
  reference: Callable[[RLState, Any], Array] | None = None,
  values: Callable[[Any, Any], Values] | None = None,
  recompute_old_logp: Forward | None = None,
  make_play: Callable[[Sample, Judge], Play] = once,
  jit: Callable[[MakeExperience], Any] = lambda experience: experience,
) -> Collect:
  """Puts play, outputs and experience together, as far as an algorithm needs them.

  Args:
    source: Samples and judges.
    algorithm: An objective and its advantage.
    on_policy: Whether a batch is used for a single update.
    shaping: How rewards of completions become rewards of tokens; a KL takes its weight from the coefficient `kl_coef`.
    reference: `(state, sequences) -> log-probs`, run where the objective or the shaping needs it.
    values: A critic's pass, run where the algorithm needs it.
    recompute_old_logp: The learner's pass, where old log-probs come from a pass of their own.
    make_play: Draws prompts once by default.
    jit: Compiles the experience, on the host.

  Raises:
    ValueError: If the algorithm needs what nothing gives.
  """
  needs = check_needs(algorithm) | ({"ref_logp"} if shaping.kl is not None else set())
  play = make_play(source.sample, source.judge)
  if "greedy_rewards" in needs:
    play = with_greedy(play, source.greedy, source.judge)
  outputs = make_outputs(needs, reference=reference, values=values, recompute_old_logp=recompute_old_logp)
  return make_collect(play, outputs, jit(make_experience(algorithm, on_policy=on_policy, shaping=shaping)))


def make_collect(play: Play, outputs: RunModels, experience: MakeExperience) -> Collect:
  """Returns `collect(state) -> Collected`.

  Args:
    play: A function from `once`, `rollouts.dynamic.play_until_full` or `with_greedy`.
    outputs: What `rollouts.outputs.make_outputs` returns.
    experience: What `rollouts.experience.make_experience` returns; on the host, jitted.
  """

  def collect(state: RLState) -> Collected:
    played = play(state)
    _, rollout, running, sampling_metrics = played.sampled
    model_outputs = outputs(state, rollout)
    judgment, records = played.verdict()
    noise_key = jax.random.fold_in(state.keys().noise, state.running.position)
    coefficients = state.policy.coefficients
    made = experience(noise_key, running, coefficients, rollout, model_outputs, judgment)
    records = annotated(records, rollout, judgment, made.rewards)
    logged = jax.tree.map(jnp.copy, dict(coefficients))  # the update takes over the state's own
    metrics = {**made.metrics, **sampling_metrics, **logged}
    return Collected(state._replace(running=made.running), made.batch, metrics, records, made.rewards)

  return collect


def annotated(
  records: Sequence[dict[str, Any]], rollout: Rollout, judgment: Judgment, rewards: Float[Array, "P G"]
) -> Sequence[dict[str, Any]]:
  """Adds to records what was said of them: the reward, each function's, and where the task can tell, `solved`."""
  if not records:
    return records
  total, mask = np.asarray(rewards).reshape(-1), jnp.asarray(rollout.sequences.real)
  each = {name: of_completion(jnp.asarray(score), mask) for name, score in judgment.every.items()}
  parts = {name: np.asarray(score).reshape(-1) for name, score in each.items()}
  told = [
    record | {"reward": float(total[row]), "rewards": {name: _number(values[row]) for name, values in parts.items()}}
    for row, record in enumerate(records)
  ]
  if judgment.solved is None:
    return told
  solved = np.asarray(judgment.solved).reshape(-1)
  return [record | {"solved": bool(solved[row])} for row, record in enumerate(told)]


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(value)
