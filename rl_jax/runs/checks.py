"""What can go wrong in a run, and how it shows: checks of its metrics, step by step, while it goes on or afterwards.

A check is `f(seen) -> Finding | None`. It reads a window of the last steps, and where it must, the first ones; every
finding names the sign, the likely cause, the setting to change, and where it is described.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

WINDOW = 5  # steps over which a metric is averaged
RECORDS = 512  # completions that are remembered


class Finding(NamedTuple):
  """Something that is wrong with a run.

  Attributes:
    name: What it is called.
    sign: What was seen, in numbers.
    cause: What is likely behind it.
    remedy: What to change.
    source: Where it is described.
    step: When it was first seen.
  """

  name: str
  sign: str
  cause: str
  remedy: str
  source: str = ""
  step: int = 0

  def describe(self) -> str:
    """Returns one line.

    >>> Finding("entropy collapse", "entropy 0.01", "no exploration", "an entropy bonus").describe()
    'entropy collapse: entropy 0.01. Likely: no exploration. Try: an entropy bonus.'
    """
    source = f" ({self.source})" if self.source else ""
    return f"{self.name}: {self.sign}. Likely: {self.cause}. Try: {self.remedy}{source}."


class Seen:
  """A run's metrics and last completions so far.

  Attributes:
    config: The run's settings.
    steps: How many there are.
    records: The last completions, as samples.jsonl has them.
  """

  def __init__(self, config: Mapping[str, Any]):
    self.config = config
    self.steps = 0
    self.records: deque[Mapping[str, Any]] = deque(maxlen=RECORDS)
    self._columns: dict[str, list[float]] = {}

  def add(self, row: Mapping[str, float | None], records: Sequence[Mapping[str, Any]] = ()) -> None:
    """Takes one step's metrics, None or NaN where there is no number, and its completions."""
    for name in row.keys() | self._columns.keys():
      column = self._columns.setdefault(name, [math.nan] * self.steps)
      value = row.get(name)
      column.append(math.nan if value is None else float(value))
    self.steps += 1
    self.records.extend(records)

  def names(self) -> list[str]:
    """Returns the metrics that any step had."""
    return list(self._columns)

  def all(self, *names: str) -> np.ndarray:
    """Returns the sum of metrics at all steps, NaN where one is missing."""
    missing = [math.nan] * self.steps
    return np.sum(np.array([self._columns.get(name, missing) for name in names]), axis=0)

  def last(self, *names: str, steps: int = WINDOW) -> float:
    """Returns the mean of a metric, or of the sum of some, over the last steps; NaN where there are fewer numbers."""
    return _mean([self._columns.get(name, [])[-steps:] for name in names], steps)

  def first(self, *names: str, steps: int = WINDOW) -> float:
    """Returns the mean over the first steps; NaN where there are fewer numbers."""
    return _mean([self._columns.get(name, [])[:steps] for name in names], steps)

  def now(self, name: str) -> float:
    """Returns the last step's number; NaN where there is none."""
    column = self._columns.get(name)
    return column[-1] if column else math.nan


def _mean(columns: Sequence[Sequence[float]], steps: int) -> float:
  if any(len(column) < steps for column in columns):
    return math.nan
  return float(np.mean(np.sum(np.array(columns), axis=0)))


Check = Callable[[Seen], Finding | None]


def entropy_collapse(seen: Seen) -> Finding | None:
  """The entropy of choices is a fiftieth of what it was, long before everything is solved."""
  if "environment" in seen.config:
    return None  # the entropy of a density has no floor
  before, now, solved = seen.first("entropy"), seen.last("entropy"), seen.last("solved")
  if not (seen.steps > 2 * WINDOW and before > 0 and 0 <= now < min(0.02 * before, 0.05)) or solved > 0.9:
    return None
  return Finding(
    "entropy collapse",
    f"entropy fell from {before:.3f} to {now:.4f} nats a token",
    "the policy no longer explores; what it is sure of is learned again and again",
    "a smaller learning_rate, a larger clip_high, entropy_target, or objective clip_cov or kl_cov",
    "G. Cui et al., arXiv:2505.22617",
  )


def no_variance(seen: Seen) -> Finding | None:
  """Nearly all groups have equal rewards, from which nothing is learned."""
  share, solved = seen.last("zero_variance"), seen.last("solved")
  if not share > 0.9 or "explained_variance" in seen.names():  # a critic tells completions of equal groups apart
    return None
  cause = "all completions of a prompt are alike, or the reward does not tell them apart"
  if solved > 0.9:
    cause = "the prompts have become too easy"
  elif solved < 0.05:
    cause = "the prompts are too hard: no completion is solved"
  remedy = "prompts of another difficulty, a larger group_size, max_draws above 1, or a reward with more steps"
  return Finding(
    "groups without variance",
    f"{share:.0%} of groups have equal rewards",
    cause,
    remedy,
    "Q. Yu et al., arXiv:2503.14476",
  )


