"""Weights in and out: Hugging Face safetensors folders, single and sharded. GGUF comes in through `models.gguf_file`.

Checkpoints name one matrix a layer and store it `[out, in]`; the parameters here stack the layers on a leading axis and
store `[in, out]`. A family's `TENSORS` are the whole correspondence.
"""

import copy
import dataclasses
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from jaxtyping import Array, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
  MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
  MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from rl_jax.errors import reason
from rl_jax.models import families, lora
from rl_jax.models.families.common import Tensor, rope_settings
from rl_jax.models.transformer import TransformerConfig, policy

HEAD = "lm_head.weight"
SCORE = "score.weight"  # the head of a sequence classifier with one label, `[1, D]`: a reward model
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
  "additional_chat_templates",
)
# What tensors of FP8, GPTQ, AWQ, bitsandbytes, HQQ and MXFP4 checkpoints are called.
QUANTIZED = (".weight_scale", ".weight_scale_inv", ".qweight", ".SCB", ".absmax", ".quant_map", ".W_q", "_scales")


class Entry(NamedTuple):
  """Where one tensor of a checkpoint belongs.

  Attributes:
    paths: In the parameters, more than one where a checkpoint puts several into one tensor.
    sizes: Of the last axis of each of them.
    index: Where it is in all of them: nowhere else, in a layer, or an expert of a layer.
    transposed: Whether the checkpoint stores `[out, in]`.
    interleaved: Whether the last axes of several take turns.
    shape: As the checkpoint stores it.
  """

  paths: tuple[str, ...]
  sizes: tuple[int, ...]
  index: tuple[int, ...]
  transposed: bool
  interleaved: bool
  shape: tuple[int, ...]

  def parts(self, stored: np.ndarray) -> list[np.ndarray]:
    """Returns what belongs to each path, of what a checkpoint stores."""
    whole = stored.T if self.transposed else stored
    if self.interleaved:
      return [whole[..., part :: len(self.paths)] for part in range(len(self.paths))]
    return np.split(whole, np.cumsum(self.sizes)[:-1], axis=-1)

  def stored(self, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns what a checkpoint stores of them."""
    if self.interleaved:
      whole = np.stack(parts, axis=-1).reshape(*parts[0].shape[:-1], -1)
    else:
      whole = np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(whole.T if self.transposed else whole)


class Source(NamedTuple):
  """A checkpoint as its tensors' shapes and a function that reads one of them."""

  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]


