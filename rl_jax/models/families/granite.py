"""Granite 3: Llama with factors on embeddings, residuals, attention and logits."""

from typing import Any

from transformers import PretrainedConfig

from rl_jax.models.families.common import rotation, sizes
from rl_jax.models.families.llama import TENSORS as TENSORS

MODEL_TYPES = ("granite",)


def settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the arguments of `TransformerConfig`.

  >>> from transformers import GraniteConfig
  >>> settings(GraniteConfig(logits_scaling=8.0))["hidden_scale"]
  0.125
  """
  return (
    sizes(hf)
    | rotation(hf)
    | dict(
      activation=hf.hidden_act,
      embed_scale=hf.embedding_multiplier,
      residual_scale=hf.residual_multiplier,
      hidden_scale=1 / hf.logits_scaling,
      attention_scale=hf.attention_multiplier,
    )
  )
