"""Intervals for measured results."""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


def wilson_interval(successes: int, trials: int, *, z: float = 1.96) -> tuple[float, float]:
  """The Wilson score interval of a proportion, 95 % by default.

    (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)

  Args:
    successes: Number of successes, from 0 to `trials`.
    trials: Number of trials, at least 1.
    z: Quantile of the normal distribution.

  Reference: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).

  >>> [round(bound, 3) for bound in wilson_interval(30, 100)]
  [0.219, 0.396]
  """
  if not 0 <= successes <= trials or trials < 1:
    raise ValueError(f"successes must lie in [0, trials] and trials be positive, got {successes} of {trials}")
  p = successes / trials
  middle = p + z**2 / (2 * trials)
  spread = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
  scale = 1 + z**2 / trials
  return min((middle - spread) / scale, p), max((middle + spread) / scale, p)  # rounding must not cut off p itself


def interquartile_mean(values: np.ndarray, *, axis: int = -1) -> np.ndarray | np.floating:
  """The mean of the middle half of the values: as robust as a median, with less variance.

  Args:
    values: `[..., runs]`.
    axis: Axis of the runs.

  Reference: R. Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
  arXiv:2108.13264.

  >>> float(interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0])))
  1.5
  """
  ordered = np.sort(values, axis=axis)
  cut = ordered.shape[axis] // 4
  return np.take(ordered, np.arange(cut, ordered.shape[axis] - cut), axis=axis).mean(axis=axis)


def bootstrap_interval(
  values: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray | np.floating, np.ndarray | np.floating]:
  """The percentile bootstrap interval of the interquartile mean over runs.

  Args:
    values: `[..., runs]`, at least two runs.
    confidence: Confidence level of the interval.
    resamples: Number of resamples, drawn with replacement.
    seed: Seed of the draws.

  Returns:
    Its lower and upper ends `[...]`.

  Raises:
    ValueError: If there are fewer than two runs.

  >>> low, high = bootstrap_interval(np.array([1.0, 2.0, 3.0, 4.0]))
  >>> bool(1.0 <= low < 2.5 < high <= 4.0)
  True
  """
  values = np.asarray(values, np.float64)
  runs = values.shape[-1]
  if runs < 2:
    raise ValueError(f"an interval needs at least 2 runs, got {runs}")
  draws = np.random.default_rng(seed).integers(runs, size=(resamples, runs))
  means = interquartile_mean(values[..., draws])
  tail = 50 * (1 - confidence)
  low, high = np.percentile(means, [tail, 100 - tail], axis=-1)
  return low, high


