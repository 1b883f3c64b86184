"""Completions as they were sampled."""

from typing import NamedTuple

from jaxtyping import Array, Float, Shaped

from rl_jax.state import Sequences


class Rollout(NamedTuple):
  """G completions of each of P prompts, arrays only.

  Attributes:
    sequences: Prompts and completions with their masks of real tokens.
    mask: `[P, G, T]`, 1 where the policy chose the token and it is trained on, if its completion has a reward.
    behavior_logp: `[P, G, T]`, log-probs of the distribution that was sampled from.
    full_logp: `[P, G, T]`, those of the untruncated distribution at the same temperature.
    terminated: `[P, G]`, whether a stop token ended the completion; one that did not was truncated.
  """

  sequences: Sequences
  mask: Shaped[Array, "P G T"]
  behavior_logp: Float[Array, "P G T"]
  full_logp: Float[Array, "P G T"]
  terminated: Shaped[Array, "P G"]
