"""ReMax: REINFORCE with the greedy completion's reward as the baseline.

    loss = -1/B sum_i A_i sum_t log pi(a_it),   A_i = s_i - s(greedy completion of the prompt)

How the defaults differ elsewhere:
  - verl: ReMax is an advantage estimator; the loss is PPO's clip with a mean over tokens.
  - TRL 1.16 has none.

Reference: Z. Li et al., "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large
Language Models", arXiv:2310.10505.
"""

from functools import partial

from rl_jax.objectives.base import Objective, on_policy_gradient
from rl_jax.ops import advantages, aggregation, estimates

advantage = partial(estimates.against_greedy, advantages.remax)


def objective() -> Objective:
  """Returns the ReMax objective, for batches that are used once.

  >>> sorted(objective().needs)
  ['advantages', 'logp']
  """
  return on_policy_gradient(aggregation.sequence_sum())
