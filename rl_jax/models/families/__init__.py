"""One small file a family of models: its configuration as a `TransformerConfig`, and what its tensors are called.

A family is a module with `MODEL_TYPES`, `TENSORS` and `settings(hf) -> arguments of TransformerConfig`; what a
configuration asks for and `models.transformer` lacks is a ValueError. Where checkpoints of one family call their
tensors by several names, `RENAMES` bring them to those of `TENSORS`.
"""

import importlib
import pkgutil
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from rl_jax.errors import reason
from rl_jax.models.families import common
from rl_jax.models.families.common import Tensor
from rl_jax.models.transformer import TransformerConfig

FAMILIES: dict[str, ModuleType] = {
  model_type: module
  for name in sorted(module.name for module in pkgutil.iter_modules(__path__))
  if name != common.__name__.rpartition(".")[2]
  for module in (importlib.import_module(f"{__name__}.{name}"),)
  for model_type in module.MODEL_TYPES
}


def read(folder: str) -> PretrainedConfig:
  """Reads `config.json` of a model folder, or its part on text; runs no remote code and asks no network.

  Raises:
    ValueError: If there is none, or `transformers` does not know its architecture.

  >>> import tempfile
  >>> from transformers import Qwen2Config
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   Qwen2Config(num_hidden_layers=3).save_pretrained(folder)
  ...   read(folder).num_hidden_layers
  3
  """
  try:
    hf = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
  except Exception as error:  # transformers validates with errors of its own kinds
    raise ValueError(f"model folder {folder!r}: no readable config.json ({reason(error)})") from None
  text = hf.get_text_config(decoder=True)
  if text is not hf:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
      own = getattr(hf, name, None)
      setattr(text, name, getattr(text, name, None) if own is None else own)
  return text


def find(model_type: str) -> ModuleType:
  """Returns the family of a Hugging Face `model_type`.

  Raises:
    ValueError: If there is none.

  >>> find("gpt_neo")
  Traceback (most recent call last):
  ...
  ValueError: model_type 'gpt_neo' is not supported; supported: gemma2, gemma3_text, gpt2, gpt_oss, granite, llama,
  ministral, mistral, olmo2, olmo3, phi3, qwen2, qwen3, qwen3_moe, smollm3
  """
  if model_type not in FAMILIES:
    raise ValueError(f"model_type {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
  return FAMILIES[model_type]


def transformer_config(hf: PretrainedConfig, **overrides: Any) -> TransformerConfig:
  """Returns the model's shape. Keyword arguments (`dtype`, `remat`, ...) go to `TransformerConfig`.

  Raises:
    ValueError: For an architecture, activation, attention or RoPE type that `models.transformer` lacks.

  >>> from transformers import Qwen2Config
  >>> transformer_config(Qwen2Config(num_hidden_layers=3)).num_layers
  3
  """
  if getattr(hf, "is_causal", True) is False or getattr(hf, "use_bidirectional_attention", None):
    raise ValueError(f"is_causal of {hf.model_type} must be true, and use_bidirectional_attention off")
  try:
    found = find(hf.model_type).settings(hf)
  except (TypeError, ZeroDivisionError, KeyError, AttributeError) as error:
    raise ValueError(f"the configuration of {hf.model_type} cannot be read ({reason(error)})") from None
  if found["activation"] not in _ACTIVATIONS:
    known = ", ".join(map(repr, _ACTIVATIONS))
    raise ValueError(f"hidden_act of {hf.model_type} must be one of {known}, got {found['activation']!r}")
  return TransformerConfig(**found | {"activation": _ACTIVATIONS[found["activation"]]} | overrides)


# What `transformers` calls activations.
_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
}
# Of models of text and images: what reads the text stands below, what reads the images is left out.
_COMPOSITE = (
  (r"(model\.)?language_model\.lm_head\.", "lm_head."),
  (r"(model\.)?language_model\.(model\.)?", "model."),
  (r"(model\.)?(vision_tower|vision_model|multi_modal_projector|embed_vision)\..*", ""),
)
_WITHOUT_HEAD = ((r"(?=(layers|embed_tokens|norm)\.)", "model."),)  # saved from the model below its head
_UNUSED = ((r".*rotary_emb\.inv_freq", ""),)


def canonical(model_type: str, name: str) -> str:
  """Returns what `TENSORS` calls a tensor that a checkpoint holds under another name; "" for one that is not needed.

  >>> canonical("gemma3_text", "language_model.model.norm.weight"), canonical("gpt2", "h.0.attn.bias")
  ('model.norm.weight', '')
  """
  return _renamed(of_text(name), (*_UNUSED, *_WITHOUT_HEAD, *getattr(find(model_type), "RENAMES", ())))


def of_text(name: str) -> str:
  """Returns what a model of text alone calls a tensor of one of text and images; "" for one that reads images.

  >>> of_text("model.language_model.layers.0.mlp.up_proj.weight")
  'model.layers.0.mlp.up_proj.weight'
  """
  return _renamed(name, _COMPOSITE)


def _renamed(name: str, renames: Sequence[tuple[str, str]]) -> str:
  for pattern, replacement in renames:
    name = re.sub(f"^(?:{pattern})", replacement, name)
  return name


def tensors(model_type: str) -> tuple[Tensor, ...]:
  """Returns the correspondence of a family's parameters and its checkpoints.

  >>> tensors("llama")[0].name
  'model.embed_tokens.weight'
  """
  return find(model_type).TENSORS


def check_adaptable(model_type: str) -> None:
  """Raises ValueError if adapters of a family's matrices have no place in PEFT's files: several are in one tensor.

  >>> check_adaptable("phi3")
  Traceback (most recent call last):
  ...
  ValueError: adapters of model_type 'phi3' are not supported: its checkpoints have several matrices in one tensor
  """
  names = [tensor.name for tensor in tensors(model_type)]
  if len(set(names)) < len(names):
    raise ValueError(
      f"adapters of model_type {model_type!r} are not supported: its checkpoints have several matrices in one tensor"
    )


def named_ends(values: Any) -> set[int]:
  """Returns the ends of sequence that a file names: one, a list of them, or none.

  Raises:
    ValueError: If they are no integers.

  >>> named_ends([2, 5]), named_ends(2), named_ends(None)
  ({2, 5}, {2}, set())
  """
  found = [token for token in (values if isinstance(values, list) else [values]) if token is not None]
  if wrong := [token for token in found if not isinstance(token, int) or isinstance(token, bool)]:
    raise ValueError(f"eos_token_id must be a token's number or a list of them, got {wrong[0]!r}")
  return set(found)
