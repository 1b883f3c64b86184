"""Loading and saving, held to what transformers' own torch code computes (tests/data/make_parity.py)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import (
  AutoConfig,
  AutoTokenizer,
  Gemma3TextConfig,
  GPT2Config,
  GPTNeoConfig,
  LlamaConfig,
  MistralConfig,
  Qwen2Config,
  Qwen3MoeConfig,
)

from rl_jax.models import families, lora, presets, weights
from rl_jax.models.rope import frequencies
from rl_jax.models.transformer import policy
from rl_jax.ops.log_probs import logits_of, token_log_probs
from rl_jax.sampling.generate import make_generate
from rl_jax.sampling.samplers import SamplingParams
from rl_jax.state import Sequences
from rl_jax.train.forward import make_forward

GIVEN = 9  # tokens of a prompt that is continued, as in make_parity.py
PARITY = Path(__file__).parents[1] / "data" / "parity"
FAMILIES = sorted(path.name for path in PARITY.iterdir() if path.is_dir())
# What each of the others has, one of these has too; their programs take as long to compile.
QUICK = {"gemma2", "gemma3", "gpt2", "gpt_oss", "granite", "llama", "olmo2", "phi4_mini", "smollm3"}
SOME_SLOW = [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]


def load(family):
  hf = families.read(str(PARITY / family))
  config = families.transformer_config(hf)
  return hf, config, policy(config), weights.load_safetensors(PARITY / family, config, hf)


def log_probs(model, params, tokens, mask):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  hidden = model.apply(params, tokens, positions, mask=mask).hidden
  return jax.nn.log_softmax(logits_of(hidden, model.unembed(params), softcap=model.softcap), axis=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_match_torch(family):
  _, _, model, params = load(family)
  expected = np.load(PARITY / family / "expected.npz")
  tokens, mask = jnp.asarray(expected["tokens"]), jnp.asarray(expected["mask"])
  actual = jax.jit(log_probs, static_argnums=0)(model, params, tokens, mask)
  real = expected["mask"] == 1
  np.testing.assert_allclose(np.asarray(actual)[real], expected["log_probs"][real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", SOME_SLOW)
def test_greedy_generation_matches_torch(family):
  _, _, model, params = load(family)
  expected = np.load(PARITY / family / "expected.npz")
  wanted = expected["generated"]
  generate = jax.jit(make_generate(model, group_size=1, max_new_tokens=wanted.shape[-1], pad_token=0))
  prompts = jnp.pad(jnp.asarray(expected["tokens"][:, :GIVEN]), ((0, 0), (0, 3)))  # padded on the right
  mask = jnp.arange(prompts.shape[-1]) < GIVEN
  mask = jnp.broadcast_to(mask, prompts.shape)
  found = generate(params, prompts, mask, jnp.array([-1]), jax.random.key(0), SamplingParams(temperature=0.0))
  np.testing.assert_array_equal(found.tokens[:, 0], wanted)


@pytest.mark.parametrize("family", SOME_SLOW)
def test_prompts_and_their_completions_apart_match_torch(family):
  """As in training: a prompt runs once, padded, and is a prefix of its completions."""
  _, _, model, params = load(family)
  expected = np.load(PARITY / family / "expected.npz")
  tokens, mask = jnp.asarray(expected["tokens"]), jnp.asarray(expected["mask"])
  prompts = jnp.pad(tokens[:, :GIVEN], ((0, 0), (0, 3)))
  given = jnp.broadcast_to(jnp.arange(GIVEN + 3) < GIVEN, prompts.shape)
  completions, real = tokens[:, None, GIVEN:], mask[:, None, GIVEN:]
  twice = Sequences(prompts, given, jnp.repeat(completions, 2, axis=1), jnp.repeat(real, 2, axis=1))
  found = jax.jit(make_forward(model))(params, twice).logp
  wanted = np.take_along_axis(expected["log_probs"][:, GIVEN - 1 : -1], np.asarray(tokens)[:, GIVEN:, None], -1)[..., 0]
  for row in range(2):
    np.testing.assert_allclose(np.where(real[:, 0], found[:, row], 0), np.where(real[:, 0], wanted, 0), atol=1e-4)


@pytest.mark.parametrize("family", SOME_SLOW)
def test_every_gradient_matches_torch(family):
  hf, config, model, params = load(family)
  expected = np.load(PARITY / family / "expected.npz")
  tokens, mask = jnp.asarray(expected["tokens"]), jnp.asarray(expected["mask"])

  def total(params):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    hidden = model.apply(params, tokens, positions, mask=mask).hidden
    logp = token_log_probs(hidden[:, :-1], model.unembed(params), tokens[:, 1:], softcap=model.softcap)[0]
    return jnp.sum(jnp.where(mask[:, 1:] == 1, logp, 0))

  gradients = dict(weights.named_tensors(jax.jit(jax.grad(total))(params), config, families.tensors(hf.model_type)))
  stored = {name: families.canonical(hf.model_type, name.removeprefix("grad/")) for name in expected.files}
  wanted_by_name = {name: expected[key] for key, name in stored.items() if key.startswith("grad/") and name}
  assert sorted(gradients) == sorted(wanted_by_name)
  for name, wanted in wanted_by_name.items():
    np.testing.assert_allclose(gradients[name], wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_saved_folder_holds_the_same_tensors_under_the_same_names(family, max_shard_size, tmp_path):
  hf, config, _, params = load(family)
  weights.save_safetensors(tmp_path, params, config, hf, max_shard_size=max_shard_size)
  assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")

  def tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}

  saved = tensors(tmp_path)
  named = {families.canonical(hf.model_type, name): tensor for name, tensor in tensors(PARITY / family).items()}
  original = {name: tensor for name, tensor in named.items() if name}
  assert saved.keys() == original.keys()
  for name in saved:
    np.testing.assert_array_equal(saved[name], original[name])
  rope = AutoConfig.from_pretrained(tmp_path).to_dict().get("rope_parameters", {})
  rope.pop("type", None)  # a word for transformers 4 that 5 keeps beside its own
  assert rope == hf.to_dict().get("rope_parameters", {})
  again = weights.load_safetensors(tmp_path, config, hf)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_bfloat16_weights_round_trip(tmp_path):
  hf, config, _, params = load("llama")
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  weights.save_safetensors(tmp_path, half, config, hf)
  assert AutoConfig.from_pretrained(tmp_path).dtype == "bfloat16"
  again = weights.load_safetensors(tmp_path, config, hf)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), again, half)


def damaged(tmp_path, change):
  folder = tmp_path / "model"
  shutil.copytree(PARITY / "llama", folder)
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors")
  return str(folder)


def load_folder(folder):
  hf = families.read(folder)
  return weights.load_safetensors(folder, families.transformer_config(hf), hf)


def test_missing_extra_and_misshaped_tensors_are_named(tmp_path):
  def change(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    tensors["lm_head.weight"] = np.zeros((3, 3), np.float32)

  with pytest.raises(ValueError) as error:
    load_folder(damaged(tmp_path, change))
  message = str(error.value)
  assert "missing tensors: model.layers.1.mlp.up_proj.weight" in message
  assert "unexpected tensors: model.layers.7.mlp.up_proj.weight" in message
  assert "lm_head.weight is [3, 3], expected [48, 32]" in message
  assert "\n" not in message


def test_folder_without_weights_or_with_a_damaged_file(tmp_path):
  shutil.copytree(PARITY / "llama", tmp_path / "model")
  (tmp_path / "model" / "model.safetensors").unlink()
  with pytest.raises(ValueError, match="holds no model.safetensors"):
    load_folder(str(tmp_path / "model"))
  data = (PARITY / "llama" / "model.safetensors").read_bytes()
  (tmp_path / "model" / "model.safetensors").write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match="damaged or incomplete"):
    load_folder(str(tmp_path / "model"))


def test_missing_shard_is_named(tmp_path):
  shutil.copytree(PARITY / "qwen2", tmp_path / "model")
  next((tmp_path / "model").glob("model-00002*")).unlink()
  with pytest.raises(ValueError, match="model-00002"):
    load_folder(str(tmp_path / "model"))


@pytest.mark.parametrize(
  "config,message",
  [
    (GPTNeoConfig(), "model_type 'gpt_neo' is not supported; supported: gemma2, .* llama"),
    (GPT2Config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx of gpt2 must be False"),
    (Qwen3MoeConfig(mlp_only_layers=[1]), "every layer must have experts"),
    (LlamaConfig(hidden_act="gelu"), "hidden_act of llama must be one of 'silu', .* got 'gelu'"),
    (Gemma3TextConfig(use_bidirectional_attention=True), "use_bidirectional_attention off"),
  ],
)
def test_unsupported_architectures_are_named(config, message):
  with pytest.raises(ValueError, match=message):
    families.transformer_config(config)


@pytest.mark.parametrize(
  ("rope", "message"),
  [
    ({"rope_type": "proportional"}, "rope_type must be one of default, .* longrope; got 'proportional'"),
    ({"rope_type": "longrope", "short_factor": [1.0], "factor": 2.0}, "short_factor must have 4 numbers, got 1"),
    ({"rope_type": "linear"}, "rope_parameters of type 'linear' lack 'factor'"),
    ({"rope_type": "linear", "factor": None}, "rope_parameters hold what is no number: .*factor None"),
    ({"partial_rotary_factor": 0.1}, "partial_rotary_factor must leave an even number of 8 channels, got 0"),
  ],
)
def test_unsupported_rope_is_named(rope, message):
  with pytest.raises(ValueError, match=message):
    frequencies({"rope_theta": 1e4, **rope}, 8)


@pytest.mark.parametrize("name", ["weight_scale_inv", "qweight", "SCB"])
def test_quantised_weights_are_refused_by_that_word(tmp_path, name):
  def change(tensors):
    tensors[f"model.layers.0.mlp.up_proj.{name}"] = np.zeros(3, np.float32)

  with pytest.raises(ValueError, match=f"are quantised, as model.layers.0.mlp.up_proj.{name} shows"):
    load_folder(damaged(tmp_path, change))


@pytest.mark.parametrize("family", ["llama_rope_dynamic", "phi4_mini"])
def test_longer_texts_than_the_rotation_is_meant_for_are_refused(family):
  hf, config, model, params = load(family)
  limit = 64 if family == "llama_rope_dynamic" else 32
  whole = presets.Model(model, params, config, hf, None, ())
  presets.check_context(whole, limit)
  with pytest.raises(ValueError, match=f"more than the model's original_max_position_embeddings={limit}"):
    presets.check_context(whole, limit + 1)


def test_unknown_names(tmp_path):
  with pytest.raises(ValueError, match="unknown model 'smollm3'"):
    presets.load("smollm3")
  with pytest.raises(ValueError, match="no readable config.json"):
    presets.load(str(tmp_path))
  with pytest.raises(ValueError, match="no readable tokenizer"):
    presets.load(str(PARITY / "llama"))


def test_tiny_model_round_trips_with_its_tokenizer(tmp_path):
  model = presets.load("tiny")
  weights.save_safetensors(tmp_path, model.params, model.config, model.hf, model.tokenizer, eos_tokens=(1, 7))
  again = presets.load(str(tmp_path))
  assert again.eos_tokens == (1, 7) and again.hf.architectures == ["LlamaForCausalLM"]
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  text = "17 + 25 =\n"
  assert again.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
  assert AutoTokenizer.from_pretrained(tmp_path).decode(model.tokenizer(text)["input_ids"]) == text


def test_a_runs_folder_is_its_model(tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path / "run" / "model", model, model.params)
  (tmp_path / "run" / "config.json").write_text('{"steps": 3}')
  jax.tree.map(np.testing.assert_array_equal, presets.load(str(tmp_path / "run")).params, model.params)


def test_importing_asks_no_network_and_loads_no_torch():
  code = "import sys, socket; socket.socket.connect = None; import experiments.grpo; assert 'torch' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_parity_data_is_complete():
  assert len(FAMILIES) == 24 and len(json.loads((PARITY / "smollm2.json").read_text())["generations"]) == 3


@pytest.mark.parametrize(
  "rope",
  [
    {"rope_type": "default", "rope_theta": 5000.0},
    {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
  ],
)  # fmt: skip
def test_a_saved_configuration_names_its_rope_for_old_and_new_readers(rope, tmp_path):
  model = presets.load("tiny")
  model.hf.rope_parameters = rope
  presets.save(tmp_path, model, model.params)
  saved = json.loads((tmp_path / "config.json").read_text())
  scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
  assert saved["rope_theta"] == rope["rope_theta"] and saved["rope_parameters"] == rope
  assert saved["rope_scaling"] == (None if rope["rope_type"] == "default" else scaling)
  assert saved["torch_dtype"] == saved["dtype"] == "float32"
  assert dict(AutoConfig.from_pretrained(tmp_path).rope_parameters) == rope
  assert families.transformer_config(families.read(str(tmp_path))).ropes == (rope,)


def test_saving_keeps_how_a_model_generates_and_drops_how_it_was_quantized(tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path / "one", model, model.params)
  settings = {
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "pad_token_id": 0,
    "eos_token_id": [1, 7],
    "do_sample": True,
  }
  (tmp_path / "one" / "generation_config.json").write_text(json.dumps(settings))
  config = json.loads((tmp_path / "one" / "config.json").read_text())
  (tmp_path / "one" / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
  loaded = presets.load(str(tmp_path / "one"))
  assert loaded.eos_tokens == (1, 7)
  presets.save(tmp_path / "two", loaded, loaded.params)
  assert json.loads((tmp_path / "two" / "generation_config.json").read_text()) == settings
  assert "quantization_config" not in json.loads((tmp_path / "two" / "config.json").read_text())


def test_saving_keeps_what_an_older_configuration_says_of_generation(tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path / "one", model, model.params)
  config = json.loads((tmp_path / "one" / "config.json").read_text())
  older = {"temperature": 0.7, "do_sample": True, "repetition_penalty": 1.1}
  (tmp_path / "one" / "config.json").write_text(json.dumps(config | older))
  (tmp_path / "one" / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "temperature": 0.6}))
  loaded = presets.load(str(tmp_path / "one"))
  presets.save(tmp_path / "two", loaded, loaded.params)
  saved = json.loads((tmp_path / "two" / "generation_config.json").read_text())
  assert saved == {**older, "temperature": 0.6, "eos_token_id": [1], "pad_token_id": 0}


def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path):
  model = presets.load("tiny")
  (tmp_path / ".saving-abc").mkdir()
  (tmp_path / ".saving-abc" / "model.safetensors").write_bytes(b"half")
  presets.save(tmp_path, model, model.params)
  assert not list(tmp_path.glob(".saving-*"))


def test_a_tokenizer_without_words_is_refused(tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path, model, model.params)
  whole = json.loads((tmp_path / "tokenizer.json").read_text())
  whole["model"]["vocab"] = {word: number for word, number in whole["model"]["vocab"].items() if number < 3}
  (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
  with pytest.raises(ValueError, match="its tokenizer has no words"):
    presets.load(str(tmp_path))


def variants(model):
  """Two sets of weights of one model."""
  return model.params, jax.tree.map(lambda leaf: leaf + 1, model.params)


def saved(folder, model, params, size):
  weights.save_safetensors(folder, params, model.config, model.hf, model.tokenizer, max_shard_size=size)


@pytest.mark.parametrize(
  "sizes", [("5GB", "50KB"), ("50KB", "5GB"), ("50KB", "100KB"), ("100KB", "50KB"), ("5GB", "5GB")]
)
def test_saving_over_a_model_leaves_the_new_one_alone(sizes, tmp_path):
  model = presets.load("tiny")
  for params, size, folder in zip(variants(model), sizes, ("twice", "twice"), strict=True):
    saved(tmp_path / folder, model, params, size)
  (tmp_path / "twice" / "notes.txt").write_text("mine")
  saved(tmp_path / "once", model, variants(model)[1], sizes[1])
  loaded = presets.load(str(tmp_path / "twice")).params
  jax.tree.map(np.testing.assert_array_equal, loaded, variants(model)[1])
  names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("twice", "once")]
  assert names[0] - {"notes.txt"} == names[1] and (tmp_path / "twice" / "notes.txt").exists()


@pytest.mark.parametrize("size", ["5GB", "50KB"])
def test_a_save_that_fails_leaves_the_model_that_was_there(size, tmp_path, monkeypatch):
  model = presets.load("tiny")
  saved(tmp_path, model, model.params, "50KB")
  before = {path.name for path in tmp_path.iterdir()}

  def fail(*_, **__):
    raise OSError("no space left on device")

  monkeypatch.setattr(model.tokenizer, "save_pretrained", fail)
  with pytest.raises(OSError, match="no space left"):
    saved(tmp_path, model, variants(model)[1], size)
  assert {path.name for path in tmp_path.iterdir()} == before
  jax.tree.map(np.testing.assert_array_equal, presets.load(str(tmp_path)).params, model.params)


def test_of_a_single_file_and_shards_the_single_one_is_read_as_transformers_does(tmp_path):
  model = presets.load("tiny")
  one, other = variants(model)
  saved(tmp_path / "shards", model, one, "50KB")
  saved(tmp_path / "both", model, other, "5GB")
  for path in (tmp_path / "shards").glob("model*"):
    shutil.copy(path, tmp_path / "both")
  jax.tree.map(np.testing.assert_array_equal, presets.load(str(tmp_path / "both")).params, other)


def test_a_folder_without_the_words_of_its_tokenizer_is_refused(tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path, model, model.params)
  (tmp_path / "tokenizer.json").unlink()
  with pytest.raises(ValueError, match="tokenizer"):
    presets.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_no_class_of_tokenizers_makes_up_for_a_missing_file(kind, tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path, model, model.params)
  (tmp_path / "tokenizer.json").unlink()
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": kind}))
  with pytest.raises(ValueError, match="tokenizer"):
    presets.load(str(tmp_path))


def test_saving_over_adapters_and_other_templates_leaves_none_of_them(tmp_path):
  model = presets.load("tiny")
  adapters = lora.init(jax.random.key(0), model.params, rank=2)
  lora.save_peft(tmp_path, adapters, base_model="tiny")
  (tmp_path / "model_ema.safetensors").write_text("mine")
  several = presets.load("tiny")
  several.tokenizer.chat_template = {"default": "one", "tool_use": "two"}
  presets.save(tmp_path, several, several.params)
  assert presets.load(str(tmp_path)).tokenizer.chat_template == {"default": "one", "tool_use": "two"}
  presets.save(tmp_path, model, variants(model)[1])
  loaded = presets.load(str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, loaded.params, variants(model)[1])
  assert loaded.tokenizer.chat_template == model.tokenizer.chat_template
  assert (tmp_path / "model_ema.safetensors").read_text() == "mine"


def test_an_unembedding_of_other_values_is_not_tied(tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path, model, model.params)
  path = tmp_path / "model.safetensors"
  tensors = load_file(path)
  embedding = tensors["model.embed_tokens.weight"]
  save_file(tensors | {"lm_head.weight": embedding}, path)
  assert presets.load(str(tmp_path)).config.tie_embeddings
  save_file(tensors | {"lm_head.weight": 2 * embedding}, path)
  loaded = presets.load(str(tmp_path))
  assert not loaded.config.tie_embeddings
  np.testing.assert_array_equal(loaded.policy.unembed(loaded.params), 2 * embedding.T)
  presets.save(tmp_path / "again", loaded, loaded.params)
  again = presets.load(str(tmp_path / "again"))
  np.testing.assert_array_equal(again.policy.unembed(again.params), 2 * embedding.T)
  np.testing.assert_array_equal(again.params["embedding"], embedding)


def test_a_configuration_without_an_end_has_that_of_its_tokenizer_alone(tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path, model, model.params)
  config = json.loads((tmp_path / "config.json").read_text())
  del config["eos_token_id"]
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "generation_config.json").unlink()
  loaded = presets.load(str(tmp_path))
  assert LlamaConfig().eos_token_id == 2 and loaded.eos_tokens == (1,)
  presets.save(tmp_path / "again", loaded, loaded.params)
  assert presets.load(str(tmp_path / "again")).eos_tokens == (1,)


def test_yarn_takes_the_original_length_from_where_transformers_does(tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path, model, model.params)
  config = json.loads((tmp_path / "config.json").read_text())
  del config["rope_parameters"]
  config |= {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 256}
  config |= {"original_max_position_embeddings": 64}
  (tmp_path / "config.json").write_text(json.dumps(config))
  rope = presets.load(str(tmp_path)).config.ropes[0]
  assert (rope["original_max_position_embeddings"], rope["factor"]) == (64, 4.0)
  config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
  del config["original_max_position_embeddings"]
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert presets.load(str(tmp_path)).config.ropes[0]["original_max_position_embeddings"] == 32


@pytest.mark.parametrize("switch", [{}, {"use_sliding_window": False}, {"use_sliding_window": True}])
def test_a_window_of_mistral_counts_whatever_the_switch_says(switch):
  windows = lambda config: families.transformer_config(config).windows  # noqa: E731
  assert windows(MistralConfig(sliding_window=8, num_hidden_layers=2, **switch)) == (8, 8)
  assert windows(MistralConfig(sliding_window=None, **switch)) == ()
  assert windows(Qwen2Config(sliding_window=8, use_sliding_window=False)) == ()
  some = Qwen2Config(sliding_window=8, use_sliding_window=True, num_hidden_layers=3, max_window_layers=2)
  assert windows(some) == (None, None, 8)
