"""DPPO: a trust region in probabilities, in place of PPO's in ratios.

    loss = -1/N sum_it sg(min(r_it, cap)) M_it A_i log pi(a_it)

`M` is 0 where the policy has moved too far in the direction that the advantage asks for, by the change of the token's
probability ("tv") or by the KL between chosen and not chosen ("kl"), both against `old_logp`. The paper anchors the
region at the policy that sampled: give the sampler's log-probs as the old ones where the two differ.

How the defaults differ elsewhere: verl takes the same divergences with `clip_ratio` as their bounds, and caps the ratio
at `clip_ratio_c`, 3 unless set; TRL 1.16 has none.

Reference: "Rethinking the Trust Region in LLM Reinforcement Learning", arXiv:2602.04879.
"""

from functools import partial
from typing import Literal

from jaxtyping import Array

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import advantages, aggregation, estimates, ratios, surrogates

advantage = partial(estimates.per_completion, advantages.group_normalized)
_DIVERGENCES = {"tv": (surrogates.dppo_tv, 0.15), "kl": (surrogates.dppo_kl, 0.05)}


def objective(
  *,
  divergence: Literal["tv", "kl"] = "tv",
  low: float | Array | None = None,
  high: float | Array | None = None,
  cap: float | Array = 20.0,
) -> Objective:
  """Returns the DPPO objective.

  Args:
    divergence: "tv", a change of probability, or "kl", in nats.
    low: Bound of the divergence where the advantage is not positive: 0.15 for "tv" and 0.05 for "kl" by default.
    high: Bound of the divergence where the advantage is positive, likewise.
    cap: Largest importance weight.

  Raises:
    ValueError: For another divergence.

  >>> sorted(objective().needs)
  ['advantages', 'logp', 'old_logp']
  """
  if divergence not in _DIVERGENCES:
    raise ValueError(f"divergence must be 'tv' or 'kl', got {divergence!r}")
  surrogate, bound = _DIVERGENCES[divergence]
  bounded = surrogate(low=bound if low is None else low, high=bound if high is None else high, cap=cap)
  return policy_gradient(ratios.token(), bounded, aggregation.token_mean())
