"""Dr. GRPO: GRPO without its two biases.

    loss = 1/(B length) sum_i sum_t max(-A_i r_it, -A_i clip(r_it, 1 - low, 1 + high)),   A_i = s_i - mean_G s

Dividing by a constant instead of by each completion's length stops long wrong answers from being favored; dropping the
standard deviation stops very easy and very hard prompts from weighing more.

How the defaults differ elsewhere:
  - TRL 1.16: `loss_type = "dr_grpo"` divides by `max_completion_length`; `scale_rewards = "none"` has to be asked for.
  - verl: `seq-mean-token-sum-norm` divides by the padded length unless `loss_scale_factor` is given.

Reference: Z. Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective", arXiv:2503.20783.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, partial(advantages.group_normalized, scale="none"))
example = {"length": 512}


def objective(*, length: int, clip_low: float | Array = 0.2, clip_high: float | Array = 0.2) -> Objective:
  """Returns the Dr. GRPO objective.

  Args:
    length: The constant to divide by, usually the longest completion allowed, in tokens.
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.

  >>> sorted(objective(length=512).needs)
  ['advantages', 'logp', 'old_logp']
  """
  surrogate = surrogates.clip(low=clip_low, high=clip_high)
  return policy_gradient(ratios.token(), surrogate, aggregation.constant_length(length=length))
