"""Phi-3, Phi-3.5 and Phi-4-mini: queries, keys and values in one tensor, and gate and up."""

from typing import Any

from transformers import PretrainedConfig

from rl_jax.models.families.common import ENDS, PRE_NORMS, dense, one_window, rotation, sizes

MODEL_TYPES = ("phi3",)
TENSORS = (
  *ENDS,
  *PRE_NORMS,
  *(dense(name, "self_attn.qkv_proj")[0] for name in ("query", "key", "value")),
  *dense("output", "self_attn.o_proj"),
  *(dense(name, "mlp.gate_up_proj")[0] for name in ("gate", "up")),
  *dense("down", "mlp.down_proj"),
)


def settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the arguments of `TransformerConfig`.

  >>> from transformers import Phi3Config
  >>> settings(Phi3Config())["num_heads"]
  32

  Reference: M. Abdin et al., "Phi-3 Technical Report", arXiv:2404.14219.
  """
  plain = {"qkv_bias": False, "output_bias": False, "mlp_bias": False}  # whatever attention_bias says
  return sizes(hf) | plain | one_window(hf) | rotation(hf, partial=True) | {"activation": hf.hidden_act}
