"""CPO: DPO with a uniform reference, so that none is needed, plus the likelihood of the chosen answer.

    loss = mean over pairs of [ -log sigmoid( beta (log pi(y_c) - log pi(y_r)) ) - nll_coef 1/n_c log pi(y_c) ]

How the defaults differ elsewhere: TRL 1.16: the likelihood is averaged over the tokens of the batch and includes the
prompt's; here it is each pair's mean, and the paper sums over the answer's tokens. verl has none.

Reference: H. Xu et al., "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
Translation", arXiv:2401.08417.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.objectives.base import Objective
from rl_jax.objectives.pairs import Pair, pairwise


def objective(*, beta: float | Array = 0.1, nll_coef: float | Array = 1.0) -> Objective:
  """Returns the CPO objective, on pairs `[..., 2, T]` with the chosen side first.

  Args:
    beta: Scale of the log-probs.
    nll_coef: Weight of the chosen answer's mean negative log-likelihood.

  >>> sorted(objective().needs)
  ['logp']
  """

  def contrast(pair: Pair, _) -> tuple[Array, tuple[Array, Array]]:
    chosen, rejected = (beta * logp for logp in pair.logp)
    loss = -jax.nn.log_sigmoid(chosen - rejected) - nll_coef * pair.logp[0] / jnp.maximum(pair.tokens[0], 1)
    return loss, (chosen, rejected)

  return pairwise(contrast, reference=False)
