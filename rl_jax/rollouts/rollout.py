"""Completions, or episodes of an environment, as they were sampled."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Shaped


class Rollout(NamedTuple):
  """G completions of each of P prompts, or G episodes from each of P starts; arrays only.

  Attributes:
    sequences: What was sampled, `Sequences` or `Episodes`; `.real` are its tokens or steps.
    mask: `[P, G, T]`, 1 where the policy chose the token and it is trained on, if its completion has a reward.
    behavior_logp: `[P, G, T]`, log-probs of the distribution that was sampled from.
    full_logp: `[P, G, T]`, those of the untruncated distribution at the same temperature.
    terminated: `[P, G]`, whether a stop token or the environment ended it; one that did not was truncated.
  """

  sequences: Any
  mask: Shaped[Array, "P G T"]
  behavior_logp: Float[Array, "P G T"]
  full_logp: Float[Array, "P G T"]
  terminated: Shaped[Array, "P G"]
