"""Rotary position embeddings and the ways in which models stretch them to longer contexts.

The frequencies are NumPy constants of a configuration; only the rotation itself runs on the device.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Frequencies(NamedTuple):
  """Angular speeds, one a pair of channels, and the factor that cos and sin are multiplied by."""

  inverse: np.ndarray  # [head_dim / 2], radians a position
  scale: float


def frequencies(parameters: Mapping[str, Any], head_dim: int) -> Frequencies:
  """Returns the frequencies of a `transformers` configuration's `rope_parameters`.

  Args:
    parameters: `rope_theta`, `rope_type` and what that type needs.
    head_dim: Channels a head, even.

  Raises:
    ValueError: For a type other than default, linear, llama3 and yarn, or a missing parameter. "dynamic" and
      "longrope" depend on the length of each sequence, so keys cached earlier would have to be rotated again.

  References: J. Su et al., "RoFormer", arXiv:2104.09864; S. Chen et al., "Position Interpolation" (linear),
  arXiv:2306.15595; B. Peng et al., "YaRN", arXiv:2309.00071; "The Llama 3 Herd of Models", arXiv:2407.21783.

  >>> frequencies({"rope_type": "default", "rope_theta": 10000.0}, 4).inverse
  array([1.  , 0.01])
  """
  kind = parameters.get("rope_type", "default")
  stretch = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}.get(kind)
  if stretch is None:
    raise ValueError(f"rope_type must be one of default, linear, llama3, yarn; got {kind!r}")
  partial = parameters.get("partial_rotary_factor", 1.0)
  if partial != 1.0:
    raise ValueError(f"partial_rotary_factor must be 1, got {partial}")
  try:
    return stretch(parameters, parameters["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim))
  except KeyError as missing:
    raise ValueError(f"rope_parameters of type {kind!r} lack {missing}") from None


def _default(parameters: Mapping[str, Any], inverse: np.ndarray) -> Frequencies:
  return Frequencies(inverse, 1.0)


def _linear(parameters: Mapping[str, Any], inverse: np.ndarray) -> Frequencies:
  return Frequencies(inverse / parameters["factor"], 1.0)


def _llama3(parameters: Mapping[str, Any], inverse: np.ndarray) -> Frequencies:
  """Divides slow channels by `factor`, leaves fast ones, and blends linearly in between."""
  turns = parameters["original_max_position_embeddings"] * inverse / (2 * math.pi)
  low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
  keep = np.clip((turns - low) / (high - low), 0, 1)
  return Frequencies(inverse * (keep + (1 - keep) / parameters["factor"]), 1.0)


def _yarn(parameters: Mapping[str, Any], inverse: np.ndarray) -> Frequencies:
  """As `_llama3` with a ramp over channel numbers instead of turns, and a temperature on the attention."""
  factor, context = parameters["factor"], parameters["original_max_position_embeddings"]
  half, base = inverse.size, parameters["rope_theta"]

  def channel(turns: float) -> float:
    return half * math.log(context / (turns * 2 * math.pi)) / math.log(base)

  low, high = channel(parameters.get("beta_fast") or 32), channel(parameters.get("beta_slow") or 1)
  if parameters.get("truncate", True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * half - 1)
  keep = 1 - np.clip((np.arange(half) - low) / max(high - low, 0.001), 0, 1)
  return Frequencies(inverse * (keep + (1 - keep) / factor), _yarn_scale(parameters))


def _yarn_scale(parameters: Mapping[str, Any]) -> float:
  if parameters.get("attention_factor") is not None:
    return parameters["attention_factor"]

  def magnitude(weight: float) -> float:
    return 1 + 0.1 * weight * math.log(parameters["factor"]) if parameters["factor"] > 1 else 1.0

  if parameters.get("mscale") and parameters.get("mscale_all_dim"):
    return magnitude(parameters["mscale"]) / magnitude(parameters["mscale_all_dim"])
  return magnitude(1.0)


def angles(positions: Int[Array, "*batch T"], frequency: Frequencies) -> tuple[Array, Array]:
  """Returns `(cos, sin)`, each `[..., T, head_dim / 2]` in float32.

  >>> cos, sin = angles(jnp.array([0, 1]), frequencies({"rope_theta": 10000.0}, 2))
  >>> print(cos[:, 0].round(3), sin[:, 0].round(3))
  [1.   0.54] [0.    0.841]
  """
  inverse = jnp.asarray(frequency.inverse, jnp.float32).reshape((1,) * positions.ndim + (-1,))
  turned = positions[..., None].astype(jnp.float32) * inverse
  return jnp.cos(turned) * frequency.scale, jnp.sin(turned) * frequency.scale


def rotate(x: Float[Array, "*batch T H C"], cos: Array, sin: Array) -> Float[Array, "*batch T H C"]:
  """Rotates channel i with channel `i + head_dim / 2` (the half-split layout of Hugging Face checkpoints).

  >>> quarter_turn = jnp.zeros((1, 1)), jnp.ones((1, 1))
  >>> print(rotate(jnp.array([[[3.0, 4.0]]]), *quarter_turn))
  [[[-4.  3.]]]
  """
  first, second = jnp.split(x, 2, axis=-1)
  cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
