"""GGUF in: configuration, weights (dequantized with NumPy) and a byte-level BPE tokenizer from one file."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gguf
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from rl_jax.errors import reason
from rl_jax.models import families, rope
from rl_jax.models.transformer import TransformerConfig
from rl_jax.models.weights import Source, assemble, entries

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a tokenizer cuts text before its merges, by the name that GGUF gives it.
_GPT2 = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _cut(*patterns: str) -> list:
  return [*(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns), _BYTES]


_LLAMA3 = _cut(_WORDS + r"|\p{N}{1,3}" + _REST)
_QWEN2 = _cut(_WORDS + r"|\p{N}" + _REST)
_PRE_TOKENIZERS = {
  "gpt-2": _GPT2,
  "smollm": [pre_tokenizers.Digits(individual_digits=True), *_GPT2],
  "llama-bpe": _LLAMA3,
  "llama3": _LLAMA3,
  "qwen2": _QWEN2,
  "deepseek-r1-qwen": _QWEN2,
  "deepseek-coder": _cut(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"),
  "deepseek-v3": _cut(
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
  ),
}
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3 = {
  "rope_type": "llama3",
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
WHOLE_WORDS = ("llama-bpe", "llama3")  # a piece that is a token needs no merges to become it
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_CONTROL, _USER_DEFINED = 3, 4
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # whose metadata and tensors are read here


class Gguf(NamedTuple):
  """A GGUF file, or several that belong together: metadata of the first, and the tensors of all.

  Attributes:
    get_field: `name -> field`, or None.
    tensors: In no order.
  """

  get_field: Callable[[str], gguf.ReaderField | None]
  tensors: list[gguf.ReaderTensor]


def open_gguf(path: str | os.PathLike) -> Gguf:
  """Opens a GGUF file, or all parts of one whose first part is given, and checks that every tensor lies inside it.

  Raises:
    ValueError: If a file does not exist, is no GGUF, or was cut short.

  >>> open_gguf("nowhere.gguf")
  Traceback (most recent call last):
  ...
  ValueError: no GGUF file at 'nowhere.gguf'
  """
  if (part := PART.fullmatch(str(path))) is None:
    reader = _open_one(path)
    return Gguf(reader.get_field, list(reader.tensors))
  whole, number, count = part.groups()
  if int(number) != 1:
    raise ValueError(f"{str(path)!r} is part {int(number)} of {int(count)}: give the first one")
  readers = [_open_one(f"{whole}-{place:05d}-of-{count}.gguf") for place in range(1, int(count) + 1)]
  return Gguf(readers[0].get_field, [tensor for reader in readers for tensor in reader.tensors])


def _open_one(path: str | os.PathLike) -> gguf.GGUFReader:
  if not os.path.isfile(path):
    raise ValueError(f"no GGUF file at {str(path)!r}")
  try:
    reader = gguf.GGUFReader(path)
    end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)  # a first part may have none
  except (ValueError, IndexError, KeyError, OSError) as error:
    raise ValueError(f"{str(path)!r} is no GGUF file, or was cut short ({reason(error)})") from None
  if end > os.path.getsize(path):
    raise ValueError(f"{str(path)!r} was cut short: {os.path.getsize(path)} bytes of at least {end}")
  return reader


def _field(reader: Gguf, name: str, default: Any = None) -> Any:
  field = reader.get_field(name)
  return default if field is None else field.contents()


def _required(reader: Gguf, name: str) -> Any:
  value = _field(reader, name)
  if value is None:
    raise ValueError(f"there is no field {name!r}")
  return value


def _number(reader: Gguf, name: str, default: Any = None, kind: type = int) -> Any:
  """A field that is one number; without a default it must be there."""
  value = _required(reader, name) if default is None else _field(reader, name, default)
  if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0 or (kind is int and value % 1):
    raise ValueError(f"field {name!r} must be a positive number, got {value!r:.80}")
  return kind(value)


def _token(reader: Gguf, name: str, tokens: Sequence[str]) -> int | None:
  """The number of a token that has a part to play; None where none is named."""
  field = f"tokenizer.ggml.{name}_token_id"
  number = _field(reader, field)
  if number is not None and not (isinstance(number, int) and 0 <= number < len(tokens)):
    raise ValueError(f"field {field!r} must be one of {len(tokens)} tokens, got {number!r:.80}")
  return number


# What a file may say besides, and a model here is.
_PLAIN = {
  "rope.scale_linear": 1.0,
  "rope.scaling.attn_factor": 1.0,
  "attention.causal": True,
  "attention.scale": 0.0,
  "attention.sliding_window": 0,
  "logit_scale": 0.0,
  "residual_scale": 0.0,
  "embedding_scale": 0.0,
  "expert_count": 0,
}


def read_config(reader: Gguf) -> PretrainedConfig:
  """Returns the Hugging Face configuration that a GGUF file's metadata describes.

  Raises:
    ValueError: For an architecture or a RoPE scaling that is not supported, or a field that is missing or cannot be.
  """
  kind = _field(reader, "general.architecture")
  if kind not in ARCHITECTURES:
    raise ValueError(f"GGUF architecture {kind!r} is not supported; supported: {', '.join(ARCHITECTURES)}")

  def number(name: str, default: Any = None, of: type = int) -> Any:
    return _number(reader, f"{kind}.{name}", default, of)

  heads, width = number("attention.head_count"), number("embedding_length")
  head_dim = number("attention.key_length", width // heads)
  plain = _PLAIN | {"rope.dimension_count": head_dim, "attention.value_length": head_dim}
  for name, value in plain.items():
    if (given := _field(reader, f"{kind}.{name}", value)) != value:
      raise ValueError(f"field '{kind}.{name}' must be {value}, got {given!r:.80}")
  tokens, tensors = _required(reader, "tokenizer.ggml.tokens"), {t.name for t in reader.tensors}
  ends = sorted({end for name in ("eos", "eot", "eom") if (end := _token(reader, name, tokens)) is not None})
  return AutoConfig.for_model(
    kind,
    vocab_size=len(tokens),
    hidden_size=width,
    intermediate_size=number("feed_forward_length"),
    num_hidden_layers=number("block_count"),
    num_attention_heads=heads,
    num_key_value_heads=number("attention.head_count_kv", heads),
    head_dim=head_dim,
    rms_norm_eps=number("attention.layer_norm_rms_epsilon", of=float),
    max_position_embeddings=number("context_length"),
    rope_parameters=_turns(reader, kind),
    tie_word_embeddings="output.weight" not in tensors,
    attention_bias=kind == "llama" and "blk.0.attn_q.bias" in tensors,
    bos_token_id=_token(reader, "bos", tokens),
    eos_token_id=ends if len(ends) > 1 else next(iter(ends), None),
    pad_token_id=_token(reader, "padding", tokens),
  )


def _turns(reader: Gguf, kind: str) -> dict[str, Any]:
  """What a file says of RoPE."""
  field = f"{kind}.rope.scaling."
  turns: dict[str, Any] = {"rope_type": "default", "rope_theta": _number(reader, f"{kind}.rope.freq_base", 1e4, float)}
  stretch = _field(reader, field + "type", "none") or "none"
  if stretch not in ("none", "linear", "yarn"):
    raise ValueError(f"field '{field}type' must be none, linear or yarn, got {stretch!r}")
  if stretch != "none":
    turns |= {"rope_type": stretch, "factor": _number(reader, field + "factor", 1.0, float)}
    if stretch == "yarn":
      context = _number(reader, field + "original_context_length")
      fast, slow = (_number(reader, field + "yarn_beta_" + name, at, float) for name, at in (("fast", 32), ("slow", 1)))
      turns |= {"original_max_position_embeddings": context, "beta_fast": fast, "beta_slow": slow}
  if (factors := next((t for t in reader.tensors if t.name == ROPE_FACTORS), None)) is not None:
    turns |= _llama3(_dequantize(factors), turns["rope_theta"])
  return turns


def _llama3(factors: np.ndarray, theta: float) -> dict[str, Any]:
  """Llama 3's scaling of RoPE, of which a file holds what each frequency is divided by."""
  found = LLAMA3 | {"factor": float(factors.max())}
  plain, scaled = (rope.frequencies({**each, "rope_theta": theta}, 2 * factors.size) for each in (rope.DEFAULT, found))
  if not np.allclose(plain.inverse / scaled.inverse, factors.reshape(-1), rtol=1e-3):
    raise ValueError(f"GGUF tensor {ROPE_FACTORS!r} is not Llama 3's scaling of RoPE, which alone is known here")
  return found


