"""The examples of README and docs run as they are printed."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.objectives.base import Inputs
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


@pytest.mark.slow
def test_the_library_page_trains_all_that_it_says(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  page = DOCS / "library.md"
  scope = run(*blocks(page), path=page)
  assert scope["done"] == 2 and (tmp_path / "runs" / "sums" / "model" / "model.safetensors").exists()
  assert (tmp_path / "runs" / "sums-sft" / "evaluation.jsonl").read_text().count("nll") == 2
  assert int(scope["policy"].step) == 1  # of the reward model
