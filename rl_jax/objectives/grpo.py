"""Group Relative Policy Optimization (GRPO).

    loss = 1/B sum_i 1/n_i sum_t [ max(-A_i r_it, -A_i clip(r_it, 1 - low, 1 + high)) + kl_coef k3_it ]

with `r = exp(logp - old_logp)`, `k3` against the reference policy, and `A_i = (s_i - mean_G s) / std_G s` from
`ops.advantages.group_normalized`, computed before the update.

How the defaults (the paper's) differ elsewhere:
  - TRL 1.16: no KL term (`beta = 0`), `loss_type = "dapo"` (a mean over tokens), rows without tokens are counted.
  - verl: a mean over tokens (`token-mean`), KL off unless `use_kl_loss`, whose coefficient is 0.001.

Reference: Z. Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
arXiv:2402.03300 (eq. 3 and 4).
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, add, kl_penalty, policy_gradient, scale
from rl_jax.ops import advantages, aggregation, estimates, kl, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(
  *,
  clip_low: float | Array = 0.2,
  clip_high: float | Array = 0.2,
  kl_coef: float | Array = 0.04,
  kl_correction: bool = False,
) -> Objective:
  """Returns the GRPO objective.

  Args:
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.
    kl_coef: Weight of the k3 penalty; a Python 0 removes the term and the reference pass with it.
    kl_correction: Whether each token's penalty is multiplied by its ratio to the old policy, so that its mean and
      gradient are those of the KL also on tokens that an older policy drew (TRL's `use_bias_correction_kl`).

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp', 'ref_logp']
  """
  policy = policy_gradient(ratios.token(), surrogates.clip(low=clip_low, high=clip_high), aggregation.sequence_mean())
  penalty = kl_penalty(kl.k3, aggregation.sequence_mean(), ratio=ratios.token() if kl_correction else None)
  return add(policy=policy, kl=scale(kl_coef, penalty))
