"""Low-rank adapters (LoRA), `x W + (alpha / rank) (x A) B`, with A and B trained alone.

A model with adapters is the dict `{"base": params, "adapters": ...}`, and `attach` makes parameters of it that
`models.transformer` takes like any other, so that sampling and forward passes know nothing of adapters:

    logp = lambda params, sequences: forward(attach(params["base"], params["adapters"]), sequences)

The product with the adapters is taken beside the one with the base, in float32: a small update that is added to
bfloat16 weights is lost. `merge` adds them up, in float32, to save a plain model.

Freeze "base" (`make_train_step(..., frozen=("base",))`), and the reference policy is `params["base"]` itself: no second
copy of the weights exists.

Reference: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rl_jax.errors import reason

# Our name of a layer's matrix, and the module that PEFT names.
MODULES = {
  "query": "self_attn.q_proj",
  "key": "self_attn.k_proj",
  "value": "self_attn.v_proj",
  "output": "self_attn.o_proj",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}


# What PEFT's settings may ask for and is not computed here.
UNSUPPORTED = (
  "use_dora",
  "use_rslora",
  "rank_pattern",
  "alpha_pattern",
  "alora_invocation_tokens",
  "lora_bias",
  "fan_in_fan_out",
  "layer_replication",
  "layers_to_transform",
  "modules_to_save",
  "target_parameters",
  "trainable_token_indices",
  "use_qalora",
  "use_bdlora",
  "arrow_config",
)
INITS = ("gaussian", "orthogonal", "eva")  # these leave the base as it is


def wide(x: Any) -> Any:
  """Returns the type that products of adapters are computed in: float32 at least.

  >>> wide(jnp.ones(1, jnp.bfloat16))
  dtype('float32')
  """
  return jnp.promote_types(x.dtype, jnp.float32)


class Adapter(NamedTuple):
  """The adapter of one matrix `[layers, in, out]`, of all layers."""

  a: Float[Array, "layers in rank"]
  b: Float[Array, "layers rank out"]


class Peft(NamedTuple):
  """What files in PEFT's format hold; `base_model` is the name or path of what the adapters belong to, or ""."""

  adapters: dict[str, Adapter]
  alpha: float
  base_model: str


def init(key: Array, params: Any, *, rank: int = 16, targets: Sequence[str] = tuple(MODULES)) -> dict[str, Adapter]:
  """Returns adapters that change nothing yet: A is uniform in `+-sqrt(1 / in)` (PEFT's), B is 0.

  Args:
    key: PRNG key of the initial A.
    params: Parameters of a `models.transformer`, whose layers are stacked.
    rank: Rank of `A B`.
    targets: Matrices that get an adapter: query, key, value, output, gate, up, down.

  Raises:
    ValueError: For a rank below 1, or an unknown target.

  >>> from rl_jax.models import presets
  >>> params = presets.load("tiny").params
  >>> adapters = init(jax.random.key(0), params, rank=2, targets=("query",))
  >>> adapters["query"].a.shape, adapters["query"].b.shape
  ((2, 64, 2), (2, 2, 64))
  """
  if rank < 1:
    raise ValueError(f"rank must be at least 1, got {rank}")
  if unknown := [target for target in targets if target not in MODULES]:
    raise ValueError(f"targets must be of {', '.join(MODULES)}, got {unknown[0]!r}")
  adapters = {}
  for name, target_key in zip(targets, jax.random.split(key, len(targets)), strict=True):
    layers, rows, columns = params["layers"][name]["kernel"].shape
    a = jax.random.uniform(target_key, (layers, rows, rank), minval=-1, maxval=1) / np.sqrt(rows)
    adapters[name] = Adapter(a, jnp.zeros((layers, rank, columns)))
  return adapters


def attach(base: Any, adapters: Mapping[str, Adapter], *, alpha: float = 32.0) -> Any:
  """Returns parameters that hold adapters beside every adapted W, as `models.transformer` takes them.

  Raises:
    ValueError: If an adapter is not of the shape of its matrix.

  >>> from rl_jax.models import presets
  >>> model = presets.load("tiny")
  >>> params = attach(model.params, init(jax.random.key(0), model.params, rank=2, targets=("query",)))
  >>> params["adapters"]["layers"]["query"]["a"].shape
  (2, 64, 2)
  """
  _check_shapes(base, adapters)
  beside = {name: {"a": a, "b": alpha / a.shape[-1] * b} for name, (a, b) in adapters.items()}
  return {**base, "adapters": {"layers": beside}}


def _check_shapes(base: Any, adapters: Mapping[str, Adapter]) -> None:
  for name, (a, b) in adapters.items():
    if name not in base["layers"]:
      raise ValueError(f"the model has no matrix {name!r} for the adapter of that name")
    kernel, shape = base["layers"][name]["kernel"], (*a.shape[:2], b.shape[-1])
    if kernel.shape != shape:
      raise ValueError(f"the adapter of {name!r} is for a matrix {shape}, the model's is {kernel.shape}")