def probability_of_improvement(
  x: np.ndarray, y: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
  """The probability that a run of x is better than one of y, `P(X > Y) + P(X = Y) / 2`, with a bootstrap interval.

  Args:
    x: `[runs]`, higher is better.
    y: `[runs]`.
    confidence: Confidence level of the interval.
    resamples: Number of resamples, drawn with replacement, from x and y independently.
    seed: Seed of the draws.

  Returns:
    The probability, and the ends of its interval.

  Reference: R. Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
  arXiv:2108.13264.

  >>> probability_of_improvement(np.array([1.0, 2.0]), np.array([0.0, 1.0]))[0]
  0.875
  """
  wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
  rng = np.random.default_rng(seed)
  rows, columns = (rng.integers(len(side), size=(resamples, len(side))) for side in (x, y))
  means = wins[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
  tail = 50 * (1 - confidence)
  low, high = np.percentile(means, [tail, 100 - tail])
  return float(wins.mean()), float(low), float(high)


def pass_at_k(solved: np.ndarray, k: int) -> np.ndarray | np.floating:
  """The chance that one of k answers to a prompt is right, without bias: `1 - C(n - c, k) / C(n, k)`.

  Args:
    solved: `[..., n]`, which of n answers are right; c of them are.
    k: From 1 to n.

  Returns:
    `[...]`, in [0, 1].

  Raises:
    ValueError: If there are fewer than k answers.

  Reference: M. Chen et al., "Evaluating Large Language Models Trained on Code", arXiv:2107.03374.

  >>> pass_at_k(np.array([[1, 0, 0, 0], [1, 1, 0, 0]]), 2).round(3).tolist()
  [0.5, 0.833]
  """
  n = _check_k(solved, k)
  wrong = n - np.count_nonzero(solved, axis=-1)
  i = np.arange(k)
  # C(n - c, k) / C(n, k) as a product of k factors, of which one is 0 where fewer than k are wrong.
  return 1 - np.prod(np.maximum(wrong[..., None] - i, 0) / (n - i), axis=-1)


def majority_at_k(answers: Sequence[Hashable], solved: Sequence[bool], k: int, *, subsets: int = 2000) -> float:
  """The chance that the answer which most of k answers to a prompt give is right; the first of equals is any of them.

  It is the mean over all subsets of k of the n answers, or over random ones where there are many: without bias.

  Args:
    answers: The n answers, such as numbers; equal ones are votes for the same.
    solved: Which of them are right; where equal ones are both, their share is.
    k: From 1 to n.
    subsets: The most subsets to look at.

  Raises:
    ValueError: If there are fewer than k answers.

  Reference: X. Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models",
  arXiv:2203.11171.

  >>> majority_at_k(["7", "7", "8"], [True, True, False], 3), majority_at_k(["7", "8"], [True, False], 2)
  (1.0, 0.5)
  """
  n = _check_k(solved, k)
  kinds = list(dict.fromkeys(answers))
  votes = np.eye(len(kinds))[[kinds.index(answer) for answer in answers]]
  right = votes.T @ np.asarray(solved) / votes.sum(axis=0)
  if math.comb(n, k) <= subsets:
    chosen = np.array(list(itertools.combinations(range(n), k)))
  else:
    chosen = np.random.default_rng(0).random((subsets, n)).argsort(axis=-1)[:, :k]
  counts = votes[chosen].sum(axis=1)
  first = counts == counts.max(axis=-1, keepdims=True)
  return float(np.mean((first * right).sum(axis=-1) / first.sum(axis=-1)))


def _check_k(solved: np.ndarray | Sequence[bool], k: int) -> int:
  n = np.shape(solved)[-1]
  if not 1 <= k <= n:
    raise ValueError(f"k must be from 1 to the number of answers, {n}, got {k}")
  return n


class Reliability(NamedTuple):
  """How often claims come true, in bins of what they claim.

  Attributes:
    claimed: `[bins]`, the mean probability that was claimed.
    right: `[bins]`, how often it was right.
    count: `[bins]`, the claims of each bin; bins without any are left out.
  """

  claimed: np.ndarray
  right: np.ndarray
  count: np.ndarray

  @property
  def error(self) -> float:
    """The expected calibration error, `|claimed - right|` weighed by the claims in each bin, in [0, 1].

    Reference: C. Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599.
    """
    return float(np.average(np.abs(self.claimed - self.right), weights=self.count))


def reliability(claimed: np.ndarray, right: np.ndarray, *, low: float = 0.0, bins: int = 10) -> Reliability:
  """Compares claimed probabilities with how often they are right.

  Args:
    claimed: `[n]`, from `low` to 1.
    right: `[n]`, 1 where the claim came true.
    low: The least that can be claimed.
    bins: Equal intervals from `low` to 1.

  Raises:
    ValueError: If there are no claims.

  >>> found = reliability(np.array([0.95, 0.95, 0.15]), np.array([1, 0, 0]))
  >>> found.right.tolist(), round(found.error, 3)
  ([0.0, 0.5], 0.35)
  """
  if not len(claimed):
    raise ValueError("there are no claims to compare")
  place = np.minimum(((np.asarray(claimed) - low) / (1 - low) * bins).astype(int), bins - 1)
  each = [(claimed[place == i].mean(), right[place == i].mean(), np.sum(place == i)) for i in np.unique(place)]
  return Reliability(*(np.array(column) for column in zip(*each, strict=True)))


def calibration_error(margins: np.ndarray, *, bins: int = 10) -> float:
  """Expected calibration error of a model of preferences: `|sigmoid(margin) - how often it is right|`, over bins.

  Each comparison is turned so that the margin is positive: the model claims that one answer wins with probability
  `sigmoid(|margin|)`, and is right where the margin was positive to begin with.

  Args:
    margins: `[n]`, score of the better answer minus that of the worse.
    bins: Equal intervals of claimed probability between 1/2 and 1.

  Returns:
    In [0, 1], weighed by the comparisons in each bin; a margin of 0 counts as half right.

  >>> round(calibration_error(np.array([9.0, 9.0, 9.0, -9.0])), 3)  # sure, and right three times out of four
  0.25
  """
  claimed = 1 / (1 + np.exp(-np.abs(margins)))
  return reliability(claimed, np.where(margins == 0, 0.5, margins > 0), low=0.5, bins=bins).error
