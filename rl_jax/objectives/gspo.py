"""Group Sequence Policy Optimization (GSPO): one ratio a sequence, the geometric mean of its tokens'.

    loss = 1/B sum_i max(-A_i s_i, -A_i clip(s_i, 1 - low, 1 + high)),   s_i = exp(1/n_i sum_t (logp_it - old_logp_it))

How the defaults differ elsewhere:
  - TRL 1.16: `importance_sampling_level = "sequence"` with `epsilon` 0.2 unless set.
  - verl: the token form, a clamp of the log-ratio at 10, and 0.2 unless set.

Reference: C. Zheng et al., "Group Sequence Policy Optimization", arXiv:2507.18071 (section 5.1: 3e-4 and 4e-4).
"""

from functools import partial
from typing import Literal

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)


def objective(
  *,
  clip_low: float | Array = 3e-4,
  clip_high: float | Array = 4e-4,
  gradient: Literal["sequence", "token"] = "sequence",
) -> Objective:
  """Returns the GSPO objective.

  Args:
    clip_low: The ratio's gradient stops below `1 - clip_low` where the advantage is negative.
    clip_high: It stops above `1 + clip_high` where the advantage is positive.
    gradient: "token" is GSPO-token, for advantages that differ within a sequence; with equal ones nothing changes.

  Raises:
    ValueError: For another `gradient`.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  if gradient not in ("sequence", "token"):
    raise ValueError(f"gradient must be 'sequence' or 'token', got {gradient!r}")
  ratio = ratios.sequence() if gradient == "sequence" else ratios.sequence_token()
  return policy_gradient(ratio, surrogates.clip(low=clip_low, high=clip_high), aggregation.sequence_mean())