def kl_runaway(seen: Seen) -> Finding | None:
  """The policy is far from where it started, and goes on."""
  for name in ("kl_ref", "kl_reward"):
    now, before = seen.last(name), seen.first(name)
    if now > 1 and now > 3 * before and seen.steps > 2 * WINDOW:
      return Finding(
        "KL runaway",
        f"{name} rose from {before:.3f} to {now:.3f} nats a token",
        "the weight of the KL is too small for the learning rate, or the reward is worth leaving the language for",
        "a larger kl_coef, kl_control adaptive, or a smaller learning_rate",
        "L. Gao et al., arXiv:2210.10760",
      )
  return None


def negative_kl(seen: Seen) -> Finding | None:
  """A mean below 0 is one of k1, which has no gradient in the mean as a term of the loss; k2 and k3 are never below."""
  value = seen.now("kl_ref")
  if not value < -1e-5:
    return None
  return Finding(
    "KL without a gradient",
    f"kl_ref is {value:.1e}, which only k1 can be",
    "k1 as a term of the loss has the gradient 0 in the mean: nothing holds the policy",
    "kl_estimator k2 or k3 in the loss; k1 belongs into the reward (kl_place reward)",
    "Y. Tang and R. Munos, arXiv:2506.09477",
  )


def reward_without_solving(seen: Seen) -> Finding | None:
  """The reward rises while fewer completions are solved."""
  if seen.steps < 4 * WINDOW:
    return None
  gained, lost = _rise(seen.all("reward")), _rise(seen.all("solved"))
  if not (gained > 4 and lost < -4):
    return None
  return Finding(
    "reward without solving",
    f"reward rose to {seen.last('reward'):.3f} while solved fell to {seen.last('solved'):.3f}",
    "the reward pays for something else than the right answer, and the policy has found it",
    "look at the best-paid completions in samples.jsonl; change rewards or reward_weights",
    "L. Gao et al., arXiv:2210.10760",
  )


def _rise(values: np.ndarray) -> float:
  """From the first to the last third, in standard errors."""
  values = values[np.isfinite(values)]
  third = len(values) // 3
  if third < 2:
    return 0.0
  first, last = values[:third], values[-third:]
  error = math.sqrt((np.var(first) + np.var(last)) / third)
  return float((np.mean(last) - np.mean(first)) / max(error, 1e-12))


def reward_tells_nothing(seen: Seen) -> Finding | None:
  """Over the last completions, the reward and whether they are solved have nothing to do with each other."""
  rows = [row for row in seen.records if _is_finite(row.get("reward")) and row.get("solved") is not None]
  reward, solved = np.array([[row["reward"], row["solved"]] for row in rows], float).reshape(-1, 2).T
  if len(reward) < 256 or min(solved.sum(), len(solved) - solved.sum()) < 32 or np.ptp(reward) == 0:
    return None
  correlation = float(np.corrcoef(reward, solved)[0, 1])
  if correlation + 2 / math.sqrt(len(reward)) > 0.2:
    return None
  return Finding(
    "reward tells nothing",
    f"reward and solved have a correlation of {correlation:.2f} over the last {len(reward)} completions",
    "the reward function does not look at the answer, or its rewards come in another order than the completions",
    "call the reward function by hand on rows of samples.jsonl",
  )


def _is_finite(value: Any) -> bool:
  return value is not None and math.isfinite(value)


def reward_of_equals(seen: Seen) -> Finding | None:
  """The same completion of the same prompt has different rewards."""
  paid: dict[tuple, list[float]] = {}
  for row in seen.records:
    if row.get("completion") and _is_finite(row.get("reward")):
      prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
      paid.setdefault((prompt, row["completion"], row.get("tokens")), []).append(row["reward"])
  twice = [rewards for rewards in paid.values() if len(rewards) > 1]
  if len(twice) < 8:
    return None
  usual = np.std([reward for rewards in paid.values() for reward in rewards])  # a model's scores differ by rounding
  differ = [rewards for rewards in twice if np.ptp(rewards) > 0.05 * usual]
  if len(differ) <= len(twice) // 10:
    return None
  return Finding(
    "reward is not a function",
    f"{len(differ)} of {len(twice)} completions that came more than once have different rewards",
    "the reward is random, depends on the batch, or its rewards come in another order than the completions",
    "a reward function that returns one number for each completion, in their order",
  )


