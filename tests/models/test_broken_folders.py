"""Folders of models with one thing wrong in them: one line that names the file or folder, the field, and what came."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from rl_jax.models import presets

WEIGHTS, INDEX, GENERATION = "model.safetensors", "model.safetensors.index.json", "generation_config.json"


def refused(folder):
  with pytest.raises(ValueError) as error:
    presets.load(str(folder))
  message = str(error.value)
  assert str(folder) in message and len(message.splitlines()) == 1
  return message


YARN = {"rope_type": "yarn", "rope_theta": 1e4}


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"hidden_size": None}, "'hidden_size' expected int, got NoneType"),
    ({"hidden_size": "64"}, "'hidden_size' expected int, got str"),
    ({"num_hidden_layers": -1}, "num_hidden_layers of llama must be positive, got -1"),
    ({"num_hidden_layers": 0}, "num_hidden_layers of llama must be positive, got 0"),
    ({"num_attention_heads": 0}, "no readable config.json"),
    ({"model_type": "mistral", "sliding_window": "a"}, "'sliding_window' expected int, got str"),
    ({"model_type": "mistral", "sliding_window": 0}, "windows must be positive integers or None, got 0"),
    ({"layer_types": 3}, "no readable config.json"),
    ({"vocab_size": 3}, r"embed_tokens.weight is \[99, 64\], expected \[3, 64\]"),
    ({"model_type": 3}, "no readable config.json"),
    ({"eos_token_id": "x"}, "'eos_token_id'"),
    ({"rope_parameters": [1]}, "'rope_parameters'"),
    ({"rope_parameters": YARN}, "'rope_type'='yarn': {'factor'}"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": None}}, "no number: .*factor None"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "2"}}, "no number: .*factor '2'"),
    (
      {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}},
      "must be positive and finite, got 0",
    ),
    ({"rope_parameters": YARN | {"factor": -2.0}}, "factor of rope_parameters must be positive and finite, got -2.0"),
  ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_setting_that_cannot_be(folder, settings, message):
  path = folder / "config.json"
  others = {name: value for name, value in json.loads(path.read_text()).items() if not name.startswith("rope_")}
  path.write_text(json.dumps(others | settings))
  assert re.search(message, refused(folder))


@pytest.mark.parametrize(("context", "factor"), [(None, 1.0), (512, 4.0)])
def test_yarn_without_a_factor_is_that_of_its_contexts(folder, context, factor):
  path = folder / "config.json"
  settings = json.loads(path.read_text())
  settings["rope_parameters"] = (
    YARN | {"factor": None} | ({"original_max_position_embeddings": context} if context else {})
  )
  path.write_text(json.dumps(settings))
  assert presets.load(str(folder)).config.ropes[0]["factor"] == factor  # the model's longest context is 2048


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", "not JSON"),
    ("[]", "weight_map must name each tensor's file, got None"),
    ('{"weight_map": ["a"]}', r"weight_map must name each tensor's file, got \['a'\]"),
    ('{"weight_map": {}}', "weight_map must name each tensor's file, got {}"),
    ('{"weight_map": {"a": 3}}', "weight_map must name files of this folder, got 3"),
    ('{"weight_map": {"a": "../x.safetensors"}}', "must name files of this folder, got '../x.safetensors'"),
    ('{"weight_map": {"a": "x.safetensors"}}', "damaged or incomplete safetensors file"),
  ],
)
def test_an_index_that_is_none(folder, content, message):
  (folder / WEIGHTS).unlink()
  (folder / INDEX).write_text(content)
  found = refused(folder)
  assert re.search(message, found) and (INDEX in found or "damaged" in found)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", f"{GENERATION}: no readable JSON"),
    ("[]", f"{GENERATION}: must hold settings by name, got list"),
    ('{"eos_token_id": "x"}', "eos_token_id must be a token's number or a list of them, got 'x'"),
    ('{"eos_token_id": [[1]]}', "eos_token_id must be .* got [1]"),
    ('{"eos_token_id": true}', "eos_token_id must be .* got True"),
    ('{"eos_token_id": 1000}', "eos_token_id 1000 is no token of a vocabulary of 99"),
  ],
)
def test_a_generation_config_that_is_none(folder, content, message):
  (folder / GENERATION).write_text(content)
  found = refused(folder)
  assert all(part in found for part in message.split(" .* "))


@pytest.mark.parametrize(
  ("keep", "message"),
  [(False, "there is no tokenizer.json"), (True, "tokenizer.model alone takes: pip install sentencepiece")],
)
def test_a_tokenizer_that_is_missing(folder, keep, message):
  (folder / "tokenizer.json").unlink()
  if keep:
    (folder / "tokenizer.model").write_bytes(b"abc")
  assert message in refused(folder)


LORA = {"r": 2, "lora_alpha": 1, "base_model_name_or_path": "tiny"}


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"peft_type": "IA3"}, "are of the kind 'IA3'; LoRA, rsLoRA and DoRA are read"),
    ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}, "are of the kind 'PREFIX_TUNING'"),
    ({"peft_type": "LORA", "r": 2}, "lora_alpha in adapter_config.json must be a number, got None"),
    (LORA | {"r": "x"}, "r in adapter_config.json must be an integer, got 'x'"),
    (LORA | {"lora_alpha": None}, "lora_alpha in adapter_config.json must be a number, got None"),
    (LORA | {"bias": "all"}, "have biases (bias 'all')"),
    (LORA | {"rank_pattern": 3}, "rank_pattern in adapter_config.json must be numbers by modules, got 3"),
    (LORA | {"rank_pattern": {"(": 3}}, "which is no regular expression"),
    (LORA | {"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern of 'q_proj' in adapter_config.json must be a number"),
    (LORA | {"modules_to_save": 3}, "modules_to_save in adapter_config.json must be a list of names, got 3"),
    (LORA | {"base_model_name_or_path": None}, "name no base model"),
    (LORA, "is for 1 layers of 64 x 64, the model has 2 layers of 64 x 64"),
  ],
)
def test_adapters_that_cannot_be_read(folder, settings, message):
  name = "base_model.model.model.layers.0.self_attn.q_proj"
  matrices = {
    f"{name}.lora_A.weight": np.ones((2, 64), np.float32),
    f"{name}.lora_B.weight": np.ones((64, 2), np.float32),
  }
  save_file(matrices, folder / "adapter_model.safetensors")
  (folder / "adapter_config.json").write_text(json.dumps(settings))
  assert message in refused(folder)