def load_weights(reader: Gguf, config: TransformerConfig, *, where: str, dtype: Any = np.float32) -> dict:
  """Dequantizes the weights of a GGUF file into parameters. Raises ValueError as `weights.assemble`."""
  kind = _field(reader, "general.architecture")
  architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
  names, tensors_of = gguf.get_tensor_name_map(architecture, config.num_layers), families.tensors(kind)
  theirs = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in entries(config, tensors_of)}
  ours = {gguf_name: name for name, gguf_name in theirs.items()}
  tensors = {ours.get(t.name, t.name): t for t in reader.tensors if t.name != ROPE_FACTORS}

  def read(name: str) -> np.ndarray:
    array = _dequantize(tensors[name])
    if kind == "llama" and ".self_attn.q_proj." in name:
      return _half_split(array, config.num_heads)
    if kind == "llama" and ".self_attn.k_proj." in name:
      return _half_split(array, config.num_kv_heads)
    return array

  shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()}
  return assemble(config, tensors_of, Source(shapes, read), where=where, dtype=dtype)


def _dequantize(tensor: gguf.ReaderTensor) -> np.ndarray:
  try:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
  except NotImplementedError:
    raise ValueError(f"GGUF tensor {tensor.name!r} is of a type not known here: {tensor.tensor_type.name}") from None


