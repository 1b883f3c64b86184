"""GGUF files: a small one written here, and SmolLM2's against what transformers makes of it with torch."""

import json
from pathlib import Path
from types import SimpleNamespace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.models import families, gguf_file, presets, weights
from rl_jax.models.rope import frequencies
from rl_jax.sampling.generate import make_generate
from rl_jax.sampling.samplers import SamplingParams

PARITY = Path(__file__).parents[1] / "data" / "parity"


def interleave(array, heads):
  """Llama's rotary layout in GGUF files: channel i and channel i + head_dim / 2 next to each other."""
  return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def write(path, architecture="llama", pre="gpt-2", drop=(), split=0, factors=None, theta=None):
  """Writes the family `llama` of the parity data as a GGUF file with a tokenizer of 48 tokens."""
  hf = families.read(str(PARITY / "llama"))
  config = families.transformer_config(hf)
  params = weights.load_safetensors(PARITY / "llama", config, hf)
  writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
  writer.add_block_count(config.num_layers)
  writer.add_context_length(64)
  writer.add_embedding_length(config.embed_dim)
  writer.add_feed_forward_length(config.mlp_dim)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  writer.add_rope_freq_base(theta or config.ropes[0]["rope_theta"])
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(pre)
  letters = [chr(ord("a") + i) for i in range(26)]
  tokens = ["<end>", *letters, "ab", "abc", "Ġ", "xyz"]
  tokens += [f"<{i}>" for i in range(48 - len(tokens))]
  writer.add_token_list(tokens)
  writer.add_token_types([3] + [1] * 47)
  writer.add_token_merges(["a b", "ab c"])
  writer.add_eos_token_id(0)
  writer.add_bos_token_id(0)
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
  for name, tensor in weights.named_tensors(params, config, families.tensors("llama")):
    if ".q_proj." in name:
      tensor = interleave(tensor, config.num_heads)
    if ".k_proj." in name:
      tensor = interleave(tensor, config.num_kv_heads)
    stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if stored not in drop:
      writer.add_tensor(stored, np.ascontiguousarray(tensor, np.float32))
  if factors is not None:
    writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path, params


def test_weights_and_tokenizer_of_a_small_file(tmp_path):
  path, params = write(tmp_path / "small.gguf")
  model = presets.load(str(path))
  jax.tree.map(np.testing.assert_array_equal, model.params, params)
  assert model.tokenizer("abcd<end>")["input_ids"] == [28, 4, 0]
  assert model.tokenizer.decode([28, 29, 4]) == "abc d"
  assert model.tokenizer.eos_token_id == 0


def test_a_file_in_parts(tmp_path):
  write(tmp_path / "small.gguf", split=5)
  parts = sorted(path.name for path in tmp_path.iterdir())
  assert len(parts) > 2 and parts[0].startswith("small-00001-of-")
  expected = presets.load(str(write(tmp_path / "whole.gguf")[0])).params
  jax.tree.map(np.testing.assert_array_equal, presets.load(str(tmp_path / parts[0])).params, expected)
  with pytest.raises(ValueError, match="is part 2 of . *: give the first one"):
    presets.load(str(tmp_path / parts[1]))
  (tmp_path / parts[2]).unlink()
  with pytest.raises(ValueError, match="no GGUF file at .*-00003-of-"):
    presets.load(str(tmp_path / parts[0]))


# What the tokenizer files of these models cut text into, by hand.
TEXT = "It's 12345 men,\n\n  isn't it? x=7"
PIECES = {
  "llama-bpe": ["It", "'s", " ", "123", "45", " men", ",\n\n", " ", " isn", "'t", " it", "?", " x", "=", "7"],
  "qwen2": ["It", "'s", " ", *"12345", " men", ",\n\n", " ", " isn", "'t", " it", "?", " x", "=", "7"],
  "deepseek-v3": ["It", "'s", " ", "123", "45", " men", ",\n\n", " ", " isn", "'t", " it", "?", " x", "=", "7"],
}
PIECES["deepseek-coder"] = [
  "It",
  "'",
  "s",
  " ",
  *"12345",
  " men",
  ",",
  "\n",
  "\n",
  " ",
  " isn",
  "'",
  "t",
  " it",
  "?",
  " x",
  "=",
  "7",
]
PIECES |= {"llama3": PIECES["llama-bpe"], "deepseek-r1-qwen": PIECES["qwen2"]}


@pytest.mark.parametrize("pre", PIECES)
def test_text_is_cut_as_the_file_says(tmp_path, pre):
  reader = gguf_file.open_gguf(write(tmp_path / "small.gguf", pre=pre)[0])
  cut = gguf_file.read_tokenizer(reader).backend_tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
  assert [TEXT[start:end] for _, (start, end) in cut] == PIECES[pre]


@pytest.mark.parametrize(("pre", "tokens"), [("llama-bpe", [0, 30]), ("qwen2", [24, 25, 26])])
def test_llama3s_words_need_no_merges(tmp_path, pre, tokens):
  """No merges lead to "xyz", which is a token."""
  tokenizer = gguf_file.read_tokenizer(gguf_file.open_gguf(write(tmp_path / "small.gguf", pre=pre)[0]))
  assert tokenizer("xyz")["input_ids"] == tokens


