"""Reward models: sequence classifiers with one label in Hugging Face's format, read and written."""

import copy
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rl_jax import hub
from rl_jax.models import families, lora, presets, weights
from rl_jax.models.transformer import policy


def load(name: str, **overrides: Any) -> tuple[presets.Model, Any]:
  """Loads a reward model: a sequence classifier with one label in Hugging Face's format, as this library writes it too.

  Args:
    name: A folder, that of a run that trained one, or a name on the hub; or adapters that PEFT trained with a head, on
      a base that is a reward model or a model of words.
    **overrides: Arguments of `TransformerConfig`.

  Returns:
    The backbone, which has no words to choose, and the parameters of the scalar head on it.

  Raises:
    ValueError: If there is no such model, its files do not fit together, or it does not give one number.
  """
  folder = _folder(name)
  if (folder / lora.CONFIG).exists():
    return _adapted(folder, overrides)
  hf, _ = presets.configuration_of(folder)
  config = families.transformer_config(hf, **overrides | {"tie_embeddings": True})
  params, kernel = weights.load_scorer(folder, config, hf)
  return presets.model_of(config, params, hf, presets.tokenizer_of(folder)), {"out": {"kernel": kernel}}


def unread(scorer: presets.Model) -> int | None:
  """Returns a reward model's padding token where that is an end of sequence: `transformers` reads no score off it."""
  padding = scorer.hf.pad_token_id
  return padding if padding in scorer.eos_tokens else None


def fingerprint(name: str) -> str:
  """Returns the SHA-256 of a reward model's head, or of its adapters: it tells one training from another.

  Raises:
    ValueError: If there is no such model.
  """
  folder = _folder(name)
  head = _score(folder)
  if head is not None and (folder / lora.CONFIG).exists():
    return hashlib.sha256((folder / lora.TENSORS).read_bytes()).hexdigest()
  return "" if head is None else hashlib.sha256(head.tobytes()).hexdigest()


def _score(folder: Path) -> np.ndarray | None:
  """The head that a folder holds, if it is a reward model's."""
  if (folder / lora.CONFIG).exists():
    return lora.load_peft(folder).replaced.get(weights.SCORE)
  source = weights.open_safetensors(folder, families.read(str(folder)).model_type)
  return source.read(weights.SCORE) if weights.SCORE in source.shapes else None


def _adapted(folder: Path, overrides: dict[str, Any]) -> tuple[presets.Model, Any]:
  """A reward model of adapters: the base that they name with the adapters merged into it, and the head beside them."""
  found = lora.load_peft(folder)
  head = found.replaced.get(weights.SCORE)
  if head is None or len(head) != 1:
    raise ValueError(f"adapters in {str(folder)!r} are no reward model's: they have no {weights.SCORE} of one label")
  base = presets.folder_of(found.base_model)
  of_scores = (base / "config.json").is_file() and _score(base) is not None
  load_base = (lambda name, **given: load(name, **given)[0]) if of_scores else presets.load
  model = presets.with_adapters(folder, overrides, load_base=load_base, apart=(weights.SCORE,))
  params = {name: part for name, part in model.params.items() if name != "unembedding"}
  config = dataclasses.replace(model.config, tie_embeddings=True)
  return model._replace(policy=policy(config), config=config, params=params), {"out": {"kernel": jnp.asarray(head.T)}}


def is_name(name: str) -> bool:
  """Whether something is the name of a model on the hub, or of a folder with one.

  >>> is_name("math"), is_name("org/reward-model")
  (False, True)
  """
  return hub.is_name(name) or _holds_model(presets.folder_of(name))


def _holds_model(folder: Path) -> bool:
  return any((folder / file).is_file() for file in ("config.json", lora.CONFIG))


def _folder(name: str) -> Path:
  folder = presets.folder_of(name)
  if not _holds_model(folder):
    raise ValueError(f"unknown reward model {name!r}: no folder with config.json, and no name on the hub")
  return folder


def save(folder: str | os.PathLike, model: presets.Model, params: Any, head: Any) -> None:
  """Writes a reward model as a sequence classifier with one label, in Hugging Face's format.

  >>> import tempfile
  >>> model = presets.load("tiny")
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save(folder, model, model.params, {"out": {"kernel": jnp.ones((model.config.embed_dim, 1))}})
  ...   load(folder)[1]["out"]["kernel"].shape
  (64, 1)
  """
  hf, tokenizer = copy.deepcopy(model.hf), copy.deepcopy(model.tokenizer)
  hf.pad_token_id = _padding(model)
  tokenizer.pad_token = tokenizer.convert_ids_to_tokens(hf.pad_token_id)
  weights.save_safetensors(
    folder, params, model.config, hf, tokenizer, eos_tokens=model.eos_tokens, score=head["out"]["kernel"]
  )


def _padding(model: presets.Model) -> int:
  """A padding token that no sequence ends with: a classifier reads its score off the last token that is another one."""
  own = model.tokenizer
  special = [own.pad_token_id, own.unk_token_id, own.bos_token_id, *own.all_special_ids]
  return next(token for token in [*special, 0, 1] if token is not None and token not in model.eos_tokens)
