"""REINFORCE++: PPO's clip on token returns that are whitened over the batch; no critic.

    loss = 1/N sum_t max(-A_t r_t, -A_t clip(r_t, 1 - low, 1 + high))

with `A` from `ops.token_advantages.reinforce_plus_plus` (the KL penalty is part of the rewards, see
`ops.rewards.with_kl`), or from `reinforce_plus_plus_baseline` for several completions a prompt.

How the defaults differ elsewhere:
  - OpenRLHF, the authors' system: the population's variance (`ddof=0`), holes in the mask are stepped through
    (`holes="zero"`), and rewards are clipped to +-10 first.
  - verl: dual clip with 3; a hole in the mask ends the returns of the tokens before it. TRL 1.16 has none.

Reference: J. Hu et al., "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage
Normalization", arXiv:2501.03262.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import aggregation, estimates, ratios, surrogates, token_advantages
from rl_jax.ops.estimates import Advantage


def advantage(*, gamma: float | Array = 1.0) -> Advantage:
  """Returns the token returns, whitened over the batch.

  Args:
    gamma: Discount a token.

  >>> advantage().needs
  frozenset({'token_rewards'})
  """
  return estimates.per_token(partial(token_advantages.reinforce_plus_plus, gamma=gamma))


def objective(*, clip_low: float | Array = 0.2, clip_high: float | Array = 0.2) -> Objective:
  """Returns the REINFORCE++ objective.

  Args:
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  return policy_gradient(ratios.token(), surrogates.clip(low=clip_low, high=clip_high), aggregation.token_mean())
