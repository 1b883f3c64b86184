"""KL-Cov: importance sampling, with a KL penalty on the few tokens whose log-prob and advantage vary together most.

    loss = 1/N sum_t [ -A_t r_t + coef 1[t in top] |log r_t| ]
    top  = the fraction of the batch's tokens with the largest (A_t - mean A)(logp_t - mean logp)

These tokens are what drives the entropy down. The choice is a statistic of the global batch at each update: it needs
`batch_logp`, so that micro-batches and devices choose the same tokens as one device does.

How the defaults differ elsewhere: verl takes `kl_cov_ratio = 0.0002`, as here, with `ppo_kl_coef = 0.1`, and chooses
within each micro-batch; TRL 1.16 has none.

Reference: G. Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
arXiv:2505.22617.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Inputs, Objective, add, field, kl_penalty, policy_gradient, scale, weighted
from rl_jax.ops import advantages, aggregation, estimates, kl, ratios, selection, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(*, fraction: float | Array = 2e-4, kl_coef: float | Array = 1.0) -> Objective:
  """Returns the KL-Cov objective.

  Args:
    fraction: Share of the batch's tokens that are penalized; at least one is.
    kl_coef: Weight of their penalty.

  >>> sorted(objective().needs)
  ['advantages', 'batch_logp', 'logp', 'old_logp']
  """

  def top_covariance(inputs: Inputs) -> Array:
    covariance = selection.covariance(field(inputs, "batch_logp"), field(inputs, "advantages"), inputs.mask)
    return selection.top_fraction(covariance, inputs.mask, fraction=fraction)

  mean = aggregation.token_mean()
  penalty = kl_penalty(kl.absolute, mean, reference="old_logp", metric="abs_log_ratio")
  return add(
    policy=policy_gradient(ratios.token(), surrogates.importance(), mean),
    kl=scale(kl_coef, weighted(penalty, top_covariance, needs=("batch_logp", "advantages"))),
  )
