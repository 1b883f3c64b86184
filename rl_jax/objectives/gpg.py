"""Group Policy Gradient (GPG): the policy gradient with a group baseline, corrected for samples that teach nothing.

    loss = -1/N sum_it A_i log pi(a_it),   A_i = alpha (s_i - mean_G s) / f_norm

with `alpha` from `ops.advantages.gpg`. No ratio, no clip, no reference.

How the defaults differ elsewhere: verl is the same; TRL 1.16 has none.

Reference: X. Chu et al., "GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning",
arXiv:2504.02546.
"""

from functools import partial

from rl_jax.objectives.base import Objective, on_policy_gradient
from rl_jax.ops import advantages, aggregation, estimates

advantage = partial(estimates.per_completion, advantages.gpg)


def objective() -> Objective:
  """Returns the GPG objective, for batches that are used once.

  >>> sorted(objective().needs)
  ['advantages', 'logp']
  """
  return on_policy_gradient(aggregation.token_mean())
