"""Gemma 2 and 3, text: norms on both sides, whose scales are stored as their difference to 1, and scaled embeddings."""

from typing import Any

from transformers import PretrainedConfig

from rl_jax.models.families.common import ATTENTION, ENDS, MLP, norm, sizes

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
  if getattr(hf, "use_bidirectional_attention", None):
    raise ValueError("use_bidirectional_attention must be off: tokens attend to earlier ones alone")
  return sizes(hf) | dict(
    activation={"gelu_pytorch_tanh": "gelu_tanh"}.get(hf.hidden_activation, hf.hidden_activation),
    norms="both",
    norm_offset=1.0,
    qk_norm="head" if hf.model_type == "gemma3_text" else "none",
    embed_scale=hf.hidden_size**0.5,
    attention_scale=hf.query_pre_attn_scalar**-0.5,
    attention_softcap=getattr(hf, "attn_logit_softcapping", None),
    logit_softcap=getattr(hf, "final_logit_softcapping", None),
  )