def test_llama3s_scaling_of_rope_is_read_from_its_factors(tmp_path):
  theta = 5e5  # by which, as in Llama 3, the slowest frequency has the whole factor
  wanted = dict(gguf_file.LLAMA3, factor=8.0, rope_theta=theta)
  inverse = [frequencies(each, 8).inverse for each in ({"rope_theta": theta}, wanted)]
  path, _ = write(tmp_path / "scaled.gguf", factors=inverse[0] / inverse[1], theta=theta)
  (found,) = presets.load(str(path)).config.ropes
  assert {name: found[name] for name in wanted} == pytest.approx(wanted)
  with pytest.raises(ValueError, match="'rope_freqs.weight' is not Llama 3's scaling"):
    presets.load(str(write(tmp_path / "other.gguf", factors=[1.0, 2.0, 3.0, 4.0])[0]))


def test_llama3s_text_begins_as_the_model_has_learned(tmp_path):
  """Files of it often leave out that a beginning of sequence is added."""
  for pre, begins in (("llama-bpe", True), ("qwen2", False)):
    path, _ = write(tmp_path / f"{pre}.gguf", pre=pre)
    tokens = gguf_file.read_tokenizer(gguf_file.open_gguf(path))("ab")["input_ids"]
    assert (tokens[0] == 0) == begins, pre


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_truncated_file(tmp_path, share):
  path, _ = write(tmp_path / "whole.gguf")
  data = path.read_bytes()
  cut = tmp_path / "cut.gguf"
  cut.write_bytes(data[: int(len(data) * share)])
  with pytest.raises(ValueError, match="cut short"):
    presets.load(str(cut))


def test_other_files(tmp_path):
  with pytest.raises(ValueError, match="no GGUF file at"):
    presets.load(str(tmp_path / "absent.gguf"))
  (tmp_path / "text.gguf").write_text("hello")
  with pytest.raises(ValueError, match="is no GGUF file"):
    presets.load(str(tmp_path / "text.gguf"))
  with pytest.raises(ValueError, match="missing tensors: model.layers.0.mlp.up_proj.weight"):
    presets.load(str(write(tmp_path / "less.gguf", drop=("blk.0.ffn_up.weight",))[0]))
  with pytest.raises(ValueError, match="pre-tokenizer 'falcon' is not supported"):
    presets.load(str(write(tmp_path / "falcon.gguf", pre="falcon")[0]))


def test_unsupported_architecture(tmp_path):
  with pytest.raises(ValueError, match="GGUF architecture 'gemma' is not supported"):
    presets.load(str(write(tmp_path / "gemma.gguf", architecture="gemma")[0]))


@pytest.fixture(scope="module")
def smollm2():
  return presets.load("smollm2")


EXPECTED = json.loads((PARITY / "smollm2.json").read_text())


def test_smollm2_tokenizer_matches_transformers(smollm2):
  for text, ids in EXPECTED["encoded"].items():
    assert smollm2.tokenizer(text)["input_ids"] == ids
  chat = smollm2.tokenizer.apply_chat_template(EXPECTED["chat"], add_generation_prompt=True, tokenize=False)
  assert chat == EXPECTED["chat_text"]


def test_smollm2_greedy_text_matches_torch(smollm2):
  model, tokenizer = smollm2.policy, smollm2.tokenizer
  rows = EXPECTED["generations"]
  length = max(len(row["prompt_ids"]) for row in rows)
  prompts, mask = np.zeros((2, 3, length), np.int32)
  for i, row in enumerate(rows):
    assert tokenizer(row["prompt"])["input_ids"] == row["prompt_ids"]
    prompts[i, : len(row["prompt_ids"])], mask[i, : len(row["prompt_ids"])] = row["prompt_ids"], 1
  generate = jax.jit(make_generate(model, group_size=1, max_new_tokens=24, pad_token=2))
  out = generate(smollm2.params, prompts, mask, jnp.array([2]), jax.random.key(0), SamplingParams(0.0))
  for i, row in enumerate(rows):
    ids = np.asarray(out.tokens[i, 0])[np.asarray(out.mask[i, 0])].tolist()
    assert tokenizer.decode(ids) == row["completion"]
    assert ids == row["completion_ids"]


@pytest.mark.parametrize("types", [[3, 1], [3, 1, 1, 1]])
def test_every_token_has_one_type(types):
  fields = {"model": "gpt2", "tokens": ["a", "b", "ab"], "merges": ["a b"], "token_type": types}
  named = {
    f"tokenizer.ggml.{name}": SimpleNamespace(contents=lambda value=value: value) for name, value in fields.items()
  }
  with pytest.raises(ValueError, match=f"token_type' must have 3 entries, got {len(types)}"):
    gguf_file.read_tokenizer(gguf_file.Gguf(named.get, []))
