"""The examples of README and docs run as they are printed."""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import dpo, grpo, ppo, reward_model, sft
from rl_jax import tasks
from rl_jax.objectives.base import Inputs
from rl_jax.runs.directory import read_lines
from rl_jax.runs.settings import ELSEWHERE
from tests.run_page import blocks, run

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def test_the_composed_objective_runs_and_gives_the_value_by_hand():
  scope = run(blocks(README)[0], path=README)
  # Six tokens, each with weight 1/6. Ratios are e^0.1 = 1.105, inside the clip; advantages 0.7 (4 tokens), -0.7 (2).
  policy = -0.7 * np.exp(0.1) * (4 - 2) / 6
  penalty = 0.01 * 0.2**2 / 2
  np.testing.assert_allclose(scope["loss"], policy + penalty - 1e-3 * 1.0, rtol=1e-5)
  dirty = scope["inputs"]._replace(logp=jnp.where(scope["mask"] == 1, scope["logp"], jnp.nan))
  assert scope["objective"].loss(dirty, scope["weights"])[0] == scope["loss"]


def test_the_compiled_run_trains_one_policy_a_key():
  scope = run(blocks(README)[1], path=README)
  assert scope["history"].train["reward"].shape == (2, 5)
  assert scope["states"].policy.step.tolist() == [5, 5]


def test_the_reward_function_gives_what_it_says():
  reward = run(blocks(README)[2], path=README)["reward"]
  assert reward(completions=["so 42", "41"], answer=[42, 42], prompts=None) == [1.0, 0.0]


def test_a_model_answers_in_a_few_lines(capsys):
  scope = run(blocks(README)[3], path=README)
  assert scope["found"].tokens.shape == (1, 2, 8) and capsys.readouterr().out.startswith("['")


GUIDE = DOCS / "objectives.md"


def test_the_guide_runs_from_top_to_bottom():
  scope = run(*blocks(GUIDE), path=GUIDE)
  ones = jnp.ones((1, 2))
  inputs = Inputs(ones, ones, old_logp=jnp.log(0.5 * ones), behavior_logp=jnp.log(0.1 * ones))
  weights = scope["corrected"].weight(inputs)["policy"]
  np.testing.assert_allclose(weights, [[1.0, 1.0]])  # rho = 5, truncated to 2, times 1/2 a token


def test_the_guides_new_objective_is_what_it_says():
  objective = run(blocks(GUIDE)[-1], path=GUIDE)["objective"](fraction=0.5, kl_coef=0.1)
  mask = jnp.ones((1, 4))
  entropy, logp = jnp.array([[0.1, 2.0, 0.2, 3.0]]), jnp.log(jnp.array([[0.5, 0.55, 0.5, 0.7]]))
  old, ref = jnp.log(0.5 * mask), jnp.log(jnp.array([[0.5, 0.5, 0.5, 0.7]]))
  inputs = Inputs(mask, mask, old_logp=old, ref_logp=ref, batch_entropy=entropy)
  loss = objective.loss(inputs._replace(logp=logp), objective.weight(inputs))[0]
  # The two tokens with the most entropy: ratios 1.1 and 1.4, clipped to 1.28; a k2 of log(1.1)^2 / 2 on one of four.
  np.testing.assert_allclose(loss, -(1.1 + 1.28) / 2 + 0.1 * np.log(1.1) ** 2 / 2 / 4, rtol=1e-5)


def test_the_walking_pages_environment_is_learned():
  before, after = run(*blocks(DOCS / "walking.md"), path=DOCS / "walking.md")["history"].evaluation["return"]
  assert before < -5 and after > -3