def _flat_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
  tree = jax.eval_shape(policy(config).init, jax.random.key(0))
  return {"/".join(k.key for k in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}


def entries(config: TransformerConfig, tensors: Sequence[Tensor]) -> dict[str, Entry]:
  """Returns every tensor that a checkpoint of this configuration holds, by the checkpoint's name.

  >>> from rl_jax.models import presets
  >>> entries(presets.load("tiny").config, families.tensors("llama"))["model.layers.1.self_attn.k_proj.weight"]
  Entry(paths=('layers/key/kernel',), sizes=(32,), index=(1,), transposed=True, interleaved=False, shape=(32, 64))
  """
  shapes, found = _flat_shapes(config), {}
  for path, name, transposed, interleaved in tensors:
    if path not in shapes:
      continue
    numbered = name.count("{}")
    shape = shapes[path][numbered:]
    for index in itertools.product(*map(range, shapes[path][:numbered])):
      before = found.get(name.format(*index))
      paths, sizes = (before.paths, before.sizes) if before else ((), ())
      sizes = (*sizes, shape[-1])
      whole = (*shape[:-1], sum(sizes))
      stored = tuple(reversed(whole)) if transposed else whole
      found[name.format(*index)] = Entry((*paths, path), sizes, index, transposed, interleaved, stored)
  return found


def assemble(
  config: TransformerConfig, tensors: Sequence[Tensor], source: Source, *, where: str, dtype: Any = np.float32
) -> dict:
  """Reads a checkpoint into a nested dict of parameters, after comparing all names and shapes.

  Where the configuration ties the unembedding to the embedding and the checkpoint holds one of other values, it is not
  tied, as in `transformers` 5: the parameters then have an "unembedding". Where it holds the unembedding alone, it is
  both.

  Raises:
    ValueError: Naming the missing, the unexpected and the mis-shaped tensors.

  >>> config = TransformerConfig(
  ...   vocab_size=8, num_layers=1, embed_dim=4, mlp_dim=8, num_heads=2, num_kv_heads=1, head_dim=2)
  >>> tensors = families.tensors("llama")
  >>> shapes = {name: entry.shape for name, entry in entries(config, tensors).items()}
  >>> params = assemble(config, tensors, Source(shapes, lambda name: np.zeros(shapes[name])), where="zeros")
  >>> sorted(params)
  ['embedding', 'final_norm', 'layers']
  >>> del shapes["model.norm.weight"]
  >>> assemble(config, tensors, Source(shapes, np.zeros), where="zeros")
  Traceback (most recent call last):
  ...
  ValueError: weights of zeros: missing tensors: model.norm.weight
  """
  if config.tie_embeddings:
    source, tied = _embedded(source, name_of(tensors, "embedding"))
    config = dataclasses.replace(config, tie_embeddings=tied)
  wanted = entries(config, tensors)
  extra = [name for name in source.shapes if name not in wanted]
  missing = [name for name in wanted if name not in source.shapes]
  shaped = [
    f"{name} is {list(source.shapes[name])}, expected {list(entry.shape)}"
    for name, entry in wanted.items()
    if name in source.shapes and tuple(source.shapes[name]) != entry.shape
  ]
  problems = [
    f"{title}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    for title, names in (("missing tensors", missing), ("unexpected tensors", extra), ("mis-shaped tensors", shaped))
    if names
  ]
  if problems:
    raise ValueError(f"weights of {where}: " + "; ".join(problems))
  arrays = {path: np.empty(shape, dtype) for path, shape in _flat_shapes(config).items()}
  for name, entry in wanted.items():
    for path, part in zip(entry.paths, entry.parts(source.read(name)), strict=True):
      arrays[path][entry.index] = part
  return _nest({path: jnp.asarray(array) for path, array in arrays.items()})


def name_of(tensors: Sequence[Tensor], path: str) -> str:
  """Returns what a family's checkpoints call a parameter that stands by itself.

  >>> name_of(families.tensors("gpt2"), "embedding")
  'transformer.wte.weight'
  """
  return next(tensor.name for tensor in tensors if tensor.path == path)


def _embedded(source: Source, embedding: str) -> tuple[Source, bool]:
  """A checkpoint of a tied model with its embedding, and whether its unembedding, if it has one, is the same."""
  if HEAD not in source.shapes:
    return source, True
  shapes = {name: shape for name, shape in source.shapes.items() if name != HEAD}
  if embedding not in shapes:
    alone = {**shapes, embedding: source.shapes[HEAD]}
    return Source(alone, lambda name: source.read(HEAD if name == embedding else name)), True
  same = shapes[embedding] == source.shapes[HEAD]
  if same and np.array_equal(source.read(embedding), source.read(HEAD)):
    return Source(shapes, source.read), True
  return source, False


def _nest(flat: Mapping[str, Any]) -> dict:
  tree: dict = {}
  for path, leaf in flat.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def load_safetensors(
  folder: str | os.PathLike, config: TransformerConfig, hf: PretrainedConfig, *, dtype: Any = np.float32
) -> dict:
  """Loads `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

  Args:
    folder: A folder in Hugging Face's format.
    config: The shape.
    hf: The Hugging Face configuration, which says what tensors are called.
    dtype: Type of the parameters.

  Raises:
    ValueError: If the folder holds no weights, a file is damaged, or tensors do not fit the configuration.

  >>> import tempfile
  >>> from rl_jax.models import presets
  >>> model = presets.load("tiny")
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save_safetensors(folder, model.params, model.config, model.hf, model.tokenizer)
  ...   jax.tree.all(jax.tree.map(jnp.array_equal, load_safetensors(folder, model.config, model.hf), model.params))
  True
  """
  source = open_safetensors(folder, hf.model_type)
  if SCORE in source.shapes:
    raise ValueError(f"weights of {folder} are a reward model's, as {SCORE} shows: it has no words to choose")
  return assemble(config, families.tensors(hf.model_type), source, where=str(folder), dtype=dtype)


def open_safetensors(folder: str | os.PathLike, model_type: str) -> Source:
  """Opens a folder's weights, by the names that a family's `TENSORS` have.

  Raises:
    ValueError: If the folder holds none, they are quantised, or a file is damaged.
  """
  files = _files(Path(folder))
  try:
    headers = {path: _header(path) for path in files}
    found = [(families.canonical(model_type, name), path, name) for path in files for name in headers[path]]
    where = {name: (path, stored) for name, path, stored in found if name}
    shapes = {name: headers[path][stored].shape for name, (path, stored) in where.items()}
    eight_bits = [stored for _, path, stored in found if headers[path][stored].dtype.startswith("F8")]
    if scales := eight_bits + [stored for _, _, stored in found if stored.endswith(QUANTIZED)]:
      raise ValueError(
        f"weights of {folder} are quantised, as {scales[0]} shows: take the original ones, or have transformers"
        " dequantise and save them"
      )
  except (SafetensorError, OSError) as error:
    raise ValueError(f"weights of {folder}: damaged or incomplete safetensors file ({error})") from None

  def read(name: str) -> np.ndarray:
    path, stored = where[name]
    try:
      return _read(path, stored)
    except (SafetensorError, OSError) as error:
      raise ValueError(f"weights of {folder}: damaged or incomplete safetensors file ({error})") from None

  return Source(shapes, read)


def load_scorer(
  folder: str | os.PathLike, config: TransformerConfig, hf: PretrainedConfig
) -> tuple[dict, Float[Array, "D 1"]]:
  """Loads the backbone of a sequence classifier with one label, and its head.

  Raises:
    ValueError: As `load_safetensors`, or if there is no head, or one of several labels.
  """
  source = open_safetensors(folder, hf.model_type)
  if (shape := source.shapes.get(SCORE)) != (1, config.embed_dim):
    what = "no " + SCORE if shape is None else f"{SCORE} of {list(shape)}"
    raise ValueError(f"weights of {folder} are no reward model's: they have {what}, not one of [1, {config.embed_dim}]")
  backbone = Source({name: shape for name, shape in source.shapes.items() if name not in (SCORE, HEAD)}, source.read)
  params = assemble(config, families.tensors(hf.model_type), backbone, where=str(folder))
  return params, jnp.asarray(source.read(SCORE).T, jnp.float32)


def _files(folder: Path) -> list[Path]:
  """The files of a folder's weights; of a single one and shards the single one counts, as for `transformers`."""
  if (folder / SINGLE).exists():
    return [folder / SINGLE]
  if not (folder / INDEX).exists():
    raise ValueError(f"model folder {str(folder)!r} holds no {SINGLE} and no {INDEX}")
  try:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
  except (ValueError, OSError) as error:
    raise ValueError(f"{folder / INDEX}: not JSON ({reason(error)})") from None
  where = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(where, dict) or not where:
    raise ValueError(f"{folder / INDEX}: weight_map must name each tensor's file, got {where!r:.80}")
  if wrong := [name for name in where.values() if not isinstance(name, str) or Path(name).name != name]:
    raise ValueError(f"{folder / INDEX}: weight_map must name files of this folder, got {wrong[0]!r}")
  return [folder / name for name in sorted(set(where.values()))]


class _Stored(NamedTuple):
  shape: tuple[int, ...]
  dtype: str


def _header(path: Path) -> dict[str, _Stored]:
  with safe_open(path, "np") as file:
    slices = {name: file.get_slice(name) for name in file.keys()}
    return {name: _Stored(tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}


def _read(path: Path, name: str) -> np.ndarray:
  with safe_open(path, "np") as file:
    return file.get_tensor(name)


def named_tensors(
  params: Mapping, config: TransformerConfig, tensors: Sequence[Tensor]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields parameters as a checkpoint has them, by its names."""
  if "unembedding" in params and config.tie_embeddings:
    raise ValueError("the parameters have an unembedding of their own, but the configuration ties it to the embedding")
  flat = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
  for name, entry in entries(config, tensors).items():
    yield name, entry.stored([np.asarray(flat[path][entry.index]) for path in entry.paths])


def save_safetensors(
  folder: str | os.PathLike,
  params: Mapping,
  config: TransformerConfig,
  hf: PretrainedConfig,
  tokenizer: Any = None,
  *,
  eos_tokens: Sequence[int] = (),
  generation: Mapping[str, Any] = {},
  score: Float[Array, "D 1"] | None = None,
  max_shard_size: str = "5GB",
) -> None:
  """Writes a folder that `transformers` 4 and 5 load: weights (sharded above `max_shard_size`), config.json, tokenizer.

  What an earlier model left in the folder goes; other files stay. As long as weights are written it stays whole.

  Args:
    folder: A folder, made where it does not exist.
    params: The parameters.
    config: The shape.
    hf: The Hugging Face configuration.
    tokenizer: A `transformers` tokenizer.
    eos_tokens: All ends of sequence, for generation_config.json.
    generation: What else stands in generation_config.json.
    score: The head of a reward model, which is saved as a sequence classifier; None for a model of words.
    max_shard_size: The size of the largest file.

  >>> import tempfile
  >>> from rl_jax.models import presets
  >>> model = presets.load("tiny")
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save_safetensors(folder, model.params, model.config, model.hf, model.tokenizer)
  ...   presets.load(folder).num_params == model.num_params
  True
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for unfinished in folder.glob(".saving-*"):  # of a process that was killed
    shutil.rmtree(unfinished)
  with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
    new = Path(name)
    named = named_tensors(params, config, families.tensors(hf.model_type))
    if score is not None:
      named = itertools.chain((each for each in named if each[0] != HEAD), [(SCORE, np.asarray(score).T)])
    dtype = _save_tensors(new, named, max_shard_size)
    _save_config(new, hf, dtype, architecture(hf.model_type, scores=score is not None))
    if eos_tokens or generation:
      pad = {} if hf.pad_token_id is None else {"pad_token_id": hf.pad_token_id}
      ends = {"eos_token_id": list(eos_tokens)} if eos_tokens else {}
      settings = pad | dict(generation) | ends
      (new / GENERATION).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
      _save_tokenizer(new, tokenizer)
    _replace(folder, new, with_tokenizer=tokenizer is not None)


def _save_tensors(folder: Path, named: Iterator[tuple[str, np.ndarray]], max_shard_size: str) -> str:
  """Writes the weights, and returns the name of their type: one for all of them, the widest."""
  tensors = dict(named)
  dtype = jnp.result_type(*{array.dtype for array in tensors.values()})
  tensors = {name: array.astype(dtype, copy=False) for name, array in tensors.items()}
  split = split_state_dict_into_shards_factory(
    tensors,
    get_storage_size=lambda array: array.nbytes,
    filename_pattern="model{suffix}.safetensors",
    max_shard_size=max_shard_size,
  )
  for filename, names in split.filename_to_tensors.items():
    save_file({name: tensors[name] for name in names}, folder / filename, metadata={"format": "pt"})
    (folder / filename).chmod(0o644)  # it is written for the owner alone
  if split.is_sharded:
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
  return dtype.name


def architecture(model_type: str, *, scores: bool) -> str:
  """Returns the class of `transformers` that reads what is saved.

  Raises:
    ValueError: If there is none, for reward models of some families.

  >>> architecture("llama", scores=True)
  'LlamaForSequenceClassification'
  """
  names = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if scores else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
  if model_type not in names:
    raise ValueError(f"model_type {model_type!r} has no reward models: transformers has no class of them")
  return names[model_type]


def _save_config(folder: Path, hf: PretrainedConfig, dtype: str, architecture: str) -> None:
  """Writes config.json with the names of `transformers` 4 beside those of 5: the older one overlooks what is new."""
  hf = copy.deepcopy(hf)
  hf.dtype = dtype
  hf.architectures = [architecture]
  if "SequenceClassification" in architecture:
    hf.num_labels = 1
  hf.save_pretrained(folder)
  path = folder / CONFIG
  settings = json.loads(path.read_text(encoding="utf-8"))
  for name in ("quantization_config", "auto_map"):  # these weights are not quantized, and no code stands beside them
    settings.pop(name, None)
  settings |= {"torch_dtype": dtype}
  if getattr(hf, "rope_parameters", None) is not None:
    settings |= _older_rope(rope_settings(hf), longrope_alone="original_max_position_embeddings" in settings)
  if "num_local_experts" in settings:
    settings["num_experts"] = settings["num_local_experts"]
  path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _older_rope(rope: Mapping[str, Any], *, longrope_alone: bool) -> dict[str, Any]:
  """The names that `transformers` 4 has for RoPE; where types of layers differ, those of Gemma 3 and OLMo 3.

  Where the original context stands beside them, as in Phi, longrope may have no other keys than its factors.
  """
  local = {} if "rope_theta" in rope else {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
  every = rope if "rope_theta" in rope else rope["full_attention"]
  scaling = {key: value for key, value in every.items() if key != "rope_theta"}
  scaling = None if scaling.get("rope_type") == "default" else scaling
  if scaling and scaling["rope_type"] == "longrope" and longrope_alone:
    local["partial_rotary_factor"] = scaling.get("partial_rotary_factor", 1.0)
    scaling = {"type": "longrope"} | {name: scaling[name] for name in ("short_factor", "long_factor")}
  return {"rope_theta": every["rope_theta"], "rope_scaling": scaling} | local


def _save_tokenizer(folder: Path, tokenizer: Any) -> None:
  tokenizer.save_pretrained(folder)
  path = folder / "tokenizer_config.json"
  settings = json.loads(path.read_text(encoding="utf-8"))
  if settings.get("tokenizer_class") == "TokenizersBackend":  # `transformers` 4 knows it by this name
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
  if isinstance(
    settings.get("extra_special_tokens"), list
  ):  # likewise, and wants special tokens by name under this one
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
  path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(folder: Path, new: Path, *, with_tokenizer: bool) -> None:
  """Puts the files of `new` into a folder, and removes those of the model that was there.

  config.json goes first and comes last: there is no moment at which a folder reads as a mixture of two models.
  """
  written = {path.name for path in new.iterdir()}
  (folder / CONFIG).unlink(missing_ok=True)
  shards = {path.name for path in folder.glob("model-*-of-*.safetensors")}
  tokenizer = TOKENIZER_FILES if with_tokenizer else ()
  earlier = {SINGLE, INDEX, GENERATION, lora.CONFIG, lora.TENSORS, *shards, *tokenizer}
  for name in earlier - written:
    _remove(folder / name)
  for path in sorted(new.iterdir(), key=lambda path: path.name == CONFIG):
    if path.is_dir():  # further chat templates
      _remove(folder / path.name)
    os.replace(path, folder / path.name)


def _remove(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
