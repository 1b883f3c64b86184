"""GGUF in: configuration, weights (dequantised with NumPy) and a byte-level BPE tokenizer from one file."""

import os
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from rl_jax.models.hf_config import SUPPORTED
from rl_jax.models.transformer import TransformerConfig
from rl_jax.models.weights import Source, assemble, entries

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a tokenizer cuts text before its merges, by the name that GGUF gives it: a pattern, or None for GPT-2's.
_PRE_TOKENIZERS = {
  "gpt-2": (None, False),
  "smollm": (None, True),
  "qwen2": (_WORDS + r"|\p{N}" + _REST, False),
  "llama-bpe": (_WORDS + r"|\p{N}{1,3}" + _REST, False),
}
_CONTROL, _USER_DEFINED = 3, 4


def open_gguf(path: str | os.PathLike) -> gguf.GGUFReader:
  """Opens a GGUF file and checks that every tensor lies inside it.

  Raises:
    ValueError: If the file does not exist, is no GGUF, or was cut short.
  """
  if not os.path.isfile(path):
    raise ValueError(f"no GGUF file at {str(path)!r}")
  try:
    reader = gguf.GGUFReader(path)
    end = max(int(t.data_offset) + int(t.n_bytes) for t in reader.tensors)
  except (ValueError, IndexError, KeyError, OSError) as error:
    raise ValueError(f"{str(path)!r} is no GGUF file, or was cut short ({str(error).splitlines()[0]})") from None
  if end > os.path.getsize(path):
    raise ValueError(f"{str(path)!r} was cut short: {os.path.getsize(path)} bytes of at least {end}")
  return reader


def _field(reader: gguf.GGUFReader, name: str, default: Any = None) -> Any:
  field = reader.get_field(name)
  return default if field is None else field.contents()


def read_config(reader: gguf.GGUFReader) -> PretrainedConfig:
  """Returns the Hugging Face configuration that a GGUF file's metadata describes.

  Raises:
    ValueError: For an architecture or a RoPE scaling that is not supported.
  """
  kind = _field(reader, "general.architecture")
  if kind not in SUPPORTED:
    raise ValueError(f"GGUF architecture {kind!r} is not supported; supported: {', '.join(SUPPORTED)}")

  def get(name: str, default: Any = None) -> Any:
    return _field(reader, f"{kind}.{name}", default)

  rope = {"rope_type": "default", "rope_theta": float(get("rope.freq_base", 10000.0))}
  if get("rope.scaling.type", "none") != "none":
    rope |= {"rope_type": get("rope.scaling.type"), "factor": float(get("rope.scaling.factor", 1.0))}
    rope |= {"original_max_position_embeddings": get("rope.scaling.original_context_length")}
  heads, tensors = get("attention.head_count"), {t.name for t in reader.tensors}
  return AutoConfig.for_model(
    kind,
    vocab_size=len(_field(reader, "tokenizer.ggml.tokens")),
    hidden_size=get("embedding_length"),
    intermediate_size=get("feed_forward_length"),
    num_hidden_layers=get("block_count"),
    num_attention_heads=heads,
    num_key_value_heads=get("attention.head_count_kv", heads),
    head_dim=get("attention.key_length", get("embedding_length") // heads),
    rms_norm_eps=float(get("attention.layer_norm_rms_epsilon")),
    max_position_embeddings=get("context_length"),
    rope_parameters=rope,
    tie_word_embeddings="output.weight" not in tensors,
    attention_bias=kind == "llama" and "blk.0.attn_q.bias" in tensors,
    bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
    eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
    pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
  )


def load_weights(
  reader: gguf.GGUFReader, config: TransformerConfig, *, where: str, dtype: Any = np.float32
) -> dict:
  """Dequantises the weights of a GGUF file into parameters. Raises ValueError as `weights.assemble`."""
  kind = _field(reader, "general.architecture")
  architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
  names = gguf.get_tensor_name_map(architecture, config.num_layers)
  theirs = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in entries(config)}
  ours = {gguf_name: name for name, gguf_name in theirs.items()}
  tensors = {ours.get(t.name, t.name): t for t in reader.tensors}

  def read(name: str) -> np.ndarray:
    array = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
    if kind == "llama" and ".self_attn.q_proj." in name:
      return _half_split(array, config.num_heads)
    if kind == "llama" and ".self_attn.k_proj." in name:
      return _half_split(array, config.num_kv_heads)
    return array

  shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()}
  return assemble(config, Source(shapes, read), where=where, dtype=dtype)


def _half_split(array: np.ndarray, heads: int) -> np.ndarray:
  """GGUF keeps Llama's rotary pairs next to each other; here channel i pairs with channel `i + head_dim / 2`."""
  pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
  return pairs.swapaxes(1, 2).reshape(array.shape)


def read_tokenizer(reader: gguf.GGUFReader) -> PreTrainedTokenizerFast:
  """Builds the tokenizer that a GGUF file describes, chat template included.

  Raises:
    ValueError: If it is not byte-level BPE, or cuts text in a way that is not known here.
  """
  model, pre = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre", "gpt-2")
  if model != "gpt2" or pre not in _PRE_TOKENIZERS:
    known = ", ".join(_PRE_TOKENIZERS)
    raise ValueError(f"GGUF tokenizer {model!r} with pre-tokenizer {pre!r} is not supported (gpt2 with one of {known})")
  tokens = _field(reader, "tokenizer.ggml.tokens")
  merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
  tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
  tokenizer.pre_tokenizer = _pre_tokenizer(*_PRE_TOKENIZERS[pre])
  tokenizer.decoder = decoders.ByteLevel()
  kinds = list(zip(tokens, _field(reader, "tokenizer.ggml.token_type"), strict=True))
  tokenizer.add_special_tokens([AddedToken(token, special=True) for token, kind in kinds if kind == _CONTROL])
  tokenizer.add_tokens([AddedToken(token) for token, kind in kinds if kind == _USER_DEFINED])
  special = {
    f"{name}_token": tokens[number]
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    if (number := _field(reader, f"tokenizer.ggml.{key}_token_id")) is not None
  }
  if _field(reader, "tokenizer.ggml.add_bos_token", False):
    bos = special["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
    )
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, chat_template=_field(reader, "tokenizer.chat_template"), **special
  )


def _pre_tokenizer(pattern: str | None, single_digits: bool) -> pre_tokenizers.PreTokenizer:
  steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
  if pattern is not None:
    steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
  steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
  return pre_tokenizers.Sequence(steps)
