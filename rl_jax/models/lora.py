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
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rl_jax import hub
from rl_jax.errors import reason
from rl_jax.models import families

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
  "alora_invocation_tokens",
  "lora_bias",
  "fan_in_fan_out",
  "layer_replication",
  "target_parameters",
  "trainable_token_indices",
  "use_qalora",
  "use_bdlora",
  "arrow_config",
)
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"  # a folder with the first is one of adapters
INITS = ("gaussian", "orthogonal", "eva")  # these leave the base as it is


def wide(x: Any) -> Any:
  """Returns the type that products of adapters are computed in: float32 at least.

  >>> wide(jnp.ones(1, jnp.bfloat16))
  dtype('float32')
  """
  return jnp.promote_types(x.dtype, jnp.float32)


class Adapter(NamedTuple):
  """The adapter of one matrix `[layers, in, out]`, of all layers."""

  a: Float[Array, "layers D rank"]
  b: Float[Array, "layers rank out"]


class Peft(NamedTuple):
  """What files in PEFT's format hold.

  Attributes:
    adapters: Of one rank a matrix: adapters of layers with smaller ones, or none, are filled up with zeros, and what
      layers differ in, or rsLoRA's scale, is in B.
    alpha: As given to `merge`.
    base_model: The name or path of what the adapters belong to, or "".
    magnitudes: DoRA's, `[layers, out]`, by matrix; empty without.
    replaced: Tensors that take the place of the base's (`modules_to_save`, or a whole embedding), by the checkpoint's
      names.
    partial: Whether the settings leave layers out: behind the last one that has an adapter there may be others.
  """

  adapters: dict[str, Adapter]
  alpha: float
  base_model: str
  magnitudes: Mapping[str, Float[Array, "layers out"]] = {}
  replaced: Mapping[str, np.ndarray] = {}
  partial: bool = False


def init(key: Array, params: Any, *, rank: int = 16, targets: Sequence[str] = ()) -> dict[str, Adapter]:
  """Returns adapters that change nothing yet: A is uniform in `+-sqrt(1 / in)` (PEFT's), B is 0.

  Args:
    key: PRNG key of the initial A.
    params: Parameters of a `models.transformer`, whose layers are stacked.
    rank: Rank of `A B`.
    targets: Matrices that get an adapter: query, key, value, output, gate, up, down; by default all of these that the
      model has, which those of experts are not.

  Raises:
    ValueError: For a rank below 1, or a target that the model has not.

  >>> from rl_jax.models import presets
  >>> params = presets.load("tiny").params
  >>> adapters = init(jax.random.key(0), params, rank=2, targets=("query",))
  >>> adapters["query"].a.shape, adapters["query"].b.shape
  ((2, 64, 2), (2, 2, 64))
  """
  if rank < 1:
    raise ValueError(f"rank must be at least 1, got {rank}")
  present = [name for name in MODULES if name in params["layers"]]
  targets = targets or present
  if unknown := [target for target in targets if target not in present]:
    raise ValueError(f"targets must be of {', '.join(present)}, got {unknown[0]!r}")
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
      theirs, ours = (f"{layers} layers of {rows} x {columns}" for layers, rows, columns in (shape, kernel.shape))
      raise ValueError(f"the adapter of {name!r} is for {theirs}, the model has {ours}")


