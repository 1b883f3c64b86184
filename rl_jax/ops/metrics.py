"""Metrics that can be combined in any order: sums and counts on the device, one division on the host.

A mean of micro-batch means is wrong when the micro-batches hold different numbers of tokens. These are monoids:
stack them over micro-batches or devices, `reduce` over the stacked axis, and read `result` at the very end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rl_jax.ops.masking import as_bool, masked_count, masked_sum, upcast


class Mean(NamedTuple):
  """A mean of selected values, held as its numerator and denominator; NaN when nothing is selected.

  >>> Mean.of(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])).result()
  2.0
  >>> Mean.of(jnp.array([1.0]), jnp.array([0])).result()
  nan
  """

  total: Float[Array, "*stack"]
  count: Float[Array, "*stack"]

  @classmethod
  def of(cls, values: Array, mask: Array) -> "Mean":
    values = jax.lax.stop_gradient(values)
    return cls(masked_sum(values, mask), masked_count(mask))

  @property
  def value(self) -> Float[Array, "*stack"]:
    return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1), jnp.nan)

  def reduce(self) -> "Mean":
    return Mean(self.total.sum(0), self.count.sum(0))

  def result(self) -> float:
    return float(np.asarray(self.value))


class Max(NamedTuple):
  """The largest selected value; -inf when nothing is selected.

  >>> Max.of(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])).result()
  3.0
  """

  value: Float[Array, "*stack"]

  @classmethod
  def of(cls, values: Array, mask: Array) -> "Max":
    return cls(jnp.max(jnp.where(as_bool(mask), upcast(jax.lax.stop_gradient(values)), -jnp.inf)))

  def reduce(self) -> "Max":
    return Max(self.value.max(0))

  def result(self) -> float:
    return float(self.value)


class Min(NamedTuple):
  """The smallest selected value; inf when nothing is selected.

  >>> Min.of(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])).result()
  1.0
  """

  value: Float[Array, "*stack"]

  @classmethod
  def of(cls, values: Array, mask: Array) -> "Min":
    return cls(jnp.min(jnp.where(as_bool(mask), upcast(jax.lax.stop_gradient(values)), jnp.inf)))

  def reduce(self) -> "Min":
    return Min(self.value.min(0))

  def result(self) -> float:
    return float(self.value)


class EffectiveSize(NamedTuple):
  """The effective sample size `mean(w)^2 / mean(w^2)` of importance weights, in (0, 1]; 1 when nothing is selected.

  >>> f"{EffectiveSize.of(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])).result():.2f}"
  '0.80'
  """

  total: Float[Array, "*stack"]
  squares: Float[Array, "*stack"]
  count: Float[Array, "*stack"]

  @classmethod
  def of(cls, weights: Array, mask: Array) -> "EffectiveSize":
    weights = upcast(jax.lax.stop_gradient(weights))
    return cls(masked_sum(weights, mask), masked_sum(jnp.square(weights), mask), masked_count(mask))

  @property
  def value(self) -> Float[Array, "*stack"]:
    whole = self.count * self.squares
    return jnp.where(whole > 0, jnp.square(self.total) / jnp.where(whole > 0, whole, 1), 1)

  def reduce(self) -> "EffectiveSize":
    return EffectiveSize(self.total.sum(0), self.squares.sum(0), self.count.sum(0))

  def result(self) -> float:
    return float(np.asarray(self.value))


Metric = Mean | Max | Min | EffectiveSize
Metrics = dict[str, Metric]


def reduce(metrics: Metrics) -> Metrics:
  """Combines metrics stacked on their leading axis (micro-batches, devices, steps).

  >>> stacked = {"x": Mean(jnp.array([1.0, 5.0]), jnp.array([1.0, 2.0]))}
  >>> results(reduce(stacked))
  {'x': 2.0}
  """
  return {name: metric.reduce() for name, metric in metrics.items()}


def merge(one: Metrics, other: Metrics) -> Metrics:
  """Puts metrics together; those of one name are combined, as if they had been measured at one time.

  >>> parts = {"x": Mean(jnp.array(1.0), jnp.array(1.0))}, {"x": Mean(jnp.array(5.0), jnp.array(2.0))}
  >>> results(merge(*parts))
  {'x': 2.0}
  """
  both = {name: jax.tree.map(lambda a, b: jnp.stack([a, b]), one[name], other[name]) for name in one if name in other}
  return one | other | reduce(both)


def values(metrics: Metrics) -> dict[str, Array]:
  """Divides, on the device: what `results` gives, as arrays, inside a compiled program.

  >>> print(values({"x": Mean(jnp.array(6.0), jnp.array(4.0))})["x"])
  1.5
  """
  return {name: metric.value for name, metric in metrics.items()}


def results(metrics: Metrics) -> dict[str, float]:
  """Divides, on the host, and returns plain floats (this waits for the device).

  >>> results({"x": Max(jnp.array(3.0))})
  {'x': 3.0}
  """
  return {name: metric.result() for name, metric in jax.device_get(metrics).items()}
