"""RLOO: REINFORCE with the other completions of the prompt as the baseline.

    loss = -1/B sum_i A_i sum_t log pi(a_it),   A_i = s_i - mean of the other G - 1 rewards

A completion is one action: its log-prob is the sum over its tokens. The paper's KL penalty is part of the reward.

How the defaults differ elsewhere:
  - TRL 1.16: PPO's clip on the ratio of whole sequences (the product over tokens), `num_iterations` updates a batch;
    advantages may be whitened.
  - verl: RLOO is an advantage estimator; the loss is PPO's clip with a mean over tokens.

Reference: A. Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback
in LLMs", arXiv:2402.14740.
"""

from functools import partial

from rl_jax.objectives.base import Objective, on_policy_gradient
from rl_jax.ops import advantages, aggregation, estimates

advantage = partial(estimates.per_completion, advantages.leave_one_out)


def objective() -> Objective:
  """Returns the RLOO objective, for batches that are used once.

  >>> sorted(objective().needs)
  ['advantages', 'logp']
  """
  return on_policy_gradient(aggregation.sequence_sum())
