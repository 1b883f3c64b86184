"""What is saved reads the same in `transformers` 4 and 5, each with torch in a virtual environment of its own."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filelock import FileLock

from rl_jax.models import families, gguf_file, lora, presets, scorers
from rl_jax.models.transformer import policy
from rl_jax.ops.log_probs import gather_log_probs
from rl_jax.tasks import examples, reading
from rl_jax.tasks.preferences import Preferences, Ranking
from rl_jax.train.actors import load_reward_model
from rl_jax.train.forward import make_last_value

ROOT = Path(__file__).parents[2]
VERSIONS = {"4": "4.57.6", "5": "5.24.0"}
TORCH = "torch==2.13.0"

READ = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, text = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
tokens = tokenizer(text, return_tensors="pt")["input_ids"]
with torch.no_grad():
  logp = torch.log_softmax(model(tokens).logits.float(), dim=-1)[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0]
ends = model.generation_config.eos_token_id
chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
print(json.dumps(dict(
  tokens=tokens[0].tolist(), logp=logp.tolist(), ends=ends if isinstance(ends, list) else [ends], chat=chat,
  temperature=model.generation_config.temperature, dtype=str(model.dtype),
)))
"""


SCORE = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, *said = sys.argv[1:]
model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
asked = [{"role": "user", "content": "17 + 25 = ?"}]
chats = [[*asked, {"role": "assistant", "content": each}] for each in said]
texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
with torch.no_grad():
  print(json.dumps(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()))
"""


@pytest.fixture(scope="module", params=VERSIONS.values(), ids=VERSIONS.keys())
def python(request):
  """The interpreter of an environment with that version, which is made where it is not there."""
  folder = ROOT / f".venv-transformers-{request.param}"
  interpreter, done = folder / "bin" / "python", folder / ".done"
  with FileLock(f"{folder}.lock"):  # several processes run tests
    if not done.exists():
      subprocess.run([sys.executable, "-m", "venv", folder], check=True)
      packages = [TORCH, f"transformers=={request.param}", "jinja2"]
      subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *packages], check=True)
      done.touch()
  return interpreter


def tiny(rope):
  model = presets.load("tiny")
  model.hf.rope_parameters = rope
  model = model._replace(generation={"temperature": 0.7, "do_sample": True})
  return model, model.params


def adapted():
  model = presets.load("tiny")
  adapters = lora.init(jax.random.key(0), model.params, rank=2)
  adapters = {name: adapter._replace(b=adapter.b + 0.05) for name, adapter in adapters.items()}
  base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
  return model, lora.merge(base, adapters)


def with_smollm2s_tokenizer():
  """A small random model with the words of a real one."""
  reader = gguf_file.open_gguf(presets._smollm2_path())
  hf, tokenizer = gguf_file.read_config(reader), gguf_file.read_tokenizer(reader)
  hf.update(dict(hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3, head_dim=16))
  hf.num_key_value_heads = 3
  config = families.transformer_config(hf)
  params = policy(config).init(jax.random.key(0))
  return presets.Model(policy(config), params, config, hf, tokenizer, (2,)), params


@pytest.mark.slow
def test_both_versions_score_as_the_reward_model_that_was_saved(python, tmp_path):
  model, params = with_smollm2s_tokenizer()
  kernel = jax.random.normal(jax.random.key(1), (model.config.embed_dim, 1))
  scorers.save(tmp_path, model, params, {"out": {"kernel": kernel}})
  answers = ("42", "It is forty-two, as everybody knows.")
  environment = {"HF_HUB_OFFLINE": "1", "PATH": ""}
  run = subprocess.run([python, "-c", SCORE, tmp_path, *answers], capture_output=True, text=True, env=environment)
  assert run.returncode == 0, run.stderr[-2000:]
  reader = reading.Reader(model.tokenizer, model.eos_tokens)
  ranking = Ranking([{"role": "user", "content": "17 + 25 = ?"}], tuple(_said(each) for each in answers))
  encoded, _ = examples.encode_rankings(reader, Preferences([ranking], Counter()), max_tokens=200, whole=True)
  sequences, _ = examples.ranking_sequences(encoded, 2)
  judge = load_reward_model(str(tmp_path), model.tokenizer, max_tokens=200)
  scores = jax.jit(make_last_value(judge.model))(judge.params, sequences)
  np.testing.assert_allclose(scores[0], json.loads(run.stdout.splitlines()[-1]), rtol=0, atol=2e-4)


def _said(words):
  return [{"role": "assistant", "content": words}]


def with_special_tokens():
  model = presets.load("tiny")
  model.tokenizer.add_special_tokens({"additional_special_tokens": ["7", "8"]})
  return model, model.params


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS = {
  "theta": lambda: tiny({"rope_type": "default", "rope_theta": 1e6}),
  "llama3": lambda: tiny(LLAMA3 | {"original_max_position_embeddings": 32}),
  "linear": lambda: tiny({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
  "adapters on bfloat16": adapted,
  "special tokens": with_special_tokens,
  "the tokenizer of smollm2": with_smollm2s_tokenizer,
}


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_both_versions_read_what_was_saved(python, make, tmp_path):
  model, params = make()
  presets.save(tmp_path, model, params)
  text = "The quick brown fox jumps over the lazy dog, and 17 + 25 = 42."
  environment = {"HF_HUB_OFFLINE": "1", "PATH": ""}
  run = subprocess.run([python, "-c", READ, tmp_path, text], capture_output=True, text=True, env=environment)
  assert run.returncode == 0, run.stderr[-2000:]
  read = json.loads(run.stdout.splitlines()[-1])
  loaded = presets.load(str(tmp_path))
  tokens = jnp.asarray(loaded.tokenizer(text)["input_ids"])
  assert read["tokens"] == tokens.tolist() and sorted(read["ends"]) == list(model.eos_tokens)
  assert read["dtype"] == "torch.float32" and model.generation.get("temperature") in (None, read["temperature"])
  rendered = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
  assert read["chat"] == rendered
  hidden = jax.jit(loaded.policy.apply)(loaded.params, tokens[None], jnp.arange(tokens.size)[None]).hidden
  ours = gather_log_probs((hidden @ loaded.policy.unembed(loaded.params))[0, :-1], tokens[1:])
  np.testing.assert_allclose(ours, read["logp"], rtol=0, atol=2e-4)
