"""Everything a run is made of, as explicit pytrees: what is not here is not needed to resume exactly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


class TrainState(NamedTuple):
  """Parameters with their optimiser state and the number of updates tried."""

  params: Any
  opt_state: Any
  step: Int[Array, ""]

  @classmethod
  def create(cls, params: Any, tx: optax.GradientTransformation) -> "TrainState":
    return cls(params, tx.init(params), jnp.zeros((), jnp.int32))


class RLState(NamedTuple):
  """All that a resume needs.

  Attributes:
    policy: The learner.
    ref_params: The frozen reference's parameters; None where no objective needs them.
    key: The PRNG key of the whole run, constant. Of its two halves, sampling folds its position in the data into the
      first, the order of minibatches the number of the rollout into the second.
    position: Rows drawn from the task so far.
  """

  policy: TrainState
  ref_params: Any
  key: Array
  position: Int[Array, ""]

  @classmethod
  def create(cls, params: Any, tx: optax.GradientTransformation, key: Array, *, keep_reference: bool) -> "RLState":
    # A copy: the update step donates the policy's buffers, and with them anything that shares them.
    ref_params = jax.tree.map(jnp.copy, params) if keep_reference else None
    return cls(TrainState.create(params, tx), ref_params, key, jnp.zeros((), jnp.int32))
