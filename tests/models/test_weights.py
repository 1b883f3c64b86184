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
from transformers import AutoConfig, AutoTokenizer, GPT2Config, LlamaConfig, Qwen2Config

from rl_jax.models import hf_config, presets, weights
from rl_jax.models.transformer import policy
from rl_jax.ops.log_probs import gather_log_probs

PARITY = Path(__file__).parents[1] / "data" / "parity"
FAMILIES = sorted(path.name for path in PARITY.iterdir() if path.is_dir())


def load(family):
  hf = hf_config.read(str(PARITY / family))
  config = hf_config.transformer_config(hf)
  return hf, config, policy(config), weights.load_safetensors(PARITY / family, config)


def log_probs(model, params, tokens, mask):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  hidden = model.apply(params, tokens, positions, mask=mask).hidden
  return jax.nn.log_softmax(hidden @ model.unembed(params), axis=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_match_torch(family):
  _, _, model, params = load(family)
  expected = np.load(PARITY / family / "expected.npz")
  tokens, mask = jnp.asarray(expected["tokens"]), jnp.asarray(expected["mask"])
  actual = jax.jit(log_probs, static_argnums=0)(model, params, tokens, mask)
  real = expected["mask"] == 1
  np.testing.assert_allclose(np.asarray(actual)[real], expected["log_probs"][real], rtol=0, atol=1e-4)


def test_every_gradient_matches_torch():
  _, config, model, params = load("llama")
  expected = np.load(PARITY / "llama" / "expected.npz")
  tokens, mask = jnp.asarray(expected["tokens"]), jnp.asarray(expected["mask"])

  def total(params):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    hidden = model.apply(params, tokens, positions, mask=mask).hidden
    logp = gather_log_probs((hidden @ model.unembed(params))[:, :-1], tokens[:, 1:])
    return jnp.sum(jnp.where(mask[:, 1:] == 1, logp, 0))

  gradients = dict(weights._tensors(jax.jit(jax.grad(total))(params), config))
  names = [name.removeprefix("grad/") for name in expected.files if name.startswith("grad/")]
  assert sorted(gradients) == sorted(names)
  for name in names:
    wanted = expected[f"grad/{name}"]
    np.testing.assert_allclose(gradients[name], wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize("family", ["llama", "llama_bias", "qwen2", "qwen3"])
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_saved_folder_holds_the_same_tensors_under_the_same_names(family, max_shard_size, tmp_path):
  hf, config, _, params = load(family)
  weights.save_safetensors(tmp_path, params, config, hf, max_shard_size=max_shard_size)
  assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")

  def tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}

  saved, original = tensors(tmp_path), tensors(PARITY / family)
  assert saved.keys() == original.keys()
  for name in saved:
    np.testing.assert_array_equal(saved[name], original[name])
  assert AutoConfig.from_pretrained(tmp_path).to_dict()["rope_parameters"] == hf.to_dict()["rope_parameters"]
  again = weights.load_safetensors(tmp_path, config)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_bfloat16_weights_round_trip(tmp_path):
  hf, config, _, params = load("llama")
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  weights.save_safetensors(tmp_path, half, config, hf)
  assert AutoConfig.from_pretrained(tmp_path).dtype == "bfloat16"
  again = weights.load_safetensors(tmp_path, config)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), again, half)


def damaged(tmp_path, change):
  folder = tmp_path / "model"
  shutil.copytree(PARITY / "llama", folder)
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors")
  return str(folder)


def load_folder(folder):
  return weights.load_safetensors(folder, hf_config.transformer_config(hf_config.read(folder)))


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
    (GPT2Config(), "model_type 'gpt2' is not supported; supported: llama"),
    (LlamaConfig(hidden_act="gelu"), "hidden_act must be 'silu'"),
    (Qwen2Config(use_sliding_window=True, sliding_window=128), "sliding_window"),
  ],
)
def test_unsupported_architectures_are_named(config, message):
  with pytest.raises(ValueError, match=message):
    hf_config.transformer_config(config)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_unsupported_rope_is_named(kind):
  rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]}
  hf = hf_config.read(str(PARITY / "llama"))
  hf.rope_parameters = rope
  model = policy(hf_config.transformer_config(hf))
  with pytest.raises(ValueError, match=f"rope_type must be one of .* got '{kind}'"):
    jax.eval_shape(model.init, jax.random.key(0))


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


def test_importing_asks_no_network_and_loads_no_torch():
  code = "import sys, socket; socket.socket.connect = None; import experiments.grpo; assert 'torch' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_parity_data_is_complete():
  assert len(FAMILIES) == 8 and len(json.loads((PARITY / "smollm2.json").read_text())["generations"]) == 3
