"""CISPO: REINFORCE with clipped importance weights; no token's gradient is ever stopped.

    loss = -1/N sum_it sg(clip(r_it, 1 - low, 1 + high)) A_i log pi(a_it)

How the defaults differ elsewhere:
  - TRL 1.16: `epsilon_high` is the cap itself (5 there is `clip_high = 4` here), no lower bound; with its default 0.2
    the on-policy gradient is scaled by 0.2.
  - verl: 0.2 on both sides, and a clamp of the log-ratio at +-20.

Reference: MiniMax, "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention", arXiv:2506.13585. The
paper gives no value for the upper bound; 4 is the one recommended with TRL's implementation.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(*, clip_low: float | Array = 1.0, clip_high: float | Array = 4.0) -> Objective:
  """Returns the CISPO objective.

  Args:
    clip_low: Weights are at least `1 - clip_low`; 1 sets no lower bound.
    clip_high: Weights are at most `1 + clip_high`.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  return policy_gradient(ratios.token(), surrogates.cispo(low=clip_low, high=clip_high), aggregation.token_mean())