def truncated(seen: Seen) -> Finding | None:
  """Half of the completions end at the limit."""
  cut, limit = 1 - seen.last("terminated"), seen.config.get("max_new_tokens")
  if limit is None or not cut > 0.5:
    return None
  return Finding(
    "completions at the limit",
    f"{cut:.0%} of completions are cut off after max_new_tokens {limit}",
    "answers need more tokens, or nothing ends them; a reward that counts them as wrong teaches to be short",
    "a larger max_new_tokens, a stop text, or mask_truncated",
    "Q. Yu et al., arXiv:2503.14476",
  )


def large_updates(seen: Seen) -> Finding | None:
  """The clip stops the gradient of a large share of tokens."""
  share = seen.last("clip_low", "clip_high")
  if not share > 0.3 or seen.config.get("objective") in ("gspo", "luspo"):  # they clip whole sequences, and far more
    return None
  return Finding(
    "clipped too often",
    f"{share:.0%} of tokens are clipped",
    "a rollout's updates go far beyond the clip range",
    "a smaller learning_rate, fewer epochs or minibatches, target_kl, or a wider clip_low and clip_high",
    "J. Schulman et al., arXiv:1707.06347",
  )


def no_updates(seen: Seen) -> Finding | None:
  """The policy stays where it is, though a rollout has several updates."""
  several = seen.config.get("epochs", 1) * seen.config.get("minibatches", 1) > 1
  moved, learning = seen.last("approx_kl", steps=2 * WINDOW), seen.last("grad_norm", steps=2 * WINDOW)
  if not (several and abs(moved) < 1e-7 and learning > 0):
    return None
  return Finding(
    "updates without effect",
    f"approx_kl of a rollout's updates is {moved:.1e} nats a token",
    "the learning rate is too small to change the policy, or its parameters are not what samples",
    "a larger learning_rate",
  )


def mismatch(seen: Seen) -> Finding | None:
  """Sampler and learner give the same tokens different probabilities."""
  now = seen.last("mismatch_kl", steps=2)
  if not now > 5e-3:
    return None
  filtered = [name for name in ("top_k", "top_p", "min_p") if seen.config.get(name) is not None]
  cause = (
    f"{', '.join(filtered)} cuts off what the learner counts"
    if filtered
    else ("the samples are of an older policy, another temperature or another precision than the learner's")
  )
  return Finding(
    "sampler and learner disagree",
    f"mismatch_kl is {now:.3f} nats a token at a rollout's first update, where it should be 0",
    cause,
    "the sampler's temperature and parameters; or a correction, such as objective_options correction=...",
    "truncated importance sampling: Ling Team, arXiv:2510.18855",
  )


def few_effective_samples(seen: Seen) -> Finding | None:
  """Few samples would carry all the weight, were they corrected for."""
  size = seen.last("ess", steps=2)
  if not size < 0.5:
    return None
  return Finding(
    "few effective samples",
    f"the effective sample size is {size:.2f} of the tokens",
    "the samples are far from the learner's policy",
    "fresher samples; sampler and learner at one temperature; a smaller learning_rate",
    "V. Elvira et al., arXiv:1809.04129",
  )


def gradient_spike(seen: Seen) -> Finding | None:
  """The gradient is many times what it was, and above all that there was."""
  earlier, now = seen.all("grad_norm")[:-1], seen.now("grad_norm")
  earlier = earlier[np.isfinite(earlier)]
  before = earlier[-20:]
  if len(before) < 20 or not now > 10 * np.median(before) > 0 or not now > 2 * np.max(earlier):
    return None
  return Finding(
    "gradient spike",
    f"grad_norm is {now:.1f}, after a median of {np.median(before):.1f}",
    "a batch unlike the others, or a ratio that has become large",
    "max_grad_norm near the median, a smaller learning_rate, a tighter clip",
    "R. Pascanu et al., arXiv:1211.5063",
  )


def blind_critic(seen: Seen) -> Finding | None:
  """The critic explains none of the returns."""
  last = seen.all("explained_variance")[-2 * WINDOW :]
  explained = float(np.median(last)) if len(last) else math.nan
  nothing_to_explain = seen.last("solved") > 0.9 or seen.last("reward_std") < 1e-6
  if seen.steps < 4 * WINDOW or not explained < 0.02 or nothing_to_explain:
    return None
  return Finding(
    "critic explains nothing",
    f"explained_variance is {explained:.2f}",
    "the critic learns too slowly, or its returns are of another scale than its values",
    "a critic from the reward model, a larger value_coef or learning_rate, or an objective without a critic",
    "Y. Yuan et al., arXiv:2503.01491",
  )


