"""Reward models among the reward functions: they read text, by a tokenizer of their own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import grpo
from rl_jax.devices import Devices, make_mesh
from rl_jax.models import presets, scorers
from rl_jax.runs.directory import read_lines
from rl_jax.state import Sequences
from rl_jax.tasks import learned, named_rewards
from rl_jax.tasks.text import pad
from rl_jax.train.actors import load_reward_model

CHAT = "{% for message in messages %}{{ message['role'] }}>{{ message['content'] }}<eos>!{% endfor %}"


def save(folder, seed=0, characters=None, **config):
  """A reward model with a random head, of all of "tiny"'s characters or of others."""
  model = presets.load("tiny")
  if characters is not None:
    tokenizer = presets.character_tokenizer(characters)
    tokenizer.chat_template = CHAT
    model = model._replace(tokenizer=tokenizer)
  for name, value in config.items():
    setattr(model.hf, name, value)
  head = {"out": {"kernel": jax.random.normal(jax.random.key(seed), (model.config.embed_dim, 1))}}
  scorers.save(folder, model, model.params, head)
  return str(folder)


def scores(folder, tokenizer, texts):
  """Scores of token lists as the device reads them, one prompt token and the rest a completion."""
  tokens, mask = pad(texts, 0)
  sequences = Sequences(tokens[:, :1], mask[:, :1], tokens[:, None, 1:], mask[:, None, 1:])
  judge = load_reward_model(folder, tokenizer, max_tokens=64)
  devices = Devices(make_mesh(data=1, devices=jax.devices()[:1]))
  return np.asarray(judge.make_reward_model(devices)(jax.tree.map(jnp.asarray, sequences)))[:, 0]


def test_text_scores_as_its_tokens_do_in_any_number_and_length(tmp_path):
  folder, tokenizer = save(tmp_path / "judge"), presets.load("tiny").tokenizer
  prompts = [f"{number} + 1 =" for number in range(learned.BATCH + 3)]
  completions = [" 7" * (number % 5) for number in range(len(prompts))]
  found = learned.Learned(folder)(prompts=prompts, completions=completions, completion_ids=[[]] * len(prompts))
  texts = [[*tokenizer(a + b)["input_ids"], 1] for a, b in zip(prompts, completions, strict=True)]
  assert len(set(found)) == len(found)
  np.testing.assert_allclose(found, scores(folder, tokenizer, texts), rtol=0, atol=1e-5)


def test_a_chat_is_read_as_its_own_template_writes_it(tmp_path):
  folder = save(tmp_path / "judge", characters="HBelo!yiuserantd>")
  prompt = [{"role": "user", "content": "Hi"}]
  reply, begun = ([{"role": "assistant", "content": words}] for words in ("Hello", "Hel"))
  judge, tokenizer = learned.Learned(folder), scorers.load(folder)[0].tokenizer
  first, second = judge([prompt, [*prompt, *begun]], [reply, [{"role": "assistant", "content": "lo"}]])
  text = "user>Hi<eos>!assistant>Hello<eos>!"
  np.testing.assert_allclose(first, scores(folder, tokenizer, [tokenizer(text)["input_ids"]])[0], rtol=0, atol=1e-5)
  assert second == first  # a reply that was begun in the prompt is one reply


def test_an_end_that_is_padding_is_not_read(tmp_path):
  folder, tokenizer = save(tmp_path / "judge"), presets.load("tiny").tokenizer
  config = tmp_path / "judge" / "config.json"
  config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": 1}))
  (found,) = learned.Learned(folder)(["42"], ["7"])
  saved = save(tmp_path / "plain")
  np.testing.assert_allclose(found, scores(saved, tokenizer, [tokenizer("427")["input_ids"]])[0], rtol=0, atol=1e-5)


def test_what_is_too_long_has_no_score(tmp_path):
  judge = learned.Learned(save(tmp_path / "judge", max_position_embeddings=8))
  short, long = judge(["1", "1"], ["23", "2" * 8])
  assert short is not None and long is None
  assert judge(["1"], ["2" * 8]) == [None]


def test_metrics_call_it_by_its_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save(tmp_path / "runs" / "judge" / "model")
  for name in ("runs/judge", "runs/judge/", "runs/judge/model"):
    assert [reward.name for reward in named_rewards.load([name, "json"], [0.5, 1.0])] == ["judge", "json"]
  presets.save(tmp_path / "math", presets.load("tiny"), presets.load("tiny").params)
  assert named_rewards.reward_models(["math", "runs/judge", "x:y"]) == ["runs/judge"]
  presets.save(tmp_path / "policy", model := presets.load("tiny"), model.params)
  with pytest.raises(ValueError, match="no reward model's: they have no score.weight"):
    named_rewards.load(["policy"])


@pytest.mark.slow
def test_a_run_is_judged_by_a_model_with_another_tokenizer(tmp_path):
  folder = save(tmp_path / "judge", characters="0123456789+-= ")
  config = grpo.Config(
    model="tiny",
    rewards=(folder, "length"),
    reward_weights=(1.0, 0.0),
    task_options=("evaluation_size=8",),
    num_prompts=8,
    group_size=2,
    steps=1,
    max_new_tokens=4,
    evaluation_samples=0,
    run_dir=str(tmp_path / "run"),
  )
  grpo.main(config)
  step = read_lines(tmp_path / "run", "metrics.jsonl")[0]
  assert step["reward/judge"] == pytest.approx(step["reward"]) and step["reward"] != 0
  save(tmp_path / "judge", seed=1, characters="0123456789+-= ")
  with pytest.raises(ValueError, match="reward_fingerprints was"):  # it is another one by now
    grpo.main(dataclasses.replace(config, steps=2, resume=True))
