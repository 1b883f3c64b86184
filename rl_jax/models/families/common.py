"""What families of models have in common: the sizes in a Hugging Face configuration, and Llama's tensor names."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PretrainedConfig

from rl_jax.models.experts import ExpertsConfig


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


def check_sizes(hf: PretrainedConfig, *names: str) -> None:
  """Raises ValueError if a setting is no positive number.

  >>> from transformers import LlamaConfig
  >>> check_sizes(LlamaConfig(num_hidden_layers=0), "hidden_size", "num_hidden_layers")
  Traceback (most recent call last):
  ...
  ValueError: num_hidden_layers of llama must be positive, got 0
  """
  for name in names:
    value = getattr(hf, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
      raise ValueError(f"{name} of {hf.model_type} must be positive, got {value!r}")


def experts(hf: PretrainedConfig, count: int, **settings: Any) -> ExpertsConfig:
  """Returns the experts of a layer, of which there are `count`.

  Raises:
    ValueError: If a token goes to none of them, or to more than there are.
  """
  if not 1 <= hf.num_experts_per_tok <= count:
    given = hf.num_experts_per_tok
    raise ValueError(f"num_experts_per_tok of {hf.model_type} must be between 1 and its {count} experts, got {given}")
  return ExpertsConfig(count, hf.num_experts_per_tok, **settings)


def sizes(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns what every family says alike, as arguments of `TransformerConfig`.

  Raises:
    ValueError: If one is not positive.

  >>> from transformers import LlamaConfig
  >>> sizes(LlamaConfig(num_hidden_layers=3))["num_layers"]
  3
  """
  check_sizes(
    hf, "vocab_size", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps"
  )
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
  )


def one_window(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns `windows` of a family whose layers all have the same one, or none.

  >>> from transformers import MistralConfig
  >>> one_window(MistralConfig(num_hidden_layers=2, sliding_window=8)), one_window(MistralConfig(sliding_window=None))
  ({'windows': (8, 8)}, {'windows': ()})
  """
  return {"windows": () if hf.sliding_window is None else (hf.sliding_window,) * hf.num_hidden_layers}


def windows_by_type(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns `windows` of a family whose layers have one by their type.

  >>> from transformers import Gemma2Config
  >>> windows_by_type(Gemma2Config(num_hidden_layers=2, sliding_window=8))
  {'windows': (8, None)}
  """
  kinds = hf.layer_types or ()
  _check_layers(hf, "layer_types", kinds)
  found = tuple(hf.sliding_window if kind == "sliding_attention" else None for kind in kinds)
  return {"windows": found if any(found) else ()}


def _check_layers(hf: PretrainedConfig, name: str, values: Sequence[Any]) -> None:
  if len(values) != hf.num_hidden_layers:
    layers = hf.num_hidden_layers
    raise ValueError(f"{name} of {hf.model_type} must have one entry for each of {layers} layers, got {len(values)}")


def rotation(hf: PretrainedConfig, *, partial: bool = False) -> dict[str, Any]:
  """Returns `ropes` of a family whose layers all rotate alike.

  Args:
    hf: The configuration.
    partial: Whether the family may rotate a part of the channels.

  Raises:
    ValueError: If types of layers differ, or a part is rotated in a family that rotates all.
  """
  found = rope_settings(hf)
  if "rope_theta" not in found:
    raise ValueError(f"rope_parameters of {hf.model_type} must be one for all layers, got those of {', '.join(found)}")
  if not partial:
    _check_whole(hf, found)
  return {"ropes": (_for_context(found, hf),)}


def _check_whole(hf: PretrainedConfig, rope: dict[str, Any]) -> None:
  if (share := rope.get("partial_rotary_factor", 1.0)) != 1.0:
    raise ValueError(f"partial_rotary_factor of {hf.model_type} must be 1, got {share}")


def rotation_by_type(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns `ropes` and `rope_of` of a family in which layers of one type share one way to rotate.

  Raises:
    ValueError: If they are not given by type.
  """
  found = rope_settings(hf)
  kinds = sorted(set(hf.layer_types))
  if strange := [name for name in found if name not in ("full_attention", "sliding_attention")]:
    raise ValueError(
      f"rope_parameters of {hf.model_type} must be by type of layer alone, got {strange[0]!r} among them"
    )
  for each in found.values():
    _check_whole(hf, each)
  return {
    "ropes": tuple(_for_context(found[kind], hf) for kind in kinds),
    "rope_of": tuple(kinds.index(kind) for kind in hf.layer_types),
  }


def layers_without_rotation(hf: PretrainedConfig) -> dict[str, Any]:
  """Returns `ropes` and `rope_of` of a family that says of each layer whether it rotates (`no_rope_layers`: 1 does)."""
  _check_layers(hf, "no_rope_layers", hf.no_rope_layers)
  return {"ropes": (*rotation(hf)["ropes"], None), "rope_of": tuple(0 if turns else 1 for turns in hf.no_rope_layers)}


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
