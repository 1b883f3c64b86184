"""Geometric-Mean Policy Optimization (GMPO): the geometric mean of the tokens' ratios, each clipped in log space.

    loss = -1/B sum_i A_i exp(1/n_i sum_t clamp(log r_it))        clamp: pessimistic, to [-low, high]

How the defaults differ elsewhere:
  - verl: `geo_mean`, the mean counts rows without tokens, and the clip is whatever `clip_ratio` says.
  - TRL 1.16 has an experimental trainer.

Reference: Y. Zhao et al., "Geometric-Mean Policy Optimization", arXiv:2507.20673.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(*, clip_low: float | Array = 0.4, clip_high: float | Array = 0.4) -> Objective:
  """Returns the GMPO objective.

  Args:
    clip_low: A token's log-ratio counts down to `-clip_low` where the advantage is negative.
    clip_high: It counts up to `clip_high` where the advantage is positive.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  return policy_gradient(ratios.token(), surrogates.gmpo(low=clip_low, high=clip_high), aggregation.sequence_mean())
