"""Scalar heads: actor and critic with one trunk, and models of their own that give a number (rewards, critics)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.models.transformer import Output, Policy


class ScalarHead(nn.Module):
  """One number a hidden state, `w h + b`, in float32. It starts as 0 everywhere."""

  bias: bool = True

  @nn.compact
  def __call__(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
    wide = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    return nn.Dense(1, use_bias=self.bias, kernel_init=nn.initializers.zeros, name="out")(wide)[..., 0]


def init_head(key: Array, embed_dim: int, *, bias: bool = True) -> Any:
  """Returns the parameters of a scalar head on hidden states `[..., embed_dim]`, for a backbone that is there already.

  Reward models have no bias, as those of Hugging Face: scores are compared.

  >>> jax.tree.map(jnp.shape, init_head(jax.random.key(0), 4))
  {'out': {'bias': (1,), 'kernel': (4, 1)}}
  """
  return ScalarHead(bias).init(key, jnp.zeros((1, embed_dim)))["params"]


def with_value_head(policy: Policy, embed_dim: int) -> Policy:
  """Returns the policy with a value head on its hidden states; its parameters are `{"policy": ..., "value_head": ...}`.

  >>> from rl_jax.models import presets
  >>> model = presets.load("tiny")
  >>> both = with_value_head(model.policy, model.config.embed_dim)
  >>> params = both.init(jax.random.key(0))
  >>> hidden = both.apply(params, jnp.array([[1, 2, 3]]), jnp.array([[0, 1, 2]])).hidden
  >>> print(both.value(params, hidden))
  [[0. 0. 0.]]
  """
  return _with_head(policy, embed_dim, "policy", "value_head")


def scalar_model(backbone: Policy, embed_dim: int) -> Policy:
  """Returns a model that gives a number for each hidden state: a reward model, or a critic of its own.

  Its parameters are `{"backbone": ..., "head": ...}`. A critic may thus start from a reward model, and either from a
  policy: `{"backbone": policy params, "head": init_head(...)}`.

  >>> from rl_jax.models import presets
  >>> model = presets.load("tiny")
  >>> reward = scalar_model(model.policy, model.config.embed_dim)
  >>> params = {"backbone": model.params, "head": init_head(jax.random.key(0), model.config.embed_dim)}
  >>> print(reward.value(params, reward.apply(params, jnp.array([[1, 2]]), jnp.array([[0, 1]])).hidden))
  [[0. 0.]]
  """
  return _with_head(backbone, embed_dim, "backbone", "head")


def scalar(head: Any, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
  """Returns the number that a head with these parameters gives for each hidden state.

  >>> print(scalar({"out": {"kernel": jnp.array([[2.0], [1.0]])}}, jnp.array([[1.0, 3.0]])))
  [5.]
  """
  return jnp.asarray(ScalarHead("bias" in head["out"]).apply({"params": head}, hidden))


def _with_head(trunk: Policy, embed_dim: int, trunk_name: str, head_name: str) -> Policy:
  def init(key: Array) -> Any:
    trunk_key, head_key = jax.random.split(key)
    return {trunk_name: trunk.init(trunk_key), head_name: init_head(head_key, embed_dim)}

  def apply(params: Any, *args: Any, **kwargs: Any) -> Output:
    return trunk.apply(params[trunk_name], *args, **kwargs)

  def value(params: Any, hidden: Array) -> Array:
    return scalar(params[head_name], hidden)

  return Policy(init, apply, lambda params: trunk.unembed(params[trunk_name]), trunk.empty_cache, value, trunk.softcap)
