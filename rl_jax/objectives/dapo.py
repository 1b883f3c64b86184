"""DAPO: GRPO with an asymmetric clip and a mean over tokens, without a KL term.

    loss = 1/N sum_it max(-A_i r_it, -A_i clip(r_it, 1 - 0.2, 1 + 0.28))

Its other two parts are not in the loss: dynamic sampling (`rollouts.dynamic.play_until_full`, which keeps
`ops.advantages.keep_groups`) and the soft punishment of overlong completions (`ops.rewards.overlong_penalty`).

How the defaults differ elsewhere:
  - TRL 1.16: `loss_type = "dapo"` with `epsilon_high = epsilon = 0.2`.
  - verl: a mean over tokens; dual clip with 3 (its DAPO recipe uses 10).

Reference: Q. Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", arXiv:2503.14476.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(*, clip_low: float | Array = 0.2, clip_high: float | Array = 0.28) -> Objective:
  """Returns the DAPO objective.

  Args:
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  return policy_gradient(ratios.token(), surrogates.clip(low=clip_low, high=clip_high), aggregation.token_mean())
