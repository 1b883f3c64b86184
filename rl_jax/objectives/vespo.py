"""VESPO: REINFORCE with a smooth weight of the whole sequence's ratio.

    loss = -1/N sum_it sg(phi(W_i)) A_i log pi(a_it),   W_i = prod_t r_it,   phi(W) = W^k exp(lambda (1 - W))

How the defaults differ elsewhere: TRL 1.16 has the same defaults; it multiplies W by the sampler's correction.
verl has none.

Reference: "VESPO: Variational Sequence-level Soft Policy Optimization", arXiv:2602.10693.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(
  *,
  k_pos: float | Array = 2.0,
  lambda_pos: float | Array = 3.0,
  k_neg: float | Array = 3.0,
  lambda_neg: float | Array = 2.0,
) -> Objective:
  """Returns the VESPO objective.

  Args:
    k_pos: Power of the ratio where the advantage is not negative.
    lambda_pos: Rate of decay in the ratio there.
    k_neg: Power of the ratio where the advantage is negative.
    lambda_neg: Rate of decay in the ratio there.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  surrogate = surrogates.vespo(k_pos=k_pos, lambda_pos=lambda_pos, k_neg=k_neg, lambda_neg=lambda_neg)
  return policy_gradient(ratios.token(), surrogate, aggregation.token_mean())
