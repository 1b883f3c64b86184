"""Reward models as sequence classifiers with one label: read as transformers made them, and written."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rl_jax import tasks
from rl_jax.devices import Devices, make_mesh
from rl_jax.models import families, gguf_file, presets, scorers, weights
from rl_jax.state import Sequences
from rl_jax.tasks import examples, reading
from rl_jax.tasks.preferences import Preferences, Ranking
from rl_jax.tasks.text import Ending, make_prompts
from rl_jax.train.actors import load_reward_model
from rl_jax.train.forward import make_last_value

MADE = Path(__file__).parents[1] / "data" / "scorer"


@pytest.fixture
def folder(tmp_path):
  """What transformers made, with a tokenizer of as many words."""
  tokenizer = presets.character_tokenizer("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGH")
  shutil.copytree(MADE, tmp_path / "judge")
  tokenizer.save_pretrained(tmp_path / "judge")
  return tmp_path / "judge"


def scores_of(folder):
  """Scores of the rows that transformers scored, the first two tokens being the prompt's."""
  expected = np.load(MADE / "expected.npz")
  tokens = jnp.asarray(expected["tokens"])
  real = tokens != 47
  sequences = Sequences(tokens[:, :2], real[:, :2], tokens[:, None, 2:], real[:, None, 2:])
  tokenizer = presets.tokenizer_of(folder)
  judge = load_reward_model(str(folder), tokenizer, max_tokens=12)
  devices = Devices(make_mesh(data=1, devices=jax.devices()[:1]))
  return judge.make_reward_model(devices)(sequences)[:, 0], expected["scores"]


def test_scores_are_those_of_transformers(folder):
  np.testing.assert_allclose(*scores_of(folder), rtol=0, atol=1e-4)


def test_what_is_saved_scores_alike(folder):
  model, head = scorers.load(str(folder))
  scorers.save(folder / "again", model, model.params, head)
  np.testing.assert_allclose(*scores_of(folder / "again"), rtol=0, atol=1e-4)
  saved, made = load_file(folder / "again" / "model.safetensors"), load_file(MADE / "model.safetensors")
  assert saved.keys() == made.keys()
  for name in made:
    np.testing.assert_array_equal(saved[name], made[name])
  settings = json.loads((folder / "again" / "config.json").read_text())
  assert settings["architectures"] == ["Qwen2ForSequenceClassification"] and len(settings["id2label"]) == 1
  assert settings["pad_token_id"] == 0 and scorers.load(str(folder / "again"))[0].tokenizer.pad_token_id == 0


def test_a_model_that_is_not_tied_loses_its_words_to_choose(tmp_path):
  model = presets.load("tiny")
  model.hf.tie_word_embeddings = False
  config = families.transformer_config(model.hf)
  params = model.params | {"unembedding": jnp.ones((config.embed_dim, config.vocab_size))}
  head = {"out": {"kernel": jnp.ones((config.embed_dim, 1))}}
  scorers.save(tmp_path, model._replace(config=config), params, head)
  assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
  again, _ = scorers.load(str(tmp_path))
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize(
  ("name", "tensor", "message"),
  [
    ("score.weight", np.ones((5, 32), np.float32), r"score.weight of \[5, 32\], not one of \[1, 32\]"),
    ("score.weight", None, "they have no score.weight"),
    ("score.bias", np.ones(1, np.float32), "unexpected tensors: score.bias"),
  ],
)
def test_what_gives_not_one_number_is_refused(folder, name, tensor, message):
  tensors = load_file(folder / "model.safetensors") | {name: tensor}
  save_file({name: each for name, each in tensors.items() if each is not None}, folder / "model.safetensors")
  with pytest.raises(ValueError, match=message):
    scorers.load(str(folder))


def test_a_reward_model_is_no_policy_and_a_policy_no_reward_model(folder, tmp_path):
  with pytest.raises(ValueError, match="are a reward model's, as score.weight shows"):
    presets.load(str(folder))
  model = presets.load("tiny")
  presets.save(tmp_path / "policy", model, model.params)
  with pytest.raises(ValueError, match="no reward model's: they have no score.weight"):
    scorers.load(str(tmp_path / "policy"))
  with pytest.raises(ValueError, match="unknown reward model 'nowhere'"):
    scorers.load("nowhere")
  with pytest.raises(ValueError, match="'granite' has no reward models"):
    weights.architecture("granite", scores=True)


def test_one_training_is_told_from_another(folder):
  first = scorers.fingerprint(str(folder))
  model, head = scorers.load(str(folder))
  scorers.save(folder, model, model.params, jax.tree.map(lambda leaf: 2 * leaf, head))
  assert first and scorers.fingerprint(str(folder)) not in ("", first)


