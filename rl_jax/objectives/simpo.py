"""SimPO: preference optimization with the mean log-prob as the reward and a margin; no reference.

    loss = mean over pairs of -log sigmoid( beta (1/n_c log pi(y_c) - 1/n_r log pi(y_r)) - gamma )

How the defaults differ elsewhere: TRL 1.16 (CPO with `loss_type = "simpo"`): beta 0.1 and gamma 0.5;
verl has none.

Reference: Y. Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv:2405.14734 (beta
2 to 2.5, gamma around half of it).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.objectives.base import Objective
from rl_jax.objectives.pairs import Pair, pairwise


def objective(*, beta: float | Array = 2.0, gamma: float | Array = 1.0) -> Objective:
  """Returns the SimPO objective, on pairs `[..., 2, T]` with the chosen side first.

  Args:
    beta: Scale of the rewards.
    gamma: Margin that the chosen reward should have.

  >>> sorted(objective().needs)
  ['logp']
  """

  def mean_margin(pair: Pair, _) -> tuple[Array, tuple[Array, Array]]:
    chosen, rejected = (beta * logp / jnp.maximum(n, 1) for logp, n in zip(pair.logp, pair.tokens, strict=True))
    return -jax.nn.log_sigmoid(chosen - rejected - gamma), (chosen, rejected)

  return pairwise(mean_margin, reference=False)
