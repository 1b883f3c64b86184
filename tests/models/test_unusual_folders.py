"""Folders in less usual forms: settings that a family does not read, other names, tokens beyond the model's."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken

from rl_jax.models import families, heads, lora, presets, scorers, weights
from rl_jax.models.transformer import policy
from rl_jax.ops.log_probs import logits_of
from rl_jax.tasks import reading

PARITY = Path(__file__).parents[1] / "data" / "parity"


def copy(family, folder, **settings):
  """A parity folder with other settings, and its log-probs by transformers."""
  shutil.copytree(PARITY / family, folder)
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | settings))
  return np.load(PARITY / family / "expected.npz")


def log_probs(folder, tokens, mask):
  hf = families.read(str(folder))
  config = families.transformer_config(hf)
  params = weights.load_safetensors(folder, config, hf)
  if "unembedding" in params:
    config = families.transformer_config(hf, tie_embeddings=False)
  model = policy(config)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  hidden = model.apply(params, tokens, positions, mask=mask).hidden
  return jax.nn.log_softmax(logits_of(hidden, model.unembed(params), softcap=model.softcap), axis=-1)


def check(folder, expected):
  tokens, mask = jnp.asarray(expected["tokens"]), jnp.asarray(expected["mask"])
  real = expected["mask"] == 1
  actual = np.asarray(log_probs(folder, tokens, mask))
  np.testing.assert_allclose(actual[real], expected["log_probs"][real], rtol=0, atol=1e-4)


WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention"] * 2, "use_sliding_window": True}


@pytest.mark.parametrize(
  ("family", "settings"),
  [
    ("llama", WINDOW),
    ("olmo2", WINDOW),
    ("granite", WINDOW),
    ("gemma3", {"attn_logit_softcapping": 5.0}),
    ("llama", {"hidden_act": "swish"}),
  ],
)
def test_settings_that_a_family_does_not_read_change_nothing(tmp_path, family, settings):
  check(tmp_path / "model", copy(family, tmp_path / "model", **settings))


def test_layers_of_a_family_with_one_window_all_have_it():
  for model_type, layers in (("qwen3_moe", 2), ("phi3", 2), ("mistral", 2)):
    hf = families.AutoConfig.for_model(model_type, num_hidden_layers=layers, sliding_window=4, pad_token_id=0)
    hf.sliding_window, hf.layer_types = 4, ["full_attention"] * layers
    assert families.transformer_config(hf).windows == (4, 4)


@pytest.mark.parametrize(
  ("family", "settings", "message"),
  [
    ("llama", {"is_causal": False}, "is_causal of llama must be true, and use_bidirectional_attention off"),
    ("qwen3", {"use_bidirectional_attention": True}, "is_causal of qwen3 must be true, and use_bidirectional"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor of llama must be 1, got 0.5"),
    ("smollm3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor of smollm3 must be 1, got 0.5"),
    ("gemma3", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "of gemma3_text must be by type of"),
    ("qwen2", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "of qwen2 must be one for all layers"),
    (
      "llama",
      {"rope_parameters": {"rope_theta": 0.0, "rope_type": "default"}},
      "rope_theta of rope_parameters must be",
    ),
    ("llama", {"rms_norm_eps": -1.0}, "rms_norm_eps of llama must be positive, got -1.0"),
    ("gpt2", {"n_inner": -8}, "n_inner of gpt2 must be positive, got -8"),
    ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers of smollm3 must have one entry for each of"),
    ("qwen3_moe", {"num_experts_per_tok": 99}, "num_experts_per_tok of qwen3_moe must be between 1 and its"),
    ("gpt_oss", {"num_experts_per_tok": 0}, "num_experts_per_tok of gpt_oss must be between 1 and its"),
  ],
)
@pytest.mark.filterwarnings("ignore")
def test_settings_that_would_change_the_numbers_are_refused_by_name(tmp_path, family, settings, message):
  copy(family, tmp_path / "model", **settings)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(policy(families.transformer_config(families.read(str(tmp_path / "model")))).init, jax.random.key(0))


def rewrite(folder, change):
  path = folder / "model.safetensors"
  save_file(change(load_file(path)), path, metadata={"format": "pt"})


def tied(tmp_path, family="llama"):
  """A folder of a tied model, what its embedding is called, and its log-probs."""
  expected = dict(copy(family, tmp_path / "model"))
  name = weights.name_of(families.tensors(families.read(str(tmp_path / "model")).model_type), "embedding")
  path = tmp_path / "model" / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
  rewrite(tmp_path / "model", lambda each: {key: value for key, value in each.items() if key != weights.HEAD})
  expected["log_probs"] = log_probs(tmp_path / "model", *(jnp.asarray(expected[key]) for key in ("tokens", "mask")))
  return tmp_path / "model", name, expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_unembedding_that_is_another_one_counts_whatever_the_configuration_says(tmp_path, family):
  folder, _, expected = tied(tmp_path, family)
  rewrite(folder, lambda each: each | {weights.HEAD: 2 * embedding_of(each)})
  tokens, mask = jnp.asarray(expected["tokens"]), jnp.asarray(expected["mask"])
  found = np.asarray(log_probs(folder, tokens, mask))
  assert not np.allclose(found, expected["log_probs"], atol=1e-2)
  rewrite(folder, lambda each: each | {weights.HEAD: embedding_of(each)})
  np.testing.assert_array_equal(log_probs(folder, tokens, mask), expected["log_probs"])
  rewrite(folder, lambda each: each | {weights.HEAD: embedding_of(each)[:-1]})
  with pytest.raises(ValueError, match="mis-shaped tensors: lm_head.weight is"):
    log_probs(folder, tokens, mask)


def embedding_of(tensors):
  return next(value for name, value in tensors.items() if name.endswith(("embed_tokens.weight", "wte.weight")))


def test_a_tied_model_may_hold_its_unembedding_alone_or_be_saved_without_its_head(tmp_path):
  folder, name, expected = tied(tmp_path)
  rewrite(folder, lambda each: {key.removeprefix("model."): value for key, value in each.items()})
  check(folder, expected)
  rewrite(
    folder,
    lambda each: {weights.HEAD if key == name.removeprefix("model.") else key: value for key, value in each.items()},
  )
  check(folder, expected)


@pytest.mark.parametrize("stored", ["F8_E4M3", "F8_E5M2"])
def test_tensors_of_eight_bits_are_quantised(tmp_path, stored):
  copy("llama", tmp_path / "model")
  path = tmp_path / "model" / "model.safetensors"
  content = path.read_bytes()
  size = int.from_bytes(content[:8], "little")
  header = json.loads(content[8 : 8 + size])
  name = "model.norm.weight"
  start, end = header[name]["data_offsets"]
  header[name] |= {"dtype": stored, "shape": [end - start]}
  encoded = json.dumps(header).encode()
  path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + size :])
  with pytest.raises(ValueError, match=f"are quantised, as {name} shows"):
    log_probs(tmp_path / "model", jnp.zeros((1, 2), int), None)


def test_longrope_is_saved_with_all_that_it_needs(tmp_path):
  factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
  scaling = {"type": "longrope", "original_max_position_embeddings": 32, **factors}
  copy("llama", tmp_path / "model", rope_scaling=scaling, max_position_embeddings=64)
  path = tmp_path / "model" / "config.json"
  given = {name: value for name, value in json.loads(path.read_text()).items() if name != "rope_parameters"}
  path.write_text(json.dumps(given | {"rope_theta": 1e4}))
  hf = families.read(str(tmp_path / "model"))
  config = families.transformer_config(hf)
  assert config.ropes[0]["factor"] == 2.0 and config.ropes[0]["original_max_position_embeddings"] == 32
  weights.save_safetensors(tmp_path / "saved", weights.load_safetensors(tmp_path / "model", config, hf), config, hf)
  again = families.transformer_config(families.read(str(tmp_path / "saved"))).ropes[0]
  assert {name: again[name] for name in config.ropes[0]} == dict(config.ropes[0])


def test_tokens_that_the_model_has_not_are_refused_where_a_text_holds_them(folder):
  tokenizer = presets.load(str(folder)).tokenizer
  tokenizer.add_tokens([AddedToken("<image>", special=True), AddedToken("<pad2>", special=True)])
  tokenizer.pad_token = "<pad2>"
  tokenizer.save_pretrained(folder)
  model = presets.load(str(folder))
  assert len(model.tokenizer) == model.config.vocab_size + 2
  assert model.tokenizer.pad_token_id in model.eos_tokens  # padding must be a token of the model
  reader = reading.Reader(model.tokenizer, model.eos_tokens, vocab_size=model.config.vocab_size)
  assert reading.prompt_tokens(reader, "Hi")
  for prompt in ("<image>Hi", [{"role": "user", "content": "<image>"}]):
    with pytest.raises(ValueError, match="the text holds '<image>', token 99, and the model has 99 tokens"):
      reading.prompt_tokens(reader, prompt)


def test_a_vocabulary_of_more_words_than_the_model_has_is_refused(folder):
  presets.character_tokenizer("".join(map(chr, range(40, 200)))).save_pretrained(folder)
  with pytest.raises(ValueError, match="the tokenizer has 163 tokens, the model only 99"):
    presets.load(str(folder))


def test_special_tokens_are_saved_by_the_name_that_transformers_4_knows(folder, tmp_path):
  path = folder / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"additional_special_tokens": ["7", "8"]}))
  model = presets.load(str(folder))
  presets.save(tmp_path / "saved", model, model.params)
  settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
  assert settings["additional_special_tokens"] == ["7", "8"] and "extra_special_tokens" not in settings
  assert {"7", "8"} <= set(presets.load(str(tmp_path / "saved")).tokenizer.all_special_tokens)


def test_code_that_does_not_stand_beside_a_model_is_not_named(folder, tmp_path):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "own.Config"}}))
  model = presets.load(str(folder))
  presets.save(tmp_path / "saved", model, model.params)
  assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_ends_of_sequence_of_a_composite_count_wherever_they_stand(tmp_path):
  shutil.copytree(PARITY / "gemma3_images", tmp_path / "model")
  path = tmp_path / "model" / "config.json"
  given = json.loads(path.read_text())
  given.pop("eos_token_id", None)
  path.write_text(json.dumps(given | {"text_config": given["text_config"] | {"eos_token_id": [1, 7]}}))
  assert presets.configuration_of(tmp_path / "model")[0].eos_token_id == [1, 7]


# Adapters.


def save_adapters(folder, base="tiny", more=(), **settings):
  model = presets.load("tiny")
  adapters = lora.init(jax.random.key(1), model.params, rank=2, targets=("query", "up"))
  adapters = {name: each._replace(b=jnp.ones_like(each.b) / 50) for name, each in adapters.items()}
  lora.save_peft(folder, adapters, base_model=base)
  rewrite_adapters(folder, lambda tensors: tensors | dict(more))
  path = folder / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | settings))
  return lora.merge(model.params, adapters)


def rewrite_adapters(folder, change):
  path = folder / "adapter_model.safetensors"
  save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_reward_model_of_adapters_is_its_merged_base_with_the_head(tmp_path):
  score = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
  head = {"base_model.model.score.weight": score}
  settings = dict(task_type="SEQ_CLS", modules_to_save=["classifier", "score"])
  merged = save_adapters(tmp_path / "judge", more=head, **settings)
  model, kernel = scorers.load(str(tmp_path / "judge"))
  jax.tree.map(np.testing.assert_array_equal, model.params, merged)
  np.testing.assert_array_equal(kernel["out"]["kernel"], score.T)
  plain = presets.load("tiny")
  scorers.save(tmp_path / "base", plain, plain.params, heads.init_head(jax.random.key(0), 64, bias=False))
  save_adapters(tmp_path / "on_scores", base=str(tmp_path / "base"), more=head, **settings)
  again, kernel = scorers.load(str(tmp_path / "on_scores"))
  jax.tree.map(np.testing.assert_array_equal, again.params, merged)
  first = scorers.fingerprint(str(tmp_path / "judge"))
  assert first == scorers.fingerprint(str(tmp_path / "on_scores")) != ""
  rewrite_adapters(tmp_path / "on_scores", lambda tensors: {name: each + 1 for name, each in tensors.items()})
  assert scorers.fingerprint(str(tmp_path / "on_scores")) != first
  with pytest.raises(ValueError, match="are a reward model's, as score.weight shows"):
    presets.load(str(tmp_path / "judge"))
  save_adapters(tmp_path / "policy")
  with pytest.raises(ValueError, match="are no reward model's: they have no score.weight of one label"):
    scorers.load(str(tmp_path / "policy"))


def test_a_whole_embedding_beside_adapters_takes_the_place_of_the_bases(tmp_path):
  embedding = np.asarray(presets.load("tiny").params["embedding"]) + 1
  save_adapters(tmp_path / "own", more={"base_model.model.model.embed_tokens.weight": embedding})
  np.testing.assert_array_equal(presets.load(str(tmp_path / "own")).params["embedding"], embedding)
  save_adapters(
    tmp_path / "larger", more={"base_model.model.model.embed_tokens.weight": np.ones((101, 64), np.float32)}
  )
  message = r"they replace model.embed_tokens.weight by one of \[101, 64\]; the model has \[99, 64\]"
  with pytest.raises(ValueError, match=message):
    presets.load(str(tmp_path / "larger"))


@pytest.mark.parametrize("layer", [0, 1])
def test_adapters_may_be_in_some_layers_alone(tmp_path, layer):
  merged = save_adapters(tmp_path / "own", layers_to_transform=[layer])
  plain = presets.load("tiny").params
  rewrite_adapters(
    tmp_path / "own",
    lambda tensors: {name: each for name, each in tensors.items() if f".layers.{layer}." in name or "up" in name},
  )
  found = presets.load(str(tmp_path / "own")).params["layers"]
  np.testing.assert_array_equal(found["up"]["kernel"], merged["layers"]["up"]["kernel"])
  for each in range(2):
    wanted = (merged if each == layer else plain)["layers"]["query"]["kernel"][each]
    np.testing.assert_array_equal(found["query"]["kernel"][each], wanted)
  path = tmp_path / "own" / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_to_transform": None}))
  message = "is for 1 layers of 64 x 64" if layer == 0 else "none of 'query' in layer 0, which no setting leaves out"
  with pytest.raises(ValueError, match=message):
    presets.load(str(tmp_path / "own"))


def test_adapters_of_a_model_of_text_and_images_have_its_names(tmp_path):
  merged = save_adapters(tmp_path / "own")
  rewrite_adapters(
    tmp_path / "own",
    lambda tensors: {
      name.replace("model.layers", "model.language_model.layers"): each for name, each in tensors.items()
    },
  )
  jax.tree.map(np.testing.assert_array_equal, presets.load(str(tmp_path / "own")).params, merged)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"modules_to_save": ["lm_head"]}, "modules_to_save names 'lm_head', but adapter_model.safetensors has no such"),
    ({"use_dora": True}, "use_dora is True, but 0 of 2 matrices have lora_magnitude_vector"),
  ],
)
def test_adapters_that_lack_what_their_settings_name_are_refused(tmp_path, settings, message):
  save_adapters(tmp_path / "own", **settings)
  with pytest.raises(ValueError, match=message):
    presets.load(str(tmp_path / "own"))


def test_patterns_count_where_alpha_is_0(tmp_path):
  save_adapters(tmp_path / "own", lora_alpha=0, alpha_pattern={"q_proj": 4})
  save_adapters(tmp_path / "four", lora_alpha=4)
  changed, wanted = (presets.load(str(tmp_path / name)).params["layers"] for name in ("own", "four"))
  np.testing.assert_allclose(changed["query"]["kernel"], wanted["query"]["kernel"], rtol=0, atol=1e-6)
  np.testing.assert_array_equal(changed["up"]["kernel"], presets.load("tiny").params["layers"]["up"]["kernel"])


@pytest.mark.parametrize("layers", [[0], [1]])
def test_dora_in_some_layers_alone_is_refused(tmp_path, layers):
  magnitudes = {
    f"base_model.model.model.layers.{layer}.{module}.lora_magnitude_vector": np.ones(size, np.float32)
    for layer in layers
    for module, size in (("self_attn.q_proj", 64), ("mlp.up_proj", 128))
  }
  save_adapters(tmp_path / "own", more=magnitudes, use_dora=True, layers_to_transform=layers)
  rewrite_adapters(
    tmp_path / "own", lambda tensors: {name: each for name, each in tensors.items() if f".layers.{layers[0]}." in name}
  )
  with pytest.raises(ValueError, match="use_dora in some layers alone is not supported"):
    presets.load(str(tmp_path / "own"))


def test_adapters_of_what_reads_images_are_left_out_as_that_is(tmp_path):
  tower = {
    f"base_model.model.model.vision_tower.layers.0.q.lora_{side}.weight": np.ones((2, 4), np.float32) for side in "AB"
  }
  merged = save_adapters(tmp_path / "own", more=tower)
  jax.tree.map(np.testing.assert_array_equal, presets.load(str(tmp_path / "own")).params, merged)
