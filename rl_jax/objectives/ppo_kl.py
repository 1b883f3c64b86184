"""PPO with a KL penalty in place of the clip.

    loss = 1/N sum_t [ -A_t r_t + beta KL_t(old, new) + value_coef v_t ]

`KL(old, new)` is estimated by k3 on the old policy's tokens, `expm1(d) - d` with `d = logp - old_logp`. The paper
adapts beta between updates: `ops.controllers.kl_band` doubles it above 1.5 times a target, and halves it below the
target over 1.5.

How the defaults differ elsewhere: neither TRL nor verl has it (verl's `use_kl_loss` penalizes the KL to the reference).

Reference: J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347 (eq. 8).
"""

from jaxtyping import Array

from rl_jax.objectives import ppo
from rl_jax.objectives.base import Objective, add, kl_penalty, policy_gradient, scale, value_regression
from rl_jax.ops import aggregation, kl, ratios, surrogates

advantage = ppo.advantage
several_updates = True  # with one update a rollout the KL between old and new policy is 0


def objective(
  *, beta: float | Array = 1.0, value_coef: float | Array = 0.1, value_clip: float | Array | None = 0.2
) -> Objective:
  """Returns PPO's objective with a KL penalty.

  Args:
    beta: Weight of the KL between old and new policy; may be traced, so that a controller can change it.
    value_coef: Weight of the critic's regression; a Python 0 removes it.
    value_clip: As for `ppo`.

  >>> sorted(objective(value_coef=0).needs)
  ['advantages', 'logp', 'old_logp']
  """
  mean = aggregation.token_mean()
  return add(
    policy=policy_gradient(ratios.token(), surrogates.importance(), mean),
    kl=scale(beta, kl_penalty(kl.reverse(kl.k3), mean, reference="old_logp")),
    value=scale(value_coef, value_regression(mean, clip=value_clip)),
  )
