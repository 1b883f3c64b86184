"""KTO: learning from single answers that are marked desirable or not.

    loss = mean over sequences of  w_d (1 - sigmoid(beta (l - z0)))    desirable
                                   w_u (1 - sigmoid(beta (z0 - l)))    undesirable
    l = log pi(y) - log ref(y),   z0 = max(0, mean over the batch of kl_baseline)

A positive advantage marks a desirable sequence. `kl_baseline` is `log pi(y') - log ref(y')` of the prompt with the
answer of another one, without a gradient: its mean over the global batch estimates the KL.

How the defaults differ elsewhere: TRL 1.16: the same, with z0 of each micro-batch (averaged over processes); verl has
none.

Reference: K. Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv:2402.01306.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.objectives.base import Inputs, Objective, field, present
from rl_jax.objectives.pairs import sequencewise
from rl_jax.ops.masking import masked_mean
from rl_jax.ops.metrics import Mean, Metrics


def objective(
  *, beta: float | Array = 0.1, desirable_weight: float | Array = 1.0, undesirable_weight: float | Array = 1.0
) -> Objective:
  """Returns the KTO objective.

  Args:
    beta: Scale of the log-ratios.
    desirable_weight: Weight of desirable sequences; with `undesirable_weight` it balances unequal numbers.
    undesirable_weight: Weight of the others.

  >>> sorted(objective().needs)
  ['advantages', 'kl_baseline', 'logp', 'ref_logp']
  """

  def reference_point(inputs: Inputs, weights: Array) -> tuple[Array, Array, Array]:
    z0 = jnp.maximum(masked_mean(present(inputs, "kl_baseline"), weights), 0)
    desirable = masked_mean(field(inputs, "advantages"), inputs.mask, axis=-1) > 0
    return jax.lax.stop_gradient(jnp.broadcast_to(z0, weights.shape)), desirable, weights

  def kto(log_ratio: Array, constants: tuple[Array, Array, Array]) -> tuple[Array, Metrics]:
    z0, desirable, weights = constants
    gain = beta * jnp.where(desirable, log_ratio - z0, z0 - log_ratio)
    rewards = beta * log_ratio
    metrics: Metrics = {
      "reward_chosen": Mean.of(rewards, weights * desirable),
      "reward_rejected": Mean.of(rewards, weights * ~desirable),
    }
    return jnp.where(desirable, desirable_weight, undesirable_weight) * (1 - jax.nn.sigmoid(gain)), metrics

  return sequencewise(kto, constants=reference_point, needs=("kl_baseline", "advantages"))
