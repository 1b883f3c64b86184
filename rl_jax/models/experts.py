"""A mixture of experts in place of a layer's MLP: each token goes to a few of many, whose outputs are weighed.

Tokens are sorted by the expert that they go to, so that one grouped product (`jax.lax.ragged_dot`) serves all experts:
nothing is dropped, and no expert has a capacity.

References: N. Shazeer et al., "Outrageously Large Neural Networks", arXiv:1701.06538; T. Gale et al., "MegaBlocks",
arXiv:2211.15841.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
  """How many experts a layer has, and how tokens are given to them."""

  count: int  # experts of a layer
  per_token: int  # experts that each token goes to, the likeliest ones
  bias: bool = False  # of the router and of every matrix
  normalized: bool = True  # a token's weights add up to 1; else they are its experts' shares of all experts

  def __post_init__(self):
    if not 1 <= self.per_token <= self.count:
      raise ValueError(f"per_token must be between 1 and {self.count} experts, got {self.per_token}")


def route(logits: Float[Array, "N E"], config: ExpertsConfig) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
  """Returns the weights and numbers of each token's experts, from the router's logits; weights are in float32.

  >>> weights, numbers = route(jnp.log(jnp.array([[1.0, 6.0, 2.0]])), ExpertsConfig(count=3, per_token=2))
  >>> print(weights.round(2), numbers)
  [[0.75 0.25]] [[1 2]]
  """
  shares = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
  weights, numbers = jax.lax.top_k(shares, config.per_token)
  if config.normalized:
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
  return weights, numbers


class Grouped(nn.Module):
  """A matrix `[in, out]` an expert, for rows that are sorted by their expert."""

  experts: ExpertsConfig
  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "M D"], expert: Int[Array, " M"], sizes: Int[Array, " E"]) -> Float[Array, "M F"]:
    shape = (self.experts.count, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(batch_axis=0), shape)
    y = jax.lax.ragged_dot(x.astype(self.dtype), kernel.astype(self.dtype), sizes)
    if not self.experts.bias:
      return y
    bias = self.param("bias", nn.initializers.zeros, (self.experts.count, self.features))
    return y + bias.astype(self.dtype)[expert]


class Experts(nn.Module):
  """The weighed sum of the outputs of each token's experts, which are gated MLPs."""

  config: ExpertsConfig
  mlp_dim: int
  gated: Callable[[Array, Array], Array]  # (gate, up) -> their product
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    c = self.config
    weights, numbers = route(nn.Dense(c.count, use_bias=c.bias, dtype=self.dtype, name="router")(x), c)
    order = jnp.argsort(numbers.reshape(-1), stable=True)
    expert = numbers.reshape(-1)[order]
    sizes = jnp.bincount(expert, length=c.count)
    rows = x[order // c.per_token]
    gate = Grouped(c, self.mlp_dim, self.dtype, name="gate")(rows, expert, sizes)
    up = Grouped(c, self.mlp_dim, self.dtype, name="up")(rows, expert, sizes)
    out = Grouped(c, x.shape[-1], self.dtype, name="down")(self.gated(gate, up), expert, sizes)
    out = jnp.zeros_like(out).at[order].set(out, unique_indices=True)
    return jnp.einsum("nk,nkd->nd", weights.astype(out.dtype), out.reshape(*numbers.shape, -1))
