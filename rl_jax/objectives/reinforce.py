"""REINFORCE: the plain policy gradient.

    loss = -1/B sum_i sum_t A_it log pi(a_it)

with reward-to-go less a baseline as the advantage: `ops.returns.discounted_returns`, `ops.advantages.baseline`. With
advantage 1 on given labels it is maximum likelihood.

How the defaults differ elsewhere:
  - TRL 1.16 has no REINFORCE of its own (RLOO is the nearest).
  - verl: `loss_type = "reinforce"` of its bypass mode, a mean over sequences of sums, with importance weights.

Reference: R. J. Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
Machine Learning 8 (1992).
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, add, entropy_bonus, on_policy_gradient, scale
from rl_jax.ops import advantages, aggregation, estimates

advantage = partial(estimates.per_completion, advantages.baseline)


def objective(*, entropy_coef: float | Array = 0.0) -> Objective:
  """Returns the REINFORCE objective.

  Args:
    entropy_coef: Weight of an entropy bonus, averaged over tokens; a Python 0 removes it.

  >>> sorted(objective().needs)
  ['advantages', 'logp']
  """
  policy = on_policy_gradient(aggregation.sequence_sum())
  return add(policy=policy, entropy=scale(entropy_coef, entropy_bonus(aggregation.token_mean())))
