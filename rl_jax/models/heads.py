"""A value head on a policy's hidden states: actor and critic with one trunk."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.models.transformer import KVCache, Output, Policy


class ScalarHead(nn.Module):
  """One number a hidden state, `w h + b`, in float32. It starts as 0 everywhere."""

  @nn.compact
  def __call__(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
    wide = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    return nn.Dense(1, kernel_init=nn.initializers.zeros, name="out")(wide)[..., 0]


@dataclasses.dataclass(frozen=True)
class ActorCritic:
  """A policy with a value head, whose parameters are `{"policy": ..., "value_head": ...}`.

  Attributes:
    init: `key -> params`.
    apply: As a policy's, on all parameters.
    unembed: `params -> [D, V]`.
    empty_cache: `(batch shape, size) -> KVCache` with no real slots.
    value: `(params, hidden [..., D]) -> [...]`, the value of the state that a hidden state describes.
  """

  init: Callable[[Array], Any]
  apply: Callable[..., Output]
  unembed: Callable[[Any], Array]
  empty_cache: Callable[[tuple[int, ...], int], KVCache]
  value: Callable[[Any, Array], Array]


def with_value_head(policy: Policy, embed_dim: int) -> ActorCritic:
  """Returns the policy with a value head on its hidden states `[..., embed_dim]`.

  >>> from rl_jax.models import presets
  >>> model = presets.load("tiny")
  >>> both = with_value_head(model.policy, model.config.embed_dim)
  >>> params = both.init(jax.random.key(0))
  >>> hidden = both.apply(params, jnp.array([[1, 2, 3]]), jnp.array([[0, 1, 2]])).hidden
  >>> print(both.value(params, hidden))
  [[0. 0. 0.]]
  """
  head = ScalarHead()

  def init(key: Array) -> Any:
    policy_key, head_key = jax.random.split(key)
    return {"policy": policy.init(policy_key), "value_head": head.init(head_key, jnp.zeros((1, embed_dim)))["params"]}

  def apply(params: Any, *args: Any, **kwargs: Any) -> Output:
    return policy.apply(params["policy"], *args, **kwargs)

  def value(params: Any, hidden: Array) -> Array:
    return jnp.asarray(head.apply({"params": params["value_head"]}, hidden))

  return ActorCritic(init, apply, lambda params: policy.unembed(params["policy"]), policy.empty_cache, value)