def test_a_task_on_the_host_is_loaded_by_its_path(tmp_path):
  (tmp_path / "reversing.py").write_text(blocks(DOCS / "task_on_the_host.md")[0])
  task = tasks.load(f"{tmp_path / 'reversing.py'}:load", ["length=4"])
  row = task.row(3)
  assert row == task.row(3) != task.row(4) and row["answer"][::-1] in row["prompt"] and len(row["answer"]) == 4
  assert {row["prompt"][0] for row in task.evaluation} <= set("aeiou") and row["prompt"][0] not in "aeiou"
  given = dict(
    completions=[row["answer"], row["answer"][0] + "?"], answer=[row["answer"]] * 2, completion_ids=[[1], []]
  )
  values = {reward.name: reward.function(**given) for reward in task.rewards}
  assert values == {"letters": [1.0, 0.25], "tokens": [1.0, 0.0]} and task.solved(**given) == [True, False]
  with pytest.raises(ValueError, match="has no option 'size'; it has length, evaluation_size"):
    tasks.load(f"{tmp_path / 'reversing.py'}:load", ["size=4"])
  (tmp_path / "other.py").write_text(
    "from rl_jax import tasks\ndef load(*, seed):\n  return 3\ndef bare():\n  return 3\n"
    "def needy(size, *, seed=0, which: str | None = None, of=(1, 2)):\n"
    "  return tasks.load('arithmetic')._replace(name=f'{size} {which} {of}')\n"
  )
  options = ["size=3", "which=x", "of=[3]"]
  assert tasks.load(f"{tmp_path / 'other.py'}:needy", options).name == "3 x (3,)"
  with pytest.raises(ValueError, match="needs the option 'size'"):
    tasks.load(f"{tmp_path / 'other.py'}:needy")
  with pytest.raises(ValueError, match="option which of .* must be str, got 3"):
    tasks.load(f"{tmp_path / 'other.py'}:needy", ["size=3", "which=3"])
  with pytest.raises(ValueError, match="must return a rl_jax.tasks.base.Task, got int"):
    tasks.load(f"{tmp_path / 'other.py'}:load")
  with pytest.raises(ValueError, match="must take seed: the run sets it"):
    tasks.load(f"{tmp_path / 'other.py'}:bare")
  with pytest.raises(ValueError, match="cannot be imported: FileNotFoundError"):
    tasks.load("nowhere.py:load")


@pytest.mark.slow
def test_a_task_on_the_host_is_trained_on_by_a_script(tmp_path):
  (tmp_path / "reversing.py").write_text(blocks(DOCS / "task_on_the_host.md")[0])
  sizes = dict(
    model="tiny", steps=1, num_prompts=4, minibatches=1, group_size=2, max_new_tokens=8, evaluation_samples=0
  )
  grpo.main(grpo.Config(task=f"{tmp_path / 'reversing.py'}:load", **sizes, run_dir=str(tmp_path / "run")))
  assert "reward/letters" in read_lines(tmp_path / "run", "metrics.jsonl")[0]


def test_a_task_on_the_device_is_right_and_trains(tmp_path, monkeypatch):
  page = DOCS / "task_on_the_device.md"
  (tmp_path / "counting.py").write_text(blocks(page)[0])
  monkeypatch.chdir(tmp_path)
  scope = run(*blocks(page), path=page)
  assert scope["history"].train["reward"].shape == (2, 4)
  with pytest.raises(ValueError, match="has no option 'size'; it has length"):
    tasks.on_device.load("counting.py:load", size=3)


def test_every_name_that_is_known_from_elsewhere_is_on_its_page():
  page = (DOCS / "from_trl.md").read_text()
  fields = {field.name for each in (grpo, ppo, sft, dpo, reward_model) for field in dataclasses.fields(each.Config)}
  for there, names in ELSEWHERE.items():
    for here in names.split():
      assert here in fields and (f"`{here}`" in page or here in ("resume", "loss")), here
    assert there not in fields - {"beta", "epochs"}, there
  rows = [line.split("|")[3] for line in page.partition("## Settings")[2].splitlines() if line.startswith("| `")]
  named = {word for row in rows for word in re.findall(r"`([a-z_]+)`", row)} - {"config", "split", "rename", "dr_grpo"}
  assert named <= fields, named - fields


@pytest.mark.slow
def test_the_library_page_trains_all_that_it_says(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  page = DOCS / "library.md"
  scope = run(*blocks(page), path=page)
  assert scope["done"] == 2 and (tmp_path / "runs" / "sums" / "model" / "model.safetensors").exists()
  assert (tmp_path / "runs" / "sums-sft" / "evaluation.jsonl").read_text().count("nll") == 2
  assert int(scope["policy"].step) == 1  # of the reward model
