"""What the models say of a rollout: old and reference log-probs, and values. No pass runs that nothing needs."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from rl_jax.rollouts.rollout import Rollout
from rl_jax.state import Forward, RLState, Values


class Outputs(NamedTuple):
  """One field a model; None where nothing needs it.

  Attributes:
    old_logp: `[P, G, T]`, the policy's log-probs at the start of its updates.
    ref_logp: `[P, G, T]`, the reference's.
    values: The critic's values.
  """

  old_logp: Float[Array, "P G T"]
  ref_logp: Float[Array, "P G T"] | None = None
  values: Values | None = None


RunModels = Callable[[RLState, Rollout], Outputs]


def make_outputs(
  needs: AbstractSet[str],
  *,
  reference: Callable[[RLState, Any], Array] | None = None,
  values: Callable[[Any, Any], Values] | None = None,
  recompute_old_logp: Forward | None = None,
) -> RunModels:
  """Returns `outputs(state, rollout) -> Outputs`.

  Args:
    needs: "ref_logp", "values" and "old_values" say which models run.
    reference: `(state, sequences) -> log-probs [P, G, T]`.
    values: A function from `make_values`, jitted. With `with_last` a truncated completion is worth the value of where
      it stopped; otherwise it counts as finished.
    recompute_old_logp: The learner's forward pass, jitted, where old log-probs come from a pass of their own; by
      default they are those that the sampler recorded, of the untruncated distribution.

  Raises:
    ValueError: If something is needed that nothing here gives.

  >>> from types import SimpleNamespace
  >>> state = SimpleNamespace(ref_params=3.0, policy=SimpleNamespace(params=2.0))
  >>> rollout = SimpleNamespace(sequences=1.0, full_logp=-2.1)
  >>> outputs = make_outputs({"ref_logp"}, reference=lambda state, sequences: -state.ref_params * sequences)
  >>> outputs(state, rollout)
  Outputs(old_logp=-2.1, ref_logp=-3.0, values=None)
  """
  with_reference, with_values = "ref_logp" in needs, bool({"values", "old_values"} & needs)
  if with_values and values is None:
    raise ValueError("the objective or its advantage needs values, which nothing gives: it wants a model with a critic")
  if with_reference and reference is None:
    raise ValueError("the objective or the reward needs a reference policy, which nothing gives")

  def outputs(state: RLState, rollout: Rollout) -> Outputs:
    sequences, params = rollout.sequences, state.policy.params
    old_logp: Any = rollout.full_logp if recompute_old_logp is None else recompute_old_logp(params, sequences).logp
    return Outputs(
      old_logp=old_logp,
      ref_logp=reference(state, sequences) if with_reference and reference is not None else None,
      values=values(params, sequences) if with_values and values is not None else None,
    )

  return outputs
