"""Qwen3 with experts, such as Qwen3-30B-A3B."""

from typing import Any

from transformers import PretrainedConfig

from rl_jax.models.families.common import ATTENTION, ENDS, PRE_NORMS, Tensor, experts, one_window, rotation, sizes

MODEL_TYPES = ("qwen3_moe",)
TENSORS = (
  *ENDS,
  *PRE_NORMS,
  *ATTENTION,
  Tensor("layers/experts/router/kernel", "model.layers.{}.mlp.gate.weight", transposed=True),
  *(
    Tensor(f"layers/experts/{name}/kernel", f"model.layers.{{}}.mlp.experts.{{}}.{name}_proj.weight", transposed=True)
    for name in ("gate", "up", "down")
  ),
)


def settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the arguments of `TransformerConfig`.

  >>> from transformers import Qwen3MoeConfig
  >>> settings(Qwen3MoeConfig(num_hidden_layers=2))["experts"].per_token
  8

  Reference: Qwen Team, "Qwen3 Technical Report", arXiv:2505.09388.
  """
  if hf.mlp_only_layers or hf.decoder_sparse_step != 1:
    raise ValueError("mlp_only_layers and decoder_sparse_step: every layer must have experts")
  return (
    sizes(hf)
    | rotation(hf)
    | one_window(hf)
    | dict(
      activation=hf.hidden_act,
      qk_norm="head",
      mlp_dim=hf.moe_intermediate_size,
      experts=experts(hf, hf.num_experts, normalized=hf.norm_topk_prob),
    )
  )
