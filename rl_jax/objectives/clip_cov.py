"""Clip-Cov: PPO's clip, and a random few of the tokens whose log-prob and advantage vary together are left out.

    loss = 1/N sum_t keep_t max(-A_t r_t, -A_t clip(r_t, 1 - low, 1 + high))

Candidates are unclipped tokens with `(A_t - mean A)(logp_t - mean logp)` between two bounds; a fraction of the batch's
tokens is drawn from them. The choice is a statistic of the global batch at each update: it needs `batch_logp`, and
`noise`, one uniform random number a token, so that any split of the batch draws the same.

How the defaults differ elsewhere: verl takes the same fraction and bounds, and draws within each micro-batch; TRL 1.16
has none.

Reference: G. Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
arXiv:2505.22617.
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.objectives.base import Inputs, Objective, field, policy_gradient, weighted
from rl_jax.ops import advantages, aggregation, estimates, ratios, selection, surrogates
from rl_jax.ops.masking import as_bool

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(
  *,
  fraction: float | Array = 2e-4,
  lowest: float | Array = 1.0,
  highest: float | Array = 5.0,
  clip_low: float | Array = 0.2,
  clip_high: float | Array = 0.2,
) -> Objective:
  """Returns the Clip-Cov objective.

  Args:
    fraction: Share of the batch's tokens that are left out; at least one is, if there is a candidate.
    lowest: Candidates have a covariance above this.
    highest: Candidates have a covariance below this.
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.

  >>> sorted(objective().needs)
  ['advantages', 'batch_logp', 'logp', 'noise', 'old_logp']
  """
  ratio = ratios.token()

  def drop_covariance(inputs: Inputs) -> Array:
    logp, advantage = field(inputs, "batch_logp"), field(inputs, "advantages")
    covariance = selection.covariance(logp, advantage, inputs.mask)
    log_ratio = ratio(logp, field(inputs, "old_logp"), inputs.mask)
    too_high = (advantage > 0) & (log_ratio > jnp.log1p(clip_high))
    clipped = too_high | (advantage < 0) & (log_ratio < jnp.log1p(-jnp.asarray(clip_low)))
    candidates = as_bool(inputs.mask) & ~clipped & (covariance > lowest) & (covariance < highest)
    return ~selection.random_fraction(field(inputs, "noise"), candidates, inputs.mask, fraction=fraction)

  policy = policy_gradient(ratio, surrogates.clip(low=clip_low, high=clip_high), aggregation.token_mean())
  return weighted(policy, drop_covariance, needs=("batch_logp", "noise"))
