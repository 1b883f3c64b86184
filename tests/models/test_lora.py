"""Adapters: what they change, what is trained, and the files that PEFT reads."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from rl_jax.models import families, lora, presets, weights
from rl_jax.models.transformer import policy
from rl_jax.objectives import sft
from rl_jax.objectives.base import Inputs
from rl_jax.state import Batch, Sequences, TrainState
from rl_jax.train.forward import make_forward
from rl_jax.train.step import make_train_step

MODEL = presets.load("tiny")
DATA = Path(__file__).parents[1] / "data"


def trained(key=0, **options):
  """Adapters with a B that is not 0."""
  adapters = lora.init(jax.random.key(key), MODEL.params, **options)
  return {
    name: adapter._replace(b=jax.random.normal(jax.random.key(i), adapter.b.shape))
    for i, (name, adapter) in enumerate(adapters.items())
  }


def test_merging_adds_the_scaled_product_to_the_adapted_matrices_alone():
  adapters = trained(rank=3, targets=("query", "down"))
  merged = lora.merge(MODEL.params, adapters, alpha=6.0)
  for name in lora.MODULES:
    before, after = (np.asarray(tree["layers"][name]["kernel"]) for tree in (MODEL.params, merged))
    expected = before
    if name in adapters:
      a, b = (np.asarray(side) for side in adapters[name])
      expected = np.stack([w + 2 * x @ y for w, x, y in zip(before, a, b, strict=True)])
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)


def test_only_adapters_are_trained_and_their_gradient_is_that_of_the_weight_projected():
  score = make_forward(MODEL.policy)
  adapters = trained(rank=2, targets=("value",))
  tokens = jnp.array([[[5, 6, 7]]])
  sequences = Sequences(jnp.array([[3, 4]]), jnp.ones((1, 2), bool), tokens, jnp.ones(tokens.shape, bool))

  def adapted_score(params, sequences):
    return score(lora.attach(params["base"], params["adapters"]), sequences)

  optimizer = optax.sgd(1.0)
  params = {"base": MODEL.params, "adapters": adapters}
  state = TrainState.create(params, optimizer, frozen=("base",))
  step = make_train_step(adapted_score, sft.objective(), optimizer, frozen=("base",))
  state, metrics = step(state, Batch(sequences, Inputs(mask=jnp.ones(tokens.shape))))
  assert float(metrics["skipped"].total) == 0
  for one, other in zip(jax.tree.leaves(state.params["base"]), jax.tree.leaves(MODEL.params), strict=True):
    np.testing.assert_array_equal(one, other)
  full = jax.grad(lambda params: -score(params, sequences).logp.mean())(lora.merge(MODEL.params, adapters))
  weight = np.asarray(full["layers"]["value"]["kernel"])
  a, b = (np.asarray(side) for side in adapters["value"])
  expected_a, expected_b = 16 * weight @ b.transpose(0, 2, 1), 16 * a.transpose(0, 2, 1) @ weight
  np.testing.assert_allclose(a - np.asarray(state.params["adapters"]["value"].a), expected_a, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(b - np.asarray(state.params["adapters"]["value"].b), expected_b, rtol=1e-4, atol=1e-5)


TOKENS, POSITIONS = jnp.array([[3, 4, 5, 6]]), jnp.array([[0, 1, 2, 3]])


@pytest.mark.parametrize("remat", [False, True])
def test_adapters_beside_the_base_do_what_they_do_merged_into_it(remat):
  model = presets.load("tiny", remat=remat)
  adapters = trained(rank=3)
  beside, merged = lora.attach(model.params, adapters, alpha=2.0), lora.merge(model.params, adapters, alpha=2.0)
  hidden = [model.policy.apply(params, TOKENS, POSITIONS).hidden for params in (beside, merged)]
  np.testing.assert_allclose(*hidden, rtol=2e-4, atol=2e-4)
  np.testing.assert_array_equal(model.policy.unembed(beside), model.policy.unembed(merged))
  prefix = model.policy.apply(beside, TOKENS[:, :2], POSITIONS[:, :2]).kv
  cache = model.policy.empty_cache((1, 1), 2)
  for place in (2, 3):
    out = model.policy.apply(
      beside, TOKENS[:, None, place : place + 1], POSITIONS[:, None, place : place + 1],
      prefix=prefix, cache=cache, cache_index=place - 2,
    )  # fmt: skip
    cache = out.kv
    np.testing.assert_allclose(out.hidden[:, 0, 0], hidden[0][:, place], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-5])
def test_a_small_update_is_not_lost_on_a_bfloat16_base(size):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), MODEL.params)
  exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)  # the same numbers in float32
  adapters = {name: adapter._replace(b=size * adapter.b) for name, adapter in trained(rank=2).items()}

  def logits(params):
    return MODEL.policy.apply(params, TOKENS, POSITIONS).hidden @ MODEL.policy.unembed(params).astype(jnp.float32)

  moved = logits(lora.attach(half, adapters)) - logits(half)
  expected = logits(lora.attach(exact, adapters)) - logits(exact)
  assert np.linalg.norm(moved - expected) < 0.02 * np.linalg.norm(expected)
  saved = lora.merge(half, adapters)["layers"]["query"]["kernel"]
  update = 16 * np.einsum("lir,lro->lio", *adapters["query"])
  np.testing.assert_allclose(saved - half["layers"]["query"]["kernel"].astype(jnp.float32), update, atol=1e-7)


def test_bfloat16_adapters_are_multiplied_in_float32(tmp_path):
  adapters = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), trained(rank=64, targets=("up",)))
  lora.save_peft(tmp_path, adapters, alpha=64.0, base_model="tiny")
  loaded = presets.load(str(tmp_path)).params["layers"]["up"]["kernel"]
  a, b = (np.asarray(side, np.float64) for side in adapters["up"])
  np.testing.assert_allclose(loaded - MODEL.params["layers"]["up"]["kernel"], a @ b, rtol=1e-5, atol=1e-5)


def test_adapters_on_adapters_and_a_tokenizer_of_their_own(tmp_path):
  first, second = trained(0, rank=2, targets=("gate",)), trained(1, rank=3, targets=("gate", "query"))
  lora.save_peft(tmp_path / "first", first, alpha=8.0, base_model="tiny")
  lora.save_peft(tmp_path / "second", second, alpha=6.0, base_model=str(tmp_path / "first"))
  expected = lora.merge(lora.merge(MODEL.params, first, alpha=8.0), second, alpha=6.0)
  model = presets.load(str(tmp_path / "second"))
  jax.tree.map(np.testing.assert_array_equal, model.params, expected)
  assert model.tokenizer.chat_template == MODEL.tokenizer.chat_template
  own = presets.load("tiny").tokenizer
  own.chat_template = "{{ messages[0]['content'] }}"
  own.save_pretrained(tmp_path / "first")
  for name in ("first", "second"):
    assert presets.load(str(tmp_path / name)).tokenizer.chat_template == own.chat_template
  lora.save_peft(tmp_path / "first", first, base_model=str(tmp_path / "second"))
  with pytest.raises(ValueError, match="name no base model"):
    presets.load(str(tmp_path / "first"))


def test_the_optimizer_holds_nothing_for_what_is_frozen():
  params = {"base": MODEL.params, "adapters": trained(rank=1, targets=("query",))}
  state = TrainState.create(params, optax.adam(0.1), frozen=("base",))
  size = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
  assert size == 2 * sum(leaf.size for leaf in jax.tree.leaves(params["adapters"])) + 1
  with pytest.raises(ValueError, match="frozen names 'bass', which the parameters lack; they have adapters, base"):
    TrainState.create(params, optax.adam(0.1), frozen=("bass",))


def test_files_hold_what_peft_names(tmp_path):
  lora.save_peft(tmp_path, trained(rank=4, targets=("query", "down")), alpha=8.0, base_model="some/model")
  tensors = load_file(tmp_path / "adapter_model.safetensors")
  assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (4, 128)
  assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].shape == (64, 4)
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8.0, ["q_proj", "down_proj"])
  assert config["base_model_name_or_path"] == "some/model" and config["peft_type"] == "LORA"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"use_dora": True}, "use_dora is True, but 0 of 7 matrices have lora_magnitude_vector"),
    ({"alora_invocation_tokens": [3, 4]}, "use alora_invocation_tokens, which is not supported"),
    ({"lora_bias": True}, "use lora_bias, which is not supported"),
    *(
      ({"init_lora_weights": start}, f"init_lora_weights '{start}', which is not supported: it changes the base")
      for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq")
    ),
    ({"peft_type": "ADALORA"}, "are of the kind 'ADALORA'"),
    ({"bias": "lora_only"}, r"have biases \(bias 'lora_only'\)"),
    ({"r": 3}, "are not of rank 3"),
    ({"r": None}, "r in adapter_config.json must be an integer, got None"),
  ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
  lora.save_peft(tmp_path, trained(rank=4))
  config = json.loads((tmp_path / "adapter_config.json").read_text()) | change
  (tmp_path / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
  with pytest.raises(ValueError, match=message):
    lora.load_peft(tmp_path)


def test_unknown_tensors_and_missing_files_are_refused(tmp_path):
  with pytest.raises(ValueError, match="no readable adapter_config.json"):
    lora.load_peft(tmp_path)
  lora.save_peft(tmp_path, trained(rank=4))
  path = tmp_path / "adapter_model.safetensors"
  save_file(load_file(path) | {"base_model.model.lm_head.lora_A.weight": np.ones((2, 2))}, path)
  with pytest.raises(ValueError, match="unexpected tensors base_model.model.lm_head"):
    lora.load_peft(tmp_path)


def test_a_folder_of_adapters_is_a_model_of_its_base(tmp_path):
  adapters = trained(rank=2, targets=("gate",))
  lora.save_peft(tmp_path / "fits", adapters, alpha=8.0, base_model="tiny")
  loaded = presets.load(str(tmp_path / "fits")).params
  expected = lora.merge(MODEL.params, adapters, alpha=8.0)["layers"]["gate"]["kernel"]
  np.testing.assert_array_equal(loaded["layers"]["gate"]["kernel"], expected)
  lora.save_peft(tmp_path / "fits_not", adapters, base_model="small")
  with pytest.raises(
    ValueError, match=r"do not fit their base 'small': the adapter of 'gate' is for 2 layers of 64 x 1"
  ):
    presets.load(str(tmp_path / "fits_not"))
  lora.save_peft(tmp_path / "nameless", adapters)
  with pytest.raises(ValueError, match="name no base model"):
    presets.load(str(tmp_path / "nameless"))
  lora.save_peft(tmp_path / "own", adapters, base_model=str(tmp_path / "own"))
  with pytest.raises(ValueError, match="name no base model"):
    presets.load(str(tmp_path / "own"))


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
    lora.init(jax.random.key(0), MODEL.params, rank=0)
  with pytest.raises(ValueError, match="targets must be of query, .* got 'q_proj'"):
    lora.init(jax.random.key(0), MODEL.params, targets=("q_proj",))


@pytest.mark.parametrize("kind", ["rslora", "patterns", "dora", "saved"])
def test_adapters_as_peft_writes_them_give_what_it_computes(kind):
  """tests/data/make_parity.py made them with PEFT."""
  hf = families.read(str(DATA / "parity" / "llama"))
  config = families.transformer_config(hf)
  base = weights.load_safetensors(DATA / "parity" / "llama", config, hf)
  found = lora.load_peft(DATA / "adapters" / kind)
  merged = lora.merge(base, found.adapters, alpha=found.alpha, magnitudes=found.magnitudes)
  model = presets.Model(policy(config), merged, config, hf, None, ())
  model = presets._with_replaced(model, found.replaced)
  assert bool(found.magnitudes) == (kind == "dora") and bool(found.replaced) == (kind == "saved")
  tokens = jnp.asarray(np.load(DATA / "parity" / "llama" / "expected.npz")["tokens"])
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
  hidden = model.policy.apply(model.params, tokens, positions).hidden
  logp = jax.nn.log_softmax(hidden @ model.policy.unembed(model.params), axis=-1)
  expected = np.load(DATA / "adapters" / kind / "expected.npz")["log_probs"]
  np.testing.assert_allclose(logp, expected, rtol=0, atol=2e-4)


def test_a_base_on_the_hub_is_named_as_peft_names_it(tmp_path):
  lora.save_peft(tmp_path, trained(rank=2), base_model="org/name@v2")
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "v2")
  assert lora.load_peft(tmp_path).base_model == "org/name@v2"


def test_saved_modules_of_another_shape_or_name_are_refused():
  for name, shape in (("lm_head.weight", (3, 64)), ("model.layers.0.mlp.router.weight", (2, 2))):
    with pytest.raises(ValueError, match=f"they replace {name} by one of"):
      presets._with_replaced(MODEL, {name: np.zeros(shape, np.float32)})


def test_a_base_that_is_given_takes_the_place_of_the_one_that_files_name(tmp_path):
  adapters = trained(rank=2, targets=("query",))
  lora.save_peft(tmp_path / "one", adapters, base_model="/nowhere/base")
  lora.save_peft(tmp_path / "two", adapters, base_model=str(tmp_path / "one"))
  once = lora.merge(MODEL.params, adapters)
  for name, wanted in (("one", once), ("two", lora.merge(once, adapters))):
    found = presets.load(str(tmp_path / name), base="tiny").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)
  with pytest.raises(ValueError, match="unknown model '/nowhere/base'"):
    presets.load(str(tmp_path / "two"))
  with pytest.raises(ValueError, match="model 'tiny' is none of adapters: it takes no base"):
    presets.load("tiny", base="tiny")
