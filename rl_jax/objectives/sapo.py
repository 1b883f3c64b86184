"""Soft Adaptive Policy Optimization (SAPO): a sigmoid gate in place of the clip.

    loss = -1/B sum_i 1/n_i sum_t (4 / tau) sigmoid(tau (r_it - 1)) A_i,   tau by the sign of A

How the defaults differ elsewhere: TRL 1.16 and verl use the same temperatures; verl clamps the log-ratio at +-20.

Reference: C. Gao et al., "Soft Adaptive Policy Optimization", arXiv:2511.20347.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(*, tau_pos: float | Array = 1.0, tau_neg: float | Array = 1.05) -> Objective:
  """Returns the SAPO objective.

  Args:
    tau_pos: Temperature where the advantage is positive.
    tau_neg: Temperature elsewhere.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  surrogate = surrogates.sapo(tau_pos=tau_pos, tau_neg=tau_neg)
  return policy_gradient(ratios.token(), surrogate, aggregation.sequence_mean())
