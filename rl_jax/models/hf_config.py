"""From a Hugging Face configuration to a `TransformerConfig`, or an error that names what is not supported."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from rl_jax.errors import reason
from rl_jax.models.transformer import TransformerConfig

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


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
  window = getattr(hf, "sliding_window", None) if getattr(hf, "use_sliding_window", kind == "mistral") else None
  if window is not None:
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
    rope=dict(hf.rope_parameters),
    tie_embeddings=bool(hf.tie_word_embeddings),
    qkv_bias=kind == "qwen2" or bias,
    output_bias=kind != "qwen2" and bias,
    mlp_bias=bool(getattr(hf, "mlp_bias", False)),
    qk_norm=kind == "qwen3",
    **overrides,
  )