def merge(
  base: Any, adapters: Mapping[str, Adapter], *, alpha: float = 32.0, magnitudes: Mapping[str, Array] = {}
) -> Any:
  """Returns the plain model's parameters, with `V = W + (alpha / rank) A B` in float32 in place of every adapted W.

  With DoRA's magnitudes m, it is `m V / |V|`, the norm being that of what each output reads.

  Raises:
    ValueError: If an adapter is not of the shape of its matrix.

  References: E. Hu et al., "LoRA", arXiv:2106.09685; S. Liu et al., "DoRA", arXiv:2402.09353.

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
    merged = kernel.astype(wide(kernel)) + update
    if name in magnitudes:
      merged *= (magnitudes[name] / jnp.linalg.norm(merged, axis=1))[:, None, :]
    layers[name] = {**layers[name], "kernel": merged}
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
        tensors[_name(layer, name, f"{side}.weight")] = np.ascontiguousarray(np.asarray(matrix[layer]).T)
  name, _, revision = base_model.partition("@") if hub.is_name(base_model) else (base_model, "", "")
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": name,
    "revision": revision or None,
    "r": next(iter(adapters.values())).a.shape[-1],
    "lora_alpha": alpha,
    "target_modules": [MODULES[name].rpartition(".")[2] for name in adapters],
    "lora_dropout": 0.0,
    "bias": "none",
    "inference_mode": True,
  }
  save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
  (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_peft(folder: str | os.PathLike) -> Peft:
  """Returns adapters that were saved in PEFT's format.

  Raises:
    ValueError: If the files are missing or damaged, or hold what is no LoRA, rsLoRA or DoRA of the known matrices.

  Reference: D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732.
  """
  folder = Path(folder)
  try:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    kind = config.get("peft_type", "LORA")
  except (OSError, ValueError, AttributeError) as error:
    raise ValueError(f"adapters in {str(folder)!r}: no readable adapter_config.json ({reason(error)})") from None
  if kind != "LORA":
    raise ValueError(f"adapters in {str(folder)!r} are of the kind {kind!r}; LoRA, rsLoRA and DoRA are read")
  if config.get("bias", "none") not in ("none", None):
    raise ValueError(f"adapters in {str(folder)!r} have biases (bias {config['bias']!r}), which is not supported")
  for name in UNSUPPORTED:
    if (value := config.get(name)) or (value == 0 and value is not False):  # a layer may have the number 0
      raise ValueError(f"adapters in {str(folder)!r} use {name}, which is not supported")
  if (start := config.get("init_lora_weights")) not in (None, True, False, *INITS):
    raise ValueError(
      f"adapters in {str(folder)!r} use init_lora_weights {start!r}, which is not supported: it changes the base"
    )
  where = f"adapters in {str(folder)!r}"
  _check_settings(config, where)
  try:
    found = load_file(folder / TENSORS)
  except (OSError, SafetensorError) as error:
    raise ValueError(f"{where}: no readable adapter_model.safetensors ({reason(error)})") from None
  named = {families.of_text(name.removeprefix(PREFIX)): tensor for name, tensor in found.items()}
  tensors = {PREFIX + name: tensor for name, tensor in named.items() if name}  # what reads images is left out
  alpha = float(config["lora_alpha"]) or 1.0
  scales = _Scales(float(config["lora_alpha"]), config["r"], config)
  adapters, magnitudes, partial = {}, {}, _leaves_layers_out(config)
  for name in MODULES:
    layers = _layers(tensors, name)
    lacking = set(range(max(layers, default=0))) - set(layers)
    if lacking and not partial:
      raise ValueError(f"{where}: there is none of {name!r} in layer {min(lacking)}, which no setting leaves out")
    if lacking and config.get("use_dora"):
      raise ValueError(f"{where}: use_dora in some layers alone is not supported")
    if layers:
      adapters[name] = _stacked(tensors, name, layers, scales, where)
      if all(_name(layer, name, MAGNITUDE) in tensors for layer in range(max(layers) + 1)):
        magnitudes[name] = jnp.stack([tensors.pop(_name(i, name, MAGNITUDE)) for i in layers])
  if bool(config.get("use_dora")) != bool(magnitudes) or (magnitudes and magnitudes.keys() != adapters.keys()):
    given = config.get("use_dora", False)
    raise ValueError(
      f"{where}: use_dora is {given}, but {len(magnitudes)} of {len(adapters)} matrices have {MAGNITUDE}"
    )
  replaced = {name.removeprefix(PREFIX): tensors.pop(name) for name in list(tensors) if "lora_" not in name}
  of_classes = ("classifier", "score") if config.get("task_type") == "SEQ_CLS" else ()  # PEFT names both, of all models
  for module in config.get("modules_to_save") or ():
    if module not in of_classes and not any(f".{module}." in f".{name}" for name in replaced):
      raise ValueError(f"{where}: modules_to_save names {module!r}, but adapter_model.safetensors has no such tensor")
  if tensors or not adapters:
    raise ValueError(f"adapters in {str(folder)!r}: unexpected tensors {', '.join(sorted(tensors)[:3]) or '(none)'}")
  base = str(config.get("base_model_name_or_path") or "")
  if config.get("revision") and hub.is_name(base):
    base = f"{base}@{config['revision']}"
  return Peft(adapters, alpha, base, magnitudes, replaced, partial)


def _check_settings(config: Mapping[str, Any], where: str) -> None:
  """Raises ValueError for settings that are not there, or of other types than PEFT writes."""

  def check(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
      raise ValueError(f"{where}: {name} in adapter_config.json must be {wanted}, got {value!r}")

  check("r", config.get("r"), int, "an integer")
  check("lora_alpha", config.get("lora_alpha"), (int, float), "a number")
  check("modules_to_save", config.get("modules_to_save") or [], list, "a list of names")
  for name in ("rank_pattern", "alpha_pattern"):
    check(name, config.get(name) or {}, dict, "numbers by modules")
    for key, value in (config.get(name) or {}).items():
      check(f"{name} of {key!r}", value, (int, float), "a number")
      try:
        re.compile(key)
      except re.error as error:
        raise ValueError(f"{where}: {name} has {key!r}, which is no regular expression ({error})") from None


PREFIX, MAGNITUDE = "base_model.model.", "lora_magnitude_vector"


class _Scales(NamedTuple):
  """Rank and scale of every matrix by PEFT's settings."""

  alpha: float
  rank: int
  config: Mapping[str, Any]

  def rank_of(self, module: str) -> int:
    return int(self._pattern("rank_pattern", module, self.rank))

  def scale_of(self, module: str) -> float:
    rank, alpha = self.rank_of(module), float(self._pattern("alpha_pattern", module, self.alpha))
    return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

  def _pattern(self, name: str, module: str, default: Any) -> Any:
    """The first key that a module's name ends with, as a regular expression, as in PEFT."""
    patterns = self.config.get(name) or {}
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def _leaves_layers_out(config: Mapping[str, Any]) -> bool:
  """Whether settings may choose among layers."""
  targets = config.get("target_modules") or ()
  by_name = isinstance(targets, str) or any(re.search(r"\d", str(target)) for target in targets)
  return by_name or config.get("layers_to_transform") is not None or bool(config.get("exclude_modules"))


