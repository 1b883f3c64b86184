"""Supervised fine-tuning (SFT), and its dynamic form DFT.

    loss = -1/N sum_t w_t log pi(label_t),   w = 1, or sg(pi(label_t)) for DFT

SFT is the policy gradient with reward 1 on the label. That view shows an implicit weight `1 / pi` in it, which blows up
on unlikely labels; DFT takes it away.

How the defaults differ elsewhere: TRL 1.16: the same (`loss_type` "nll" or "dft"); verl: the same.

Reference: Y. Wu et al., "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification"
(DFT), arXiv:2508.05629.
"""

from typing import Literal

import jax.numpy as jnp

from rl_jax.objectives.base import Objective, likelihood
from rl_jax.ops import aggregation
from rl_jax.ops.aggregation import Aggregate


def objective(*, loss: Literal["nll", "dft"] = "nll", aggregate: Aggregate | None = None) -> Objective:
  """Returns the supervised objective; `mask` is 1 on the labels.

  Args:
    loss: "nll" or "dft".
    aggregate: How tokens are averaged; over all tokens by default.

  Raises:
    ValueError: For another loss.

  >>> sorted(objective().needs)
  ['logp']
  """
  if loss not in ("nll", "dft"):
    raise ValueError(f"loss must be 'nll' or 'dft', got {loss!r}")
  aggregate = aggregation.token_mean() if aggregate is None else aggregate
  return likelihood(aggregate, token_weight=jnp.exp if loss == "dft" else None)
