"""DRO: the policy gradient with a quadratic pull back to the old policy, token-wise.

    loss = -1/N sum_it ( A_i log pi(a_it) - beta/2 (log r_it)^2 )

How the defaults differ elsewhere: verl is the same, with beta required; TRL 1.16 has none. The paper learns a value per
prompt and pulls towards the reference on whole sequences.

Reference: P. H. Richemond et al., "Offline Regularized Reinforcement Learning for Large Language Models Alignment",
arXiv:2405.19107.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(*, beta: float | Array = 0.1) -> Objective:
  """Returns the DRO objective.

  Args:
    beta: Strength of the pull.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  return policy_gradient(ratios.token(), surrogates.dro(beta=beta), aggregation.token_mean())
