"""Rotary position embeddings and the ways in which models stretch them to longer contexts.

The frequencies are NumPy constants of a configuration; only the rotation itself runs on the device.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rl_jax.errors import reason


class Frequencies(NamedTuple):
  """Angular speeds, one a pair of channels, and the factor that cos and sin are multiplied by."""

  inverse: np.ndarray  # [head_dim / 2], radians a position
  scale: float


DEFAULT: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}


def frequencies(parameters: Mapping[str, Any] | None, head_dim: int) -> Frequencies:
  """Returns the frequencies of a `transformers` configuration's `rope_parameters`.

  "dynamic" and "longrope" change with the length of a sequence, so that keys which were cached would have to be rotated
  again: they are those of sequences up to the length that the model was first trained for (`longest`).

  Args:
    parameters: `rope_theta`, `rope_type` and what that type needs, and `partial_rotary_factor`, the share of channels
      that are rotated, the first ones; None rotates nothing.
    head_dim: Channels a head, even.

  Raises:
    ValueError: For a type other than default, linear, dynamic, llama3, yarn and longrope, or a missing parameter.

  References: J. Su et al., "RoFormer", arXiv:2104.09864; S. Chen et al., "Position Interpolation" (linear),
  arXiv:2306.15595; B. Peng et al., "YaRN", arXiv:2309.00071; "The Llama 3 Herd of Models", arXiv:2407.21783; Y. Ding
  et al., "LongRoPE", arXiv:2402.13753.

  >>> frequencies({"rope_type": "default", "rope_theta": 10000.0}, 4).inverse
  array([1.  , 0.01])
  """
  if parameters is None:
    return Frequencies(np.zeros(head_dim // 2), 1.0)
  kind = parameters.get("rope_type", "default")
  stretch = STRETCHES.get(kind)
  if stretch is None:
    raise ValueError(f"rope_type must be one of {', '.join(STRETCHES)}; got {kind!r}")
  rotated = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
  if not 2 <= rotated <= head_dim or rotated % 2:
    raise ValueError(f"partial_rotary_factor must leave an even number of {head_dim} channels, got {rotated}")
  for name, default in (("factor", 1.0), ("rope_theta", 1.0), ("original_max_position_embeddings", 1)):
    number = parameters.get(name, default)
    if isinstance(number, bool) or (isinstance(number, int | float) and not 0 < number < math.inf):
      raise ValueError(f"{name} of rope_parameters must be positive and finite, got {number}")
  try:
    return stretch(parameters, parameters["rope_theta"] ** (-np.arange(0, rotated, 2) / rotated))
  except KeyError as missing:
    raise ValueError(f"rope_parameters of type {kind!r} lack {missing}") from None
  except TypeError as error:
    shown = ", ".join(f"{name} {value!r}" for name, value in parameters.items())
    raise ValueError(f"rope_parameters hold what is no number: {shown[:200]} ({reason(error)})") from None


def longest(parameters: Mapping[str, Any] | None) -> int | None:
  """Returns the number of tokens up to which `frequencies` are those of the model; None where any number is right.

  >>> longest({"rope_type": "longrope", "original_max_position_embeddings": 4096}), longest(DEFAULT)
  (4096, None)
  """
  stretched = parameters is not None and parameters.get("rope_type") in ("longrope", "dynamic")
  return parameters.get("original_max_position_embeddings") if parameters is not None and stretched else None


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


def _longrope(parameters: Mapping[str, Any], inverse: np.ndarray) -> Frequencies:
  """Each channel has a factor of its own, and attention a temperature."""
  short = np.asarray(parameters["short_factor"], float)
  if short.shape != inverse.shape:
    raise ValueError(f"short_factor must have {inverse.size} numbers, got {short.size}")
  scale, factor = parameters.get("attention_factor"), parameters["factor"]
  if scale is None:
    context = parameters["original_max_position_embeddings"]
    scale = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0
  return Frequencies(inverse / short, scale)


def _yarn_scale(parameters: Mapping[str, Any]) -> float:
  if parameters.get("attention_factor") is not None:
    return parameters["attention_factor"]

  def magnitude(weight: float) -> float:
    return 1 + 0.1 * weight * math.log(parameters["factor"]) if parameters["factor"] > 1 else 1.0

  if parameters.get("mscale") and parameters.get("mscale_all_dim"):
    return magnitude(parameters["mscale"]) / magnitude(parameters["mscale_all_dim"])
  return magnitude(1.0)


STRETCHES = {
  "default": _default,
  "linear": _linear,
  "dynamic": _default,
  "llama3": _llama3,
  "yarn": _yarn,
  "longrope": _longrope,
}


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
  """Rotates channel i with channel `i + n / 2` of the n that have angles (the half-split layout of Hugging Face
  checkpoints); further ones stay.

  >>> quarter_turn = jnp.zeros((1, 1)), jnp.ones((1, 1))
  >>> print(rotate(jnp.array([[[3.0, 4.0]]]), *quarter_turn))
  [[[-4.  3.]]]
  """
  half = cos.shape[-1]
  first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
  cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
