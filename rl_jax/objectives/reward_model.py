"""Reward models from comparisons: Bradley-Terry on pairs, and on rankings of K answers over all their pairs.

    loss = mean over rankings of 1/(K choose 2) sum_{i better than j} [ -log sigmoid(s_i - s_j - margin_ij)
                                                                        + centering (s_i + s_j)^2 ]

`reward_scores [..., K]` are the learner's, best first. All pairs of a ranking are in one batch: taking them apart
overfits.

How the defaults differ elsewhere: TRL 1.16: pairs only; the same margin and centering. verl trains none.

Reference: L. Ouyang et al., "Training Language Models to Follow Instructions with Human Feedback", arXiv:2203.02155
(eq. 1); H. Touvron et al., "Llama 2", arXiv:2307.09288 (margin); J. Eisenstein et al., "Helping or Herding?",
arXiv:2312.09244 (centering).
"""

import jax
from jaxtyping import Array

from rl_jax.objectives.base import Objective
from rl_jax.objectives.pairs import ranking


def objective(*, centering: float | Array = 0.0, margins: bool = False) -> Objective:
  """Returns the reward model's objective.

  Args:
    centering: Weight of the squared sum of a pair's scores, which keeps them around 0; TRL suggests 0.01.
    margins: Whether `ratings` (higher is better) set the margin between two answers, as their difference.

  >>> sorted(objective().needs)
  ['reward_scores']
  """

  def bradley_terry(difference: Array) -> Array:
    return -jax.nn.log_sigmoid(difference)

  return ranking(bradley_terry, centering=centering, margins=margins)
