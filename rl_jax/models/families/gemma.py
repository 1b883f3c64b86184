"""Gemma 2 and 3, text: norms on both sides, whose scales are stored as their difference to 1, and scaled embeddings."""

from typing import Any

from transformers import PretrainedConfig

from rl_jax.models.families.common import (
  ATTENTION,
  ENDS,
  MLP,
  check_sizes,
  norm,
  rotation,
  rotation_by_type,
  sizes,
  windows_by_type,
)

MODEL_TYPES = ("gemma2", "gemma3_text")
TENSORS = (
  *ENDS,
  norm("attention_norm", "input_layernorm"),
  norm("attention_post_norm", "post_attention_layernorm"),
  norm("mlp_norm", "pre_feedforward_layernorm"),
  norm("mlp_post_norm", "post_feedforward_layernorm"),
  *ATTENTION,
  *MLP,
)


def settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the arguments of `TransformerConfig`.

  >>> from transformers import Gemma2Config
  >>> settings(Gemma2Config())["logit_softcap"]
  30.0

  Reference: Gemma Team, "Gemma 2", arXiv:2408.00118; "Gemma 3 Technical Report", arXiv:2503.19786.
  """
  check_sizes(hf, "query_pre_attn_scalar")
  found = sizes(hf) | windows_by_type(hf)
  found |= dict(
    activation=hf.hidden_activation,
    norms="both",
    norm_offset=1.0,
    embed_scale=hf.hidden_size**0.5,
    attention_scale=hf.query_pre_attn_scalar**-0.5,
    logit_softcap=hf.final_logit_softcapping,
  )
  if hf.model_type == "gemma2":
    return found | rotation(hf) | {"attention_softcap": hf.attn_logit_softcapping}
  return found | rotation_by_type(hf) | {"qk_norm": "head"}