def ratio_off(seen: Seen) -> Finding | None:
  """The mean ratio of learner to old policy, which is 1 in the mean, is not."""
  ratio = seen.last("ratio", steps=2)
  if not abs(ratio - 1) > 0.1:
    return None
  return Finding(
    "ratios away from 1",
    f"the mean ratio of learner to old policy is {ratio:.2f}",
    "old log-probs are not those of the policy that sampled, or updates go very far",
    "recompute_old_logp, the sampler's temperature, a smaller learning_rate",
    "J. Schulman et al., arXiv:1707.06347",
  )


def skipped(seen: Seen) -> Finding | None:
  """Updates were left out."""
  share = seen.now("skipped")
  if not share > 0:
    return None
  return Finding(
    "skipped updates",
    f"loss or gradient not finite; {share:.0%} of a step's updates were left out",
    "a reward that is not finite, or numbers beyond what the precision holds",
    "look at the rewards in samples.jsonl; a smaller learning_rate, max_grad_norm, float32",
  )


def reward_missing(seen: Seen) -> Finding | None:
  """No reward function applied to any completion."""
  if "reward" not in seen.names() or not math.isnan(seen.now("reward")):
    return None
  return Finding(
    "no reward",
    "no reward function applied to any completion",
    "they returned None, or NaN, for all of them",
    "call the reward functions by hand on rows of samples.jsonl",
  )


def reward_never_applies(seen: Seen) -> Finding | None:
  """One of several reward functions never applied."""
  never = [name for name in seen.names() if name.startswith("reward/") and np.isnan(seen.all(name)).all()]
  if seen.steps < 2 * WINDOW or not never:
    return None
  return Finding(
    "reward that never applies",
    f"{', '.join(never)} applied to no completion in {seen.steps} steps",
    "it returns None for all of them",
    "call it by hand on rows of samples.jsonl, or leave it out",
  )


def prompts_passed_over(seen: Seen) -> Finding | None:
  """Prompts were too long."""
  count = seen.now("prompts_skipped")
  if not count > 0:
    return None
  return Finding(
    "prompts passed over",
    f"{count:.0f} prompts were too long and passed over",
    f"they have more than max_prompt_tokens {seen.config.get('max_prompt_tokens')}",
    "a larger max_prompt_tokens, or shorter prompts",
  )


def simulations_broke(seen: Seen) -> Finding | None:
  """Simulations broke down."""
  count = seen.now("simulations_failed")
  if not count > 0:
    return None
  return Finding(
    "simulation broke down",
    f"{count:.0f} simulations broke down, which ended their episodes",
    "actions that the physics cannot follow",
    "a smaller std, an environment with smaller time steps",
  )


CHECKS: tuple[Check, ...] = (
  skipped,
  reward_missing,
  reward_never_applies,
  reward_of_equals,
  reward_tells_nothing,
  reward_without_solving,
  no_variance,
  truncated,
  entropy_collapse,
  mismatch,
  few_effective_samples,
  ratio_off,
  large_updates,
  no_updates,
  gradient_spike,
  kl_runaway,
  negative_kl,
  blind_critic,
  prompts_passed_over,
  simulations_broke,
)


class Watch:
  """Tells of each thing that goes wrong once, when it is first seen."""

  def __init__(self, config: Mapping[str, Any], checks: Sequence[Check] = CHECKS):
    self._seen = Seen(config)
    self._left = list(checks)

  def add(self, step: int, row: Mapping[str, float | None], records: Sequence[Mapping[str, Any]] = ()) -> list[Finding]:
    """Takes one step, and returns what it shows for the first time."""
    self._seen.add(row, records)
    found = []
    for check in tuple(self._left):
      finding = check(self._seen)
      if finding is not None:
        found.append(finding._replace(step=step))
        self._left.remove(check)
    return found


def diagnose(
  rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()
) -> list[Finding]:
  """Returns what went wrong in a run, in the order in which it was first seen.

  Args:
    rows: Its metrics, a step each, as metrics.jsonl has them.
    config: Its settings.
    samples: Its completions, as samples.jsonl has them.

  >>> [finding.name for finding in diagnose([{"step": 1, "loss": None, "skipped": 0.5}], {})]
  ['skipped updates']
  """
  watch, by_step = Watch(config), {}
  for sample in samples:
    by_step.setdefault(sample["step"], []).append(sample)
  return [finding for row in rows for finding in watch.add(row["step"], row, by_step.get(row["step"], ()))]
