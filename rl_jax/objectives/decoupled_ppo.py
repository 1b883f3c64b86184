"""Decoupled PPO: the clip is taken against a recent policy, the importance weight against the one that sampled.

    loss = 1/N sum_t sg(rho_t) max(-A_t r_t, -A_t clip(r_t, 1 - low, 1 + high)),   r = pi / pi_prox,  rho = pi_prox / mu

`old_logp` is the proximal policy's (the learner at the start of the update), `behavior_logp` the sampler's, which may
be several updates older.

How the defaults differ elsewhere:
  - AReaL, the authors' system: the same, with an optional cap on rho, beyond which tokens are dropped rather than
    weighed by the cap in some versions (`weighted` with `corrections.icepop(low=0, high=cap)`).
  - verl: dual clip, and rho truncated at 2 if its rollout correction is on. TRL 1.16: truncated at 3 (vLLM only).

Reference: W. Fu et al., "AReaL: A Large-Scale Asynchronous Reinforcement Learning System for Language Reasoning",
arXiv:2505.24298; J. Hilton et al., "Batch Size-Invariance for Policy Optimization", arXiv:2110.00641.
"""

from functools import partial

from jaxtyping import Array

from rl_jax.objectives.base import Inputs, Objective, field, policy_gradient, weighted
from rl_jax.ops import advantages, aggregation, corrections, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(
  *, clip_low: float | Array = 0.2, clip_high: float | Array = 0.2, cap: float | Array | None = None
) -> Objective:
  """Returns the decoupled PPO objective.

  Args:
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.
    cap: Largest value of rho; None for no limit.

  >>> sorted(objective().needs)
  ['advantages', 'behavior_logp', 'logp', 'old_logp']
  """

  def importance(inputs: Inputs) -> Array:
    given = field(inputs, "old_logp"), field(inputs, "behavior_logp"), inputs.mask
    rho = corrections.importance(*given, max_log_ratio=None)
    return rho if cap is None else rho.clip(max=cap)

  policy = policy_gradient(ratios.token(), surrogates.clip(low=clip_low, high=clip_high), aggregation.token_mean())
  return weighted(policy, importance, needs=("old_logp", "behavior_logp"))
