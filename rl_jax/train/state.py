"""Everything a run is made of, as explicit pytrees: what is not here is not needed to resume exactly."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from rl_jax.ops.moments import Moments


class TrainState(NamedTuple):
  """Parameters with their optimiser state and the number of updates tried."""

  params: Any
  opt_state: Any
  step: Int[Array, ""]

  @classmethod
  def create(cls, params: Any, tx: optax.GradientTransformation, *, frozen: Sequence[str] = ()) -> "TrainState":
    return cls(params, tx.init(split(params, frozen)[0]), jnp.zeros((), jnp.int32))


def split(params: Any, frozen: Sequence[str]) -> tuple[Any, dict[str, Any]]:
  """Returns what is trained and what is not, the entries of a dict of parameters that `frozen` names.

  >>> split({"base": 1, "adapters": 2}, ["base"])
  ({'adapters': 2}, {'base': 1})
  """
  if not frozen:
    return params, {}
  if missing := sorted(set(frozen) - set(params)):
    raise ValueError(f"frozen names {missing[0]!r}, which the parameters lack; they have {', '.join(sorted(params))}")
  return {k: v for k, v in params.items() if k not in frozen}, {k: params[k] for k in frozen}


def join(trained: Any, constant: dict[str, Any]) -> Any:
  """Undoes `split`.

  >>> join({"adapters": 2}, {"base": 1})
  {'adapters': 2, 'base': 1}
  """
  return {**trained, **constant} if constant else trained


class Keys(NamedTuple):
  """The random streams of a run, each folded out of the run's key by its place here.

  Attributes:
    sample: Tokens; folded with the position in the data.
    order: Minibatches; folded with the number of the rollout.
    noise: Uniform numbers for objectives that pick tokens at random; folded with the position in the data.
    problems: Problems of on-device tasks; folded with the position in the data.
    adapters: Initial adapters.

  >>> keys = Keys.of(jax.random.key(0))
  >>> len({tuple(jax.random.key_data(stream).tolist()) for stream in keys})
  5
  """

  sample: Array
  order: Array
  noise: Array
  problems: Array
  adapters: Array

  @classmethod
  def of(cls, key: Array) -> "Keys":
    return cls(*(jax.random.fold_in(key, place) for place in range(len(cls._fields))))


class RLState(NamedTuple):
  """All that a resume needs.

  Attributes:
    policy: The learner; with a critic, the parameters of both.
    ref_params: The frozen reference's parameters; None where no objective needs them, or the learner holds them.
    key: The PRNG key of the whole run, constant; `keys` are the streams that are drawn from it.
    position: Rows drawn from the task so far.
    rollouts: Finished.
    kl_coef: Weight of the KL in the reward, which a controller may change; None where there is none.
    reward_moments: Of all rewards so far; None where rewards are not normalised by them.
  """

  policy: TrainState
  ref_params: Any
  key: Array
  position: Int[Array, ""]
  rollouts: Int[Array, ""]
  kl_coef: Float[Array, ""] | None = None
  reward_moments: Moments | None = None

  def keys(self) -> Keys:
    """Returns the run's random streams."""
    return Keys.of(self.key)

  @classmethod
  def create(
    cls,
    params: Any,
    tx: optax.GradientTransformation,
    key: Array,
    *,
    keep_reference: bool,
    reference: Callable[[Any], Any] = lambda params: params,
    frozen: Sequence[str] = (),
    kl_coef: float | None = None,
    reward_moments: Moments | None = None,
  ) -> "RLState":
    """Returns a new run's state.

    Args:
      params: Of all that is trained together, and of what the steps read besides.
      tx: The optimiser.
      key: Of the whole run.
      keep_reference: Whether a copy of the initial policy is kept.
      reference: `params -> policy params`, where there is more than the policy.
      frozen: Entries of `params` that are not trained.
      kl_coef: Of the KL in the reward, to begin with.
      reward_moments: `Moments.zero()` where rewards are to be normalised.
    """
    # A copy: the update step donates the policy's buffers, and with them anything that shares them.
    ref_params = jax.tree.map(jnp.copy, reference(params)) if keep_reference else None
    coef = None if kl_coef is None else jnp.asarray(kl_coef, jnp.float32)
    policy, zero = TrainState.create(params, tx, frozen=frozen), jnp.zeros((), jnp.int32)
    return cls(policy, ref_params, key, zero, jnp.copy(zero), coef, reward_moments)