def _half_split(array: np.ndarray, heads: int) -> np.ndarray:
  """GGUF keeps Llama's rotary pairs next to each other; here channel i pairs with channel `i + head_dim / 2`."""
  pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
  return pairs.swapaxes(1, 2).reshape(array.shape)


def read_tokenizer(reader: Gguf) -> PreTrainedTokenizerFast:
  """Builds the tokenizer that a GGUF file describes, chat template included.

  Raises:
    ValueError: If it is not byte-level BPE, or cuts text in a way that is not known here.
  """
  model, pre = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre", "gpt-2")
  if model != "gpt2" or pre not in _PRE_TOKENIZERS:
    known = ", ".join(_PRE_TOKENIZERS)
    raise ValueError(f"GGUF tokenizer {model!r} with pre-tokenizer {pre!r} is not supported (gpt2 with one of {known})")
  tokens = _required(reader, "tokenizer.ggml.tokens")
  merges = [tuple(merge.split(" ")) for merge in _required(reader, "tokenizer.ggml.merges")]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[pre])
  if pre == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.decoder = decoders.ByteLevel()
  types = _required(reader, "tokenizer.ggml.token_type")
  if len(types) != len(tokens):
    raise ValueError(f"field 'tokenizer.ggml.token_type' must have {len(tokens)} entries, got {len(types)}")
  kinds = list(zip(tokens, types, strict=True))
  tokenizer.add_special_tokens([AddedToken(token, special=True) for token, kind in kinds if kind == _CONTROL])
  tokenizer.add_tokens([AddedToken(token) for token, kind in kinds if kind == _USER_DEFINED])
  special = {
    f"{name}_token": tokens[number]
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    if (number := _token(reader, key, tokens)) is not None
  }
  if _field(reader, "tokenizer.ggml.add_bos_token", pre in WHOLE_WORDS):
    if (number := _token(reader, "bos", tokens)) is None:
      raise ValueError("there is no field 'tokenizer.ggml.bos_token_id', with which every text begins")
    bos = tokens[number]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
    )
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, chat_template=_field(reader, "tokenizer.chat_template"), **special
  )
