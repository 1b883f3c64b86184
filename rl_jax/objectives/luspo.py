"""LUSPO: GSPO with every sequence weighed by its length.

    loss = 1/B sum_i n_i max(-A_i s_i, -A_i clip(s_i, 1 - low, 1 + high)),   s_i as in GSPO

GSPO's mean over a sequence gives each token of a long one less weight, which shortens answers; the factor `n_i` undoes
it. The clip range's defaults are GSPO's.

How the defaults differ elsewhere: TRL 1.16's `loss_type = "luspo"` takes token ratios unless told otherwise; verl
has none.

Reference: "Length-Unbiased Sequence Policy Optimization", arXiv:2602.05261.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(*, clip_low: float | Array = 3e-4, clip_high: float | Array = 4e-4) -> Objective:
  """Returns the LUSPO objective.

  Args:
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  surrogate = surrogates.clip(low=clip_low, high=clip_high)
  return policy_gradient(ratios.sequence(), surrogate, aggregation.sequence_sum())
