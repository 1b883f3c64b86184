"""gpt-oss: experts with biases and a clamped gate, and attention that may read nothing."""

from typing import Any

from transformers import PretrainedConfig

from rl_jax.models.families.common import ATTENTION, ENDS, PRE_NORMS, Tensor, experts, rotation, sizes, windows_by_type

MODEL_TYPES = ("gpt_oss",)
_LAYER = "model.layers.{}"
TENSORS = (
  *ENDS,
  *PRE_NORMS,
  *ATTENTION,
  Tensor("layers/sinks", f"{_LAYER}.self_attn.sinks"),
  Tensor("layers/experts/router/kernel", f"{_LAYER}.mlp.router.weight", transposed=True),
  Tensor("layers/experts/router/bias", f"{_LAYER}.mlp.router.bias"),
  *(
    Tensor(f"layers/experts/{name}/{ours}", f"{_LAYER}.mlp.experts.gate_up_proj{theirs}", interleaved=True)
    for ours, theirs in (("kernel", ""), ("bias", "_bias"))
    for name in ("gate", "up")
  ),
  Tensor("layers/experts/down/kernel", f"{_LAYER}.mlp.experts.down_proj"),
  Tensor("layers/experts/down/bias", f"{_LAYER}.mlp.experts.down_proj_bias"),
)


def settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the arguments of `TransformerConfig`.

  >>> from transformers import GptOssConfig
  >>> settings(GptOssConfig(num_hidden_layers=2))["windows"]
  (128, None)

  Reference: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv:2508.10925.
  """
  return (
    sizes(hf)
    | rotation(hf)
    | windows_by_type(hf)
    | dict(
      activation=hf.hidden_act,
      sinks=True,
      clamped_gate=(hf.swiglu_alpha, hf.swiglu_limit),
      experts=experts(hf, hf.num_local_experts, bias=True),
    )
  )