def merge(base: Any, adapters: Mapping[str, Adapter], *, alpha: float = 32.0) -> Any:
  """Returns the plain model's parameters, with `W + (alpha / rank) A B` in float32 in place of every adapted W.

  Raises:
    ValueError: If an adapter is not of the shape of its matrix.

  >>> from rl_jax.models import presets
  >>> params = presets.load("tiny").params
  >>> merged = merge(params, init(jax.random.key(0), params))
  >>> jax.tree.all(jax.tree.map(jnp.array_equal, params, merged))
  True
  """
  _check_shapes(base, adapters)
  layers = dict(base["layers"])
  for name, (a, b) in adapters.items():
    kernel = layers[name]["kernel"]
    update = alpha / a.shape[-1] * jnp.einsum("lir,lro->lio", *(x.astype(wide(x)) for x in (a, b)))
    layers[name] = {**layers[name], "kernel": kernel.astype(wide(kernel)) + update}
  return {**base, "layers": layers}


def save_peft(
  folder: str | os.PathLike, adapters: Mapping[str, Adapter], *, alpha: float = 32.0, base_model: str = ""
) -> None:
  """Writes `adapter_model.safetensors` and `adapter_config.json`, which PEFT loads onto the base model.

  Args:
    folder: A folder, made where it does not exist.
    adapters: Adapters from `init`, trained.
    alpha: As given to `merge`.
    base_model: Name or path of the base model, for PEFT to find it.

  >>> import tempfile
  >>> from rl_jax.models import presets
  >>> adapters = init(jax.random.key(0), presets.load("tiny").params, rank=4)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save_peft(folder, adapters)
  ...   loaded = load_peft(folder)
  >>> loaded.alpha, jax.tree.all(jax.tree.map(jnp.array_equal, adapters, loaded.adapters))
  (32.0, True)
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for name, (a, b) in adapters.items():
    for layer in range(a.shape[0]):
      for side, matrix in (("lora_A", a), ("lora_B", b)):
        tensors[_name(layer, name, side)] = np.ascontiguousarray(np.asarray(matrix[layer]).T)
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_model,
    "r": next(iter(adapters.values())).a.shape[-1],
    "lora_alpha": alpha,
    "target_modules": [MODULES[name].rpartition(".")[2] for name in adapters],
    "lora_dropout": 0.0,
    "bias": "none",
    "inference_mode": True,
  }
  save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
  (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_peft(folder: str | os.PathLike) -> Peft:
  """Returns adapters that were saved in PEFT's format.

  Raises:
    ValueError: If the files are missing or damaged, or hold what is not a plain LoRA of the known matrices.
  """
  folder = Path(folder)
  try:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    alpha, rank = float(config["lora_alpha"]), config["r"]
  except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
    raise ValueError(f"adapters in {str(folder)!r}: no readable PEFT files ({reason(error)})") from None
  if (kind := config.get("peft_type", "LORA")) != "LORA" or config.get("bias", "none") not in ("none", None):
    raise ValueError(f"adapters in {str(folder)!r} are {kind} with bias {config.get('bias')!r}, not LORA without")
  for name in UNSUPPORTED:
    if (value := config.get(name)) or (value == 0 and value is not False):  # a layer may have the number 0
      raise ValueError(f"adapters in {str(folder)!r} use {name}, which is not supported")
  if (start := config.get("init_lora_weights")) not in (None, True, False, *INITS):
    raise ValueError(
      f"adapters in {str(folder)!r} use init_lora_weights {start!r}, which is not supported: it changes the base"
    )
  adapters = {}
  for name in MODULES:
    layers = 0
    while all(_name(layers, name, side) in tensors for side in ("lora_A", "lora_B")):
      layers += 1
    if not layers:
      continue
    sides = [np.stack([tensors.pop(_name(i, name, side)).T for i in range(layers)]) for side in ("lora_A", "lora_B")]
    adapters[name] = Adapter(*(jnp.asarray(side, wide(side)) for side in sides))
  if tensors or not adapters:
    raise ValueError(f"adapters in {str(folder)!r}: unexpected tensors {', '.join(sorted(tensors)[:3]) or '(none)'}")
  if any(adapter.a.shape[-1] != rank for adapter in adapters.values()):
    raise ValueError(f"adapters in {str(folder)!r} are not of rank {rank}, which adapter_config.json names")
  return Peft(adapters, alpha, str(config.get("base_model_name_or_path") or ""))


def _name(layer: int, matrix: str, side: str) -> str:
  return f"base_model.model.model.layers.{layer}.{MODULES[matrix]}.{side}.weight"
