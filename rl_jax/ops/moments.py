"""Running mean and variance of a stream of numbers or vectors, as a pytree that belongs in the checkpoint."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.ops.masking import as_bool, masked_sum


class Moments(NamedTuple):
  """Count, mean, and sum of squared deviations from the mean, of all that was seen; one a feature of vectors."""

  count: Float[Array, ""]
  mean: Float[Array, "*features"]
  squares: Float[Array, "*features"]

  @classmethod
  def zero(cls, features: tuple[int, ...] = ()) -> "Moments":
    return cls(jnp.zeros((), jnp.float32), *(jnp.zeros(features, jnp.float32) for _ in range(2)))

  @property
  def std(self) -> Float[Array, "*features"]:
    """The population's standard deviation; 1 before two numbers were seen."""
    return jnp.where(self.count > 1, jnp.sqrt(self.squares / jnp.maximum(self.count, 1)), 1)


def update(moments: Moments, x: Float[Array, "..."], mask: Array) -> Moments:
  """Adds a batch, `M <- M + M_b + (m_b - m)^2 n n_b / (n + n_b)`.

  Args:
    moments: The moments so far.
    x: `[*batch, *features]`, new numbers or vectors.
    mask: `[*batch]`, which of them exist.

  Reference: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
  Variances", Stanford CS-79-773.

  >>> moments = update(Moments.zero(), jnp.array([1.0, 3.0]), jnp.ones(2))
  >>> float(moments.mean), float(moments.std)
  (2.0, 1.0)
  >>> print(update(Moments.zero((2,)), jnp.array([[1.0, 5.0], [3.0, 5.0]]), jnp.ones(2)).mean)
  [2. 5.]
  """
  mask, batch = as_bool(mask), tuple(range(mask.ndim))
  count = jnp.sum(mask, dtype=jnp.float32)
  mask = jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * moments.mean.ndim), x.shape)
  # From the largest one on: the mean of equal numbers is then that number, and not one beside it.
  highest = jnp.where(count > 0, jnp.max(jnp.where(mask, x, -jnp.inf), axis=batch), 0)
  mean = highest + masked_sum(x - jnp.broadcast_to(highest, x.shape), mask, axis=batch) / jnp.maximum(count, 1)
  squares = masked_sum(jnp.square(x - jnp.broadcast_to(mean, x.shape)), mask, axis=batch)
  total = moments.count + count
  gap = mean - moments.mean
  share = count / jnp.maximum(total, 1)
  return Moments(total, moments.mean + gap * share, moments.squares + squares + jnp.square(gap) * moments.count * share)
