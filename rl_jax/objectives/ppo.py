"""Proximal Policy Optimization (PPO) with a clipped surrogate and a critic.

    loss = 1/N sum_t [ max(-A_t r_t, -A_t clip(r_t, 1 - low, 1 + high)) + value_coef v_t - entropy_coef H_t ]
    v_t  = 1/2 max((V_t - R_t)^2, (clip(V_t, V_old - c, V_old + c) - R_t)^2)

with advantages and returns from `ops.returns.gae`; on language models the reward of a token holds the KL penalty
(`ops.rewards.with_kl`), and advantages are whitened over the batch (`ops.masking.masked_whiten`).

How the defaults differ elsewhere:
  - the paper: no clip of the value, weights of value and entropy depend on the task.
  - TRL's last PPO trainer: `vf_coef = 0.1`, `cliprange_value = 0.2`, no entropy bonus, as here.
  - verl: dual clip with 3, the critic has its own optimizer, `cliprange_value = 0.5`.

Reference: J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347; D. M. Ziegler et al.,
"Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593 (weights).
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, add, entropy_bonus, policy_gradient, scale, value_regression
from rl_jax.ops import aggregation, estimates, ratios, returns, surrogates
from rl_jax.ops.estimates import Advantage


def advantage(*, gamma: float | Array = 1.0, lam: float | Array = 0.95, whiten: bool = True) -> Advantage:
  """Returns generalized advantage estimation with a critic.

  Args:
    gamma: Discount a token.
    lam: 1 gives Monte Carlo advantages, 0 one-step TD errors.
    whiten: Whether the advantages are whitened over the batch.

  >>> sorted(advantage().needs)
  ['token_rewards', 'values']
  """
  return estimates.with_critic(partial(returns.gae, gamma=gamma, lam=lam), whiten=whiten)


def objective(
  *,
  clip_low: float | Array = 0.2,
  clip_high: float | Array = 0.2,
  value_coef: float | Array = 0.1,
  value_clip: float | Array | None = 0.2,
  entropy_coef: float | Array = 0.0,
) -> Objective:
  """Returns the PPO objective.

  Args:
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.
    value_coef: Weight of the critic's regression; a Python 0 removes it, for critics with an update of their own.
    value_clip: How far a value may move in an update, in units of the return; None for no limit.
    entropy_coef: Weight of the entropy bonus; a Python 0 removes it.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp', 'old_values', 'returns', 'values']
  """
  mean = aggregation.token_mean()
  return add(
    policy=policy_gradient(ratios.token(), surrogates.clip(low=clip_low, high=clip_high), mean),
    value=scale(value_coef, value_regression(mean, clip=value_clip)),
    entropy=scale(entropy_coef, entropy_bonus(mean)),
  )
