"""Intervals for measured results."""

import math


def wilson_interval(successes: int, trials: int, *, z: float = 1.96) -> tuple[float, float]:
  """The Wilson score interval of a proportion, 95 % by default.

    (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)

  Args:
    successes: From 0 to `trials`.
    trials: At least 1.
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
  return (middle - spread) / scale, (middle + spread) / scale
