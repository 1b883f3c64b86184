"""Distributions of actions: drawing, log-probs, entropies and KLs in closed form, as pytrees of their parameters."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rl_jax.ops import kl as kl_lib
from rl_jax.ops import log_probs


class Gaussian(NamedTuple):
  """Independent normal distributions of the A numbers of an action.

  An environment clips actions that are out of its range; the log-prob is that of the action as it was drawn, so that
  the entropy has a closed form and no density is piled up at the edge.

  Attributes:
    mean: `[..., A]`.
    log_std: `[..., A]`.
  """

  mean: Float[Array, "*batch A"]
  log_std: Float[Array, "*batch A"]

  def sample(self, key: Array) -> Float[Array, "*batch A"]:
    return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

  def mode(self) -> Float[Array, "*batch A"]:
    return self.mean

  def log_prob(self, actions: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
    """Returns `-1/2 sum_i ((a_i - m_i) / s_i)^2 + 2 log s_i + log 2 pi`, in nats.

    >>> round(float(Gaussian(jnp.zeros(1), jnp.zeros(1)).log_prob(jnp.ones(1))), 4)
    -1.4189
    """
    distance = (actions - self.mean) * jnp.exp(-self.log_std)
    return jnp.sum(-0.5 * jnp.square(distance) - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

  def entropy(self) -> Float[Array, "*batch"]:
    """Returns `sum_i log s_i + 1/2 log(2 pi e)`, in nats.

    >>> round(float(Gaussian(jnp.zeros(2), jnp.zeros(2)).entropy()), 4)
    2.8379
    """
    return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

  def kl(self, other: "Gaussian") -> Float[Array, "*batch"]:
    """Returns `KL(self, other) = sum_i log(s'_i / s_i) + (s_i^2 + (m_i - m'_i)^2) / (2 s'_i^2) - 1/2`, in nats.

    >>> float(Gaussian(jnp.ones(1), jnp.zeros(1)).kl(Gaussian(jnp.zeros(1), jnp.zeros(1))))
    0.5
    """
    ratio = jnp.exp(2 * (self.log_std - other.log_std))
    distance = jnp.square((self.mean - other.mean) * jnp.exp(-other.log_std))
    return jnp.sum(0.5 * (ratio + distance - 1) + other.log_std - self.log_std, axis=-1)


class Categorical(NamedTuple):
  """One of N actions.

  Attributes:
    logits: `[..., N]`.
  """

  logits: Float[Array, "*batch N"]

  def sample(self, key: Array) -> Int[Array, "*batch"]:
    return jax.random.categorical(key, self.logits)

  def mode(self) -> Int[Array, "*batch"]:
    return jnp.argmax(self.logits, axis=-1)

  def log_prob(self, actions: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Returns `log softmax(logits)[a]`, in nats.

    >>> print(Categorical(jnp.zeros((1, 4))).log_prob(jnp.array([2])).round(4))
    [-1.3863]
    """
    return log_probs.gather_log_probs(self.logits, actions)

  def entropy(self) -> Float[Array, "*batch"]:
    """Returns `-sum_a p_a log p_a`, in nats.

    >>> round(float(Categorical(jnp.zeros(4)).entropy()), 4)
    1.3863
    """
    return log_probs.entropy(self.logits)

  def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
    """Returns `KL(self, other) = sum_a p_a log(p_a / p'_a)`, in nats.

    >>> round(float(Categorical(jnp.zeros(2)).kl(Categorical(jnp.log(jnp.array([0.25, 0.75]))))), 4)
    0.1438
    """
    return kl_lib.categorical(self.logits, other.logits)


Distribution = Gaussian | Categorical
