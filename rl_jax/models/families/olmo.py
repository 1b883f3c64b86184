"""OLMo 2 and 3: norms after attention and MLP, and of all heads' queries and keys together."""

from typing import Any

from transformers import PretrainedConfig

from rl_jax.models.families.common import ATTENTION, ENDS, MLP, norm, rotation, rotation_by_type, sizes, windows_by_type

MODEL_TYPES = ("olmo2", "olmo3")
TENSORS = (
  *ENDS,
  norm("attention_post_norm", "post_attention_layernorm"),
  norm("mlp_post_norm", "post_feedforward_layernorm"),
  *ATTENTION,
  *MLP,
)


def settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the arguments of `TransformerConfig`.

  >>> from transformers import Olmo2Config
  >>> settings(Olmo2Config())["norms"]
  'post'

  Reference: Team OLMo, "2 OLMo 2 Furious", arXiv:2501.00656.
  """
  found = sizes(hf) | {"activation": hf.hidden_act, "norms": "post", "qk_norm": "all"}
  if hf.model_type == "olmo2":
    return found | rotation(hf)
  return found | rotation_by_type(hf) | windows_by_type(hf)
