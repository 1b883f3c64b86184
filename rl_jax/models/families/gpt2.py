"""GPT-2: LayerNorm, learned positions, an MLP without a gate; matrices are stored as they are multiplied."""

from typing import Any

from transformers import PretrainedConfig

from rl_jax.models.families.common import Tensor, check_sizes

MODEL_TYPES = ("gpt2",)
_LAYER = "transformer.h.{}"
TENSORS = (
  Tensor("embedding", "transformer.wte.weight"),
  Tensor("positions", "transformer.wpe.weight"),
  Tensor("unembedding", "lm_head.weight", transposed=True),
  *(
    Tensor(f"final_norm/{ours}", f"transformer.ln_f.{theirs}")
    for ours, theirs in (("scale", "weight"), ("bias", "bias"))
  ),
  *(
    Tensor(f"layers/{name}/{ours}", f"{_LAYER}.{norm}.{theirs}")
    for name, norm in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2"))
    for ours, theirs in (("scale", "weight"), ("bias", "bias"))
  ),
  *(
    Tensor(f"layers/{name}/{ours}", f"{_LAYER}.{matrix}.{theirs}")
    for name, matrix in (
      ("query", "attn.c_attn"),
      ("key", "attn.c_attn"),
      ("value", "attn.c_attn"),
      ("output", "attn.c_proj"),
      ("up", "mlp.c_fc"),
      ("down", "mlp.c_proj"),
    )
    for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
  ),
)
RENAMES = (
  (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias$", ""),  # masks, which old checkpoints hold
  (r"(?=h\.|wte\.|wpe\.|ln_f\.)", "transformer."),
)


def settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the arguments of `TransformerConfig`.

  >>> from transformers import GPT2Config
  >>> settings(GPT2Config())["learned_positions"]
  1024

  Reference: A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
  """
  for name, wanted in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
    if getattr(hf, name) != wanted:
      raise ValueError(f"{name} of gpt2 must be {wanted}, got {getattr(hf, name)}")
  check_sizes(hf, "vocab_size", "n_layer", "n_embd", "n_head", "n_positions", "layer_norm_epsilon")
  if hf.n_inner is not None:
    check_sizes(hf, "n_inner")
  return dict(
    vocab_size=hf.vocab_size,
    num_layers=hf.n_layer,
    embed_dim=hf.n_embd,
    mlp_dim=hf.n_inner or 4 * hf.n_embd,
    num_heads=hf.n_head,
    num_kv_heads=hf.n_head,
    head_dim=hf.n_embd // hf.n_head,
    norm_eps=hf.layer_norm_epsilon,
    centered_norms=True,
    ropes=(None,),
    learned_positions=hf.n_positions,
    activation=hf.activation_function,
    gated=False,
    tie_embeddings=bool(hf.tie_word_embeddings),
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
  )
