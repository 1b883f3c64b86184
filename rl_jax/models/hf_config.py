"""What a family's files say: its configuration as a `TransformerConfig`, and what its tensors are called."""

import copy
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from rl_jax.errors import reason
from rl_jax.models.transformer import TransformerConfig

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")

# (path in the parameters, name in a checkpoint, whether the matrix is transposed); "{}" is the layer's number.
TENSORS = (
  ("embedding", "model.embed_tokens.weight", False),
  ("unembedding", "lm_head.weight", True),
  ("final_norm/scale", "model.norm.weight", False),
  ("layers/attention_norm/scale", "model.layers.{}.input_layernorm.weight", False),
  ("layers/mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight", False),
  ("layers/query_norm/scale", "model.layers.{}.self_attn.q_norm.weight", False),
  ("layers/key_norm/scale", "model.layers.{}.self_attn.k_norm.weight", False),
  *(
    (f"layers/{ours}/{leaf}", f"model.layers.{{}}.{theirs}.{suffix}", transposed)
    for ours, theirs in (
      ("query", "self_attn.q_proj"),
      ("key", "self_attn.k_proj"),
      ("value", "self_attn.v_proj"),
      ("output", "self_attn.o_proj"),
      ("gate", "mlp.gate_proj"),
      ("up", "mlp.up_proj"),
      ("down", "mlp.down_proj"),
    )
    for leaf, suffix, transposed in (("kernel", "weight", True), ("bias", "bias", False))
  ),
)


def read(folder: str) -> PretrainedConfig:
  """Reads `config.json` of a model folder; runs no remote code and asks no network.

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
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
  except Exception as error:  # transformers validates with errors of its own kinds
    raise ValueError(f"model folder {folder!r}: no readable config.json ({reason(error)})") from None


def transformer_config(hf: PretrainedConfig, **overrides: Any) -> TransformerConfig:
  """Returns the model's shape. Keyword arguments (`dtype`, `remat`, ...) go to `TransformerConfig`.

  Raises:
    ValueError: For an architecture, activation, attention or RoPE type that `models.transformer` lacks.

  >>> from transformers import Qwen2Config
  >>> transformer_config(Qwen2Config(num_hidden_layers=3)).num_layers
  3
  """
  kind = hf.model_type
  if kind not in SUPPORTED:
    raise ValueError(f"model_type {kind!r} is not supported; supported: {', '.join(SUPPORTED)}")
  if hf.hidden_act != "silu":
    raise ValueError(f"hidden_act must be 'silu' for {kind}, got {hf.hidden_act!r}")
  # Qwen's configurations drop the window where `use_sliding_window` is off; Mistral's know no such switch.
  if (window := getattr(hf, "sliding_window", None)) is not None:
    raise ValueError(f"sliding_window attention is not supported, got sliding_window={window}")
  bias = bool(getattr(hf, "attention_bias", False))
  return TransformerConfig(
    vocab_size=hf.vocab_size,
    num_layers=hf.num_hidden_layers,
    embed_dim=hf.hidden_size,
    mlp_dim=hf.intermediate_size,
    num_heads=hf.num_attention_heads,
    num_kv_heads=hf.num_key_value_heads or hf.num_attention_heads,
    head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
    rms_norm_eps=hf.rms_norm_eps,
    rope=rope_settings(hf),
    tie_embeddings=bool(hf.tie_word_embeddings),
    qkv_bias=kind == "qwen2" or bias,
    output_bias=kind != "qwen2" and bias,
    mlp_bias=bool(getattr(hf, "mlp_bias", False)),
    qk_norm=kind == "qwen3",
    **overrides,
  )


def rope_settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the RoPE settings in the form that `transformers` brings them to when it builds a model.

  >>> from transformers import LlamaConfig
  >>> rope_settings(LlamaConfig(rope_parameters={"rope_theta": 10000.0}))
  {'rope_theta': 10000.0, 'rope_type': 'default'}
  """
  hf = copy.deepcopy(hf)
  hf.standardize_rope_params()
  rope = dict(hf.rope_parameters)
  if rope["rope_type"] == "yarn" and rope.get("factor") is None:
    rope["factor"] = hf.max_position_embeddings / rope["original_max_position_embeddings"]
  return rope


def named_ends(values: Any) -> set[int]:
  """Returns the ends of sequence that a file names: one, a list of them, or none.

  >>> named_ends([2, 5]), named_ends(2), named_ends(None)
  ({2, 5}, {2}, set())
  """
  return {token for token in (values if isinstance(values, list) else [values]) if token is not None}
