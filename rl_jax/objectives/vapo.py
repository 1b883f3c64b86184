"""VAPO: PPO for long chains of thought: asymmetric clip, mean over tokens, a critic, and imitation of right answers.

    loss = 1/N sum_t [ clip_t + value_coef v_t ] - nll_coef 1/M sum_{t in right answers} log pi(a_t)

`target_mask` marks the tokens of completions that were right. Advantages and returns come from
`ops.returns.decoupled_gae`; the critic is warmed up first.

How the defaults differ elsewhere: neither TRL nor verl has it as a whole.

Reference: Y. Yue et al., "VAPO: Efficient and Reliable Reinforcement Learning for Advanced Reasoning Tasks",
arXiv:2504.05118 (clip 0.2 and 0.28, mu = 0.1).
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, add, likelihood, policy_gradient, scale, value_regression
from rl_jax.ops import aggregation, estimates, ratios, returns, surrogates
from rl_jax.ops.estimates import Advantage


def advantage(*, gamma: float | Array = 1.0, alpha: float | Array = 0.05, whiten: bool = True) -> Advantage:
  """Returns the decoupled, length-adaptive estimates.

  Args:
    gamma: Discount a token.
    alpha: Lambda of a completion of n tokens is `1 - 1 / (alpha n)`.
    whiten: Whether the advantages are whitened over the batch.

  >>> sorted(advantage().needs)
  ['token_rewards', 'values']
  """
  return estimates.with_critic(partial(returns.decoupled_gae, gamma=gamma, alpha=alpha), whiten=whiten)


def objective(
  *,
  clip_low: float | Array = 0.2,
  clip_high: float | Array = 0.28,
  value_coef: float | Array = 1.0,
  value_clip: float | Array | None = None,
  nll_coef: float | Array = 0.1,
) -> Objective:
  """Returns the VAPO objective.

  Args:
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.
    value_coef: Weight of the critic's regression; a Python 0 removes it, for critics with an update of their own.
    value_clip: How far a value may move in an update; None for no limit.
    nll_coef: Weight of the likelihood of right answers, mu in the paper; a Python 0 removes it.

  >>> sorted(objective(value_coef=0).needs)
  ['advantages', 'logp', 'old_logp', 'target_mask']
  """
  mean = aggregation.token_mean()
  return add(
    policy=policy_gradient(ratios.token(), surrogates.clip(low=clip_low, high=clip_high), mean),
    value=scale(value_coef, value_regression(mean, clip=value_clip)),
    nll=scale(nll_coef, likelihood(mean, on="target_mask")),
  )
