"""ORPO: supervised fine-tuning on the chosen answer plus a penalty on the odds of the rejected one; no reference.

    loss = mean over pairs of [ -1/n_c log pi(y_c) - beta log sigmoid(log odds(y_c) - log odds(y_r)) ]
    log odds(y) = l - log(1 - exp(l)),   l = 1/n log pi(y)

How the defaults differ elsewhere: TRL 1.16 averages the likelihood term over the tokens of the batch and includes the
prompt's; here it is each pair's mean, as in the paper. verl has none.

Reference: J. Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model", arXiv:2403.07691.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.objectives.base import Objective
from rl_jax.objectives.pairs import Pair, pairwise


def objective(*, beta: float | Array = 0.1) -> Objective:
  """Returns the ORPO objective, on pairs `[..., 2, T]` with the chosen side first.

  Args:
    beta: Weight of the odds-ratio term (lambda in the paper).

  >>> sorted(objective().needs)
  ['logp']
  """

  def odds_ratio(pair: Pair, _) -> tuple[Array, tuple[Array, Array]]:
    chosen, rejected = (logp / jnp.maximum(n, 1) for logp, n in zip(pair.logp, pair.tokens, strict=True))
    odds = _log_odds(chosen), _log_odds(rejected)
    return -chosen - beta * jax.nn.log_sigmoid(odds[0] - odds[1]), odds

  return pairwise(odds_ratio, reference=False)


def _log_odds(logp: Array) -> Array:
  """`log(p / (1 - p))`; p is kept 1e-6 below 1, where the odds are infinite."""
  logp = jnp.minimum(logp, -1e-6)
  return logp - jnp.log(-jnp.expm1(logp))