def _layers(tensors: Mapping[str, np.ndarray], name: str) -> list[int]:
  """The layers in which a matrix has an adapter."""
  pattern = re.compile(re.escape(_name(0, name, "lora_A.weight")).replace("0", r"(\d+)", 1))
  found = sorted(int(match[1]) for match in map(pattern.fullmatch, tensors) if match)
  return [layer for layer in found if _name(layer, name, "lora_B.weight") in tensors]


def for_layers(found: Peft, count: int) -> Peft:
  """Returns adapters of `count` layers: where settings leave layers out, those behind the last adapter have zeros.

  Raises:
    ValueError: For DoRA in some layers alone.

  >>> few = Peft({"query": Adapter(jnp.ones((1, 4, 2)), jnp.ones((1, 2, 4)))}, 1.0, "", partial=True)
  >>> for_layers(few, 3).adapters["query"].a.shape
  (3, 4, 2)
  """
  more = {name: count - adapter.a.shape[0] for name, adapter in found.adapters.items()}
  if not found.partial or max(more.values()) <= 0:
    return found
  if found.magnitudes:
    raise ValueError("use_dora in some layers alone is not supported")
  filled = {
    name: Adapter(*(jnp.pad(side, ((0, max(more[name], 0)), (0, 0), (0, 0))) for side in adapter))
    for name, adapter in found.adapters.items()
  }
  return found._replace(adapters=filled)


def _stacked(tensors: dict[str, np.ndarray], name: str, layers: list[int], scales: _Scales, where: str) -> Adapter:
  """Takes a matrix's adapters out of the tensors: of one rank, and with what differs from `alpha / rank` in B."""
  sides = [[tensors.pop(_name(i, name, f"{side}.weight")).T for i in layers] for side in ("lora_A", "lora_B")]
  rank = max(a.shape[-1] for a in sides[0])
  for place, (layer, a, b) in enumerate(zip(layers, *sides, strict=True)):
    module = f"model.layers.{layer}.{MODULES[name]}"
    if a.shape[-1] != scales.rank_of(module):
      raise ValueError(f"{where} are not of rank {scales.rank_of(module)}, which adapter_config.json names")
    factor = scales.scale_of(module) * rank / (scales.alpha or 1.0)
    more = rank - a.shape[-1]
    sides[0][place] = np.pad(a, ((0, 0), (0, more))) if more else a
    sides[1][place] = (np.pad(b, ((0, more), (0, 0))) if more else b) * (1 if factor == 1 else factor)
  filled = []
  for stacked in map(np.stack, sides):
    every = np.zeros((max(layers) + 1, *stacked.shape[1:]), stacked.dtype)
    every[layers] = stacked
    filled.append(jnp.asarray(every, wide(every)))
  return Adapter(*filled)


def _name(layer: int, matrix: str, part: str) -> str:
  return f"{PREFIX}model.layers.{layer}.{MODULES[matrix]}.{part}"
