"""Scalar heads: actor and critic with one trunk, and models of their own that give a number (rewards, critics)."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

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


@dataclasses.dataclass(frozen=True)
class ScalarModel:
  """A backbone with a scalar head, whose parameters are `{"backbone": ..., "head": ...}`: a reward model, or a critic.

  A critic may thus start from a reward model, and either from a policy: `{"backbone": policy params, "head": ...}`.

  Attributes:
    init: `key -> params`.
    init_head: `key -> params["head"]`, for a backbone that is there already.
    apply: As a policy's, on all parameters.
    value: `(params, hidden [..., D]) -> [...]`.
  """

  init: Callable[[Array], Any]
  init_head: Callable[[Array], Any]
  apply: Callable[..., Output]
  value: Callable[[Any, Array], Array]


def scalar_model(backbone: Policy, embed_dim: int) -> ScalarModel:
  """Returns a model that reads as `backbone` does and gives a number for each hidden state `[..., embed_dim]`.

  >>> from rl_jax.models import presets
  >>> model = presets.load("tiny")
  >>> reward = scalar_model(model.policy, model.config.embed_dim)
  >>> params = {"backbone": model.params, "head": reward.init_head(jax.random.key(0))}
  >>> print(reward.value(params, reward.apply(params, jnp.array([[1, 2]]), jnp.array([[0, 1]])).hidden))
  [[0. 0.]]
  """
  head = ScalarHead()

  def init_head(key: Array) -> Any:
    return head.init(key, jnp.zeros((1, embed_dim)))["params"]

  def init(key: Array) -> Any:
    backbone_key, head_key = jax.random.split(key)
    return {"backbone": backbone.init(backbone_key), "head": init_head(head_key)}

  def apply(params: Any, *args: Any, **kwargs: Any) -> Output:
    return backbone.apply(params["backbone"], *args, **kwargs)

  def value(params: Any, hidden: Array) -> Array:
    return jnp.asarray(head.apply({"params": params["head"]}, hidden))

  return ScalarModel(init, init_head, apply, value)


def save_head(folder: str | os.PathLike, head: Any) -> None:
  """Writes a scalar head's parameters to `head.safetensors`, beside a backbone's folder of weights."""
  save_file({name: np.asarray(leaf) for name, leaf in head["out"].items()}, Path(folder) / "head.safetensors")


def fingerprint(folder: str | os.PathLike) -> str:
  """Returns the SHA-256 of a folder's head, which tells one training of a reward model from another; "" without one."""
  path = Path(folder) / "head.safetensors"
  return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def load_head(folder: str | os.PathLike, embed_dim: int) -> Any:
  """Reads what `save_head` wrote.

  Raises:
    ValueError: If the file is missing or damaged, or of another width.

  >>> import tempfile
  >>> head = ScalarHead().init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save_head(folder, head)
  ...   load_head(folder, 4)["out"]["kernel"].shape
  (4, 1)
  """
  path = Path(folder) / "head.safetensors"
  try:
    tensors = load_file(path)
  except (OSError, SafetensorError) as error:
    raise ValueError(f"{str(path)!r} is no readable scalar head: is this a reward model's folder? ({error})") from None
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  if shapes != {"kernel": (embed_dim, 1), "bias": (1,)}:
    raise ValueError(f"{str(path)!r} holds {shapes}, not the head of a model of width {embed_dim}")
  return {"out": {name: jnp.asarray(tensor) for name, tensor in tensors.items()}}
