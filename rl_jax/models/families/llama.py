"""Llama, Mistral, Qwen2, Qwen2.5, Qwen3, SmolLM2 and SmolLM3."""

from typing import Any

from transformers import PretrainedConfig

from rl_jax.models.families.common import (
  ATTENTION,
  ENDS,
  MLP,
  PRE_NORMS,
  layers_without_rotation,
  one_window,
  rotation,
  sizes,
  windows_by_type,
)

MODEL_TYPES = ("llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3")
TENSORS = (*ENDS, *PRE_NORMS, *ATTENTION, *MLP)


def settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the arguments of `TransformerConfig`.

  >>> from transformers import Qwen2Config
  >>> settings(Qwen2Config())["qkv_bias"]
  True
  """
  found = sizes(hf) | {"activation": hf.hidden_act, "qk_norm": "head" if hf.model_type == "qwen3" else "none"}
  if hf.model_type == "qwen2":
    found |= {"qkv_bias": True, "output_bias": False}
  found |= layers_without_rotation(hf) if hf.model_type == "smollm3" else rotation(hf)
  if hf.model_type == "llama":
    return found
  return found | (one_window(hf) if hf.model_type == "mistral" else windows_by_type(hf))
