"""What families of models have in common: the sizes in a Hugging Face configuration, and Llama's tensor names."""

import copy
from typing import Any, NamedTuple

from transformers import PretrainedConfig


class Tensor(NamedTuple):
  """One tensor of the parameters, and what a checkpoint calls it.

  Attributes:
    path: In the parameters.
    name: In a checkpoint, "{}" for the layer's number, and a second one for the expert's. Parameters of one name stand
      in one tensor, their outputs behind each other.
    transposed: Whether a checkpoint stores it `[out, in]`.
    interleaved: Whether the outputs of those of one name take turns instead.
  """

  path: str
  name: str
  transposed: bool = False
  interleaved: bool = False


def dense(ours: str, theirs: str) -> tuple[Tensor, Tensor]:
  """Returns kernel and bias of a layer's matrix.

  >>> dense("query", "self_attn.q_proj")[0].name
  'model.layers.{}.self_attn.q_proj.weight'
  """
  name = f"model.layers.{{}}.{theirs}"
  return (
    Tensor(f"layers/{ours}/kernel", f"{name}.weight", transposed=True),
    Tensor(f"layers/{ours}/bias", f"{name}.bias"),
  )


def norm(ours: str, theirs: str) -> Tensor:
  """Returns the scale of a layer's norm."""
  return Tensor(f"layers/{ours}/scale", f"model.layers.{{}}.{theirs}.weight")


ENDS = (
  Tensor("embedding", "model.embed_tokens.weight"),
  Tensor("unembedding", "lm_head.weight", transposed=True),
  Tensor("final_norm/scale", "model.norm.weight"),
)
ATTENTION = (
  norm("query_norm", "self_attn.q_norm"),
  norm("key_norm", "self_attn.k_norm"),
  *dense("query", "self_attn.q_proj"),
  *dense("key", "self_attn.k_proj"),
  *dense("value", "self_attn.v_proj"),
  *dense("output", "self_attn.o_proj"),
)
MLP = (*dense("gate", "mlp.gate_proj"), *dense("up", "mlp.up_proj"), *dense("down", "mlp.down_proj"))
PRE_NORMS = (norm("attention_norm", "input_layernorm"), norm("mlp_norm", "post_attention_layernorm"))


def sizes(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns what every family says alike, as arguments of `TransformerConfig`.

  >>> from transformers import LlamaConfig
  >>> sizes(LlamaConfig(num_hidden_layers=3))["num_layers"]
  3
  """
  bias = bool(getattr(hf, "attention_bias", False))
  return dict(
    vocab_size=hf.vocab_size,
    num_layers=hf.num_hidden_layers,
    embed_dim=hf.hidden_size,
    mlp_dim=hf.intermediate_size,
    num_heads=hf.num_attention_heads,
    num_kv_heads=hf.num_key_value_heads or hf.num_attention_heads,
    head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
    norm_eps=hf.rms_norm_eps,
    tie_embeddings=bool(hf.tie_word_embeddings),
    qkv_bias=bias,
    output_bias=bias,
    mlp_bias=bool(getattr(hf, "mlp_bias", False)),
    windows=windows(hf),
    **rotation(hf),
  )


def windows(hf: PretrainedConfig) -> tuple[int | None, ...]:
  """Returns each layer's window, none where no layer has one.

  >>> from transformers import MistralConfig
  >>> windows(MistralConfig(num_hidden_layers=2, sliding_window=8)), windows(MistralConfig(sliding_window=None))
  ((8, 8), ())
  """
  window, kinds = getattr(hf, "sliding_window", None), getattr(hf, "layer_types", None)
  if window is None:
    return ()
  if kinds is None:
    return (window,) * hf.num_hidden_layers
  found = tuple(window if kind == "sliding_attention" else None for kind in kinds)
  return found if any(found) else ()


def rotation(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns `ropes` and `rope_of`: layers of one type share one way to rotate."""
  found = rope_settings(hf)
  if "rope_theta" in found:
    return {"ropes": (_for_context(found, hf),)}
  kinds = sorted(found)
  return {
    "ropes": tuple(_for_context(found[kind], hf) for kind in kinds),
    "rope_of": tuple(kinds.index(kind) for kind in hf.layer_types),
  }


def rope_settings(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns the RoPE settings in the form that `transformers` brings them to when it builds a model.

  Where types of layers differ in them, they are by type of layer.

  >>> from transformers import LlamaConfig
  >>> rope_settings(LlamaConfig(rope_parameters={"rope_theta": 10000.0}))
  {'rope_theta': 10000.0, 'rope_type': 'default'}
  """
  hf = copy.deepcopy(hf)
  hf.standardize_rope_params()
  found = dict(hf.rope_parameters)
  if "rope_theta" in found:
    return _with_factor(found, hf)
  return {kind: _with_factor(dict(each), hf) for kind, each in found.items()}


def _with_factor(found: dict[str, Any], hf: PretrainedConfig) -> dict[str, Any]:
  if found["rope_type"] == "yarn" and found.get("factor") is None:
    found["factor"] = hf.max_position_embeddings / found["original_max_position_embeddings"]
  return found


def _for_context(found: dict[str, Any], hf: PretrainedConfig) -> dict[str, Any]:
  """With what follows from the model's longest context."""
  if found["rope_type"] == "dynamic":
    return {"original_max_position_embeddings": hf.max_position_embeddings} | found
  if found["rope_type"] == "longrope" and found.get("factor") is None:
    return found | {"factor": hf.max_position_embeddings / found["original_max_position_embeddings"]}
  return found