def smollm2():
  tokenizer = gguf_file.read_tokenizer(gguf_file.open_gguf(presets._smollm2_path()))
  return reading.Reader(tokenizer, (tokenizer.eos_token_id,))


def test_a_reward_model_reads_a_chat_to_the_end_of_what_the_template_writes():
  reader = smollm2()
  behind = reading.closing(reader, [{"role": "user", "content": "Hi"}])
  assert reader.tokenizer.decode(behind) == "\n"
  said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
  answers = tuple([{"role": "assistant", "content": words}] for words in ("Hello", "Bye"))
  preferences = Preferences([Ranking(said[:1], answers)], Counter())
  (whole,), _ = examples.encode_rankings(reader, preferences, max_tokens=100, whole=True)
  (cut,), _ = examples.encode_rankings(reader, preferences, max_tokens=100)
  rendered = reader.tokenizer.apply_chat_template(said, tokenize=False)
  assert [*whole.prompt, *whole.answers[0].tokens] == reader.tokenizer(rendered)["input_ids"]
  assert whole.answers[0].tokens == cut.answers[0].tokens + behind
  assert whole.answers[0].labels == cut.answers[0].labels + [False] * len(behind)


def test_templates_of_other_kinds_close_as_they_do():
  """One that demands a system message, and one that does not write a message's words as they are."""
  reader = smollm2()
  reader.tokenizer.chat_template = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    "{% for message in messages %}{{ message['content'] }}<|im_end|>!{% endfor %}"
  )
  said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
  assert reader.tokenizer.decode(reading.closing(reader, said)) == "!"
  text = Preferences([Ranking("1 + 1 =", (" 2", " 3"))], Counter())
  assert len(examples.encode_rankings(reader, text, max_tokens=100, whole=True)[0]) == 1  # no template is asked
  reader.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] | length }}{% endfor %}"
  assert reading.closing(reader, said) == []


def scored(ending, unread=None):
  """Scores that are the last token that is read."""

  def apply(params, tokens, positions, **_):
    return SimpleNamespace(hidden=1.0 * tokens[..., None], kv=())

  model = SimpleNamespace(apply=apply, value=lambda params, hidden: hidden[..., 0])
  completions = jnp.array([[[5, 9, 0], [5, 6, 7], [9, 0, 0], [0, 0, 0]]])
  mask = jnp.array([[[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]]])
  sequences = Sequences(jnp.array([[9]]), jnp.ones((1, 1), bool), completions, mask == 1)
  return make_last_value(model, ending=ending, unread=unread)({}, sequences)[0].tolist()


def test_a_finished_completion_is_read_to_the_end_and_a_cut_one_as_it_is():
  assert scored(Ending([9], closing=[3, 4])) == [4, 7, 4, 9]  # the last one is empty: its prompt's last token
  assert scored(Ending([9])) == [9, 7, 9, 9]


def test_where_a_tasks_own_stop_ended_it_the_end_of_sequence_is_read():
  assert scored(Ending([9, 7], own=[9, 7], end=8)) == [8, 8, 8, 9]
  assert scored(Ending([9, 7], own=[7], end=8, closing=[3])) == [3, 3, 3, 9]
  assert scored(Ending([9, 7], own=[9, 7], end=None)) == [9, 7, 9, 9]


def test_a_padding_token_that_is_an_end_is_not_read():
  assert scored(Ending([9]), unread=9)[:2] == [5, 7]


def test_reward_models_are_padded_with_what_ends_nothing(tmp_path):
  model = presets.load("tiny")
  model.hf.pad_token_id = model.eos_tokens[0]
  model.tokenizer.pad_token = model.tokenizer.eos_token
  scorers.save(tmp_path, model, model.params, {"out": {"kernel": jnp.ones((64, 1))}})
  again, _ = scorers.load(str(tmp_path))
  assert again.hf.pad_token_id == again.tokenizer.pad_token_id == 2 not in again.eos_tokens
  assert load_reward_model(str(tmp_path), again.tokenizer, max_tokens=9).unread is None
  settings = json.loads((tmp_path / "config.json").read_text()) | {"pad_token_id": 1}
  (tmp_path / "config.json").write_text(json.dumps(settings))  # as others have trained
  assert load_reward_model(str(tmp_path), again.tokenizer, max_tokens=9).unread == 1


def test_prompts_say_how_their_completions_end():
  reader = smollm2()
  prompts = make_prompts(tasks.load("arithmetic"), reader)
  stop = reader.tokenizer("\n")["input_ids"][0]
  assert prompts.ending == ([*sorted({stop, reader.end})], [stop], reader.end, [])
  chat = tasks.from_rows("hi", [{"prompt": [{"role": "user", "content": str(i)}]} for i in range(3)], [len])
  assert reader.tokenizer.decode(make_prompts(chat, reader).ending.closing) == "\n"
