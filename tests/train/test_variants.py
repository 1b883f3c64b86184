"""Variants: grid points and seeds in one program are what they are alone, and finished ones are not trained again."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.models import presets
from rl_jax.models.transformer import policy
from rl_jax.tasks import on_device
from rl_jax.train import variants
from rl_jax.train.compiled import Config, compiled

TASK = on_device.load("sorting", length=2)
MODEL = policy(presets.small(TASK.vocab_size, layers=1, width=32))
CONFIG = Config(steps=2, num_prompts=4, group_size=4, evaluate_every=1, evaluation_problems=4, minibatches=2)


def build(hyperparameters):
  return compiled(TASK, MODEL, objectives.load("dapo", **hyperparameters), optax.sgd(0.5), CONFIG)


@pytest.mark.slow
def test_a_grid_is_what_its_points_are_alone_and_results_are_kept(tmp_path):
  swept = variants.Variant("dapo", build, {"clip_high": [0.1, 0.4]})
  assert swept.names == ["dapo clip_high=0.1", "dapo clip_high=0.4"]
  variants.train([swept], tmp_path, seeds=2, seed=3)
  found = variants.load(tmp_path)
  assert list(found) == swept.names
  run = build({"clip_high": 0.4})
  states, history = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(3), 2))
  for kind, metrics in (("train", history.train), ("evaluation", history.evaluation)):
    for name, values in metrics.items():
      np.testing.assert_allclose(found["dapo clip_high=0.4"][f"{kind}/{name}"], values, rtol=1e-3, atol=1e-4)
  assert found["dapo clip_high=0.4"]["evaluation/reward"].shape == (2, 3)
  assert found["dapo clip_high=0.4"]["train/reward"].shape == (2, 2)

  def never(_):
    raise AssertionError("trained again")

  variants.train([swept._replace(build=never)], tmp_path, seeds=2)


@pytest.mark.slow
def test_variants_share_parameters_and_keep_coefficients_of_their_own(tmp_path):
  def weighed(hyperparameters):
    config = dataclasses.replace(CONFIG, minibatches=1, **hyperparameters)
    return compiled(TASK, MODEL, objectives.load("rloo"), optax.sgd(0.5), config)

  compared = [variants.Variant("free", weighed), variants.Variant("paid", weighed, {"kl_coef": [0.0, 2.0]})]
  variants.train(compared, tmp_path, seeds=2, seed=3)
  found = variants.load(tmp_path)
  assert list(found) == ["free", "paid kl_coef=0", "paid kl_coef=2"]
  assert "train/kl_coef" not in found["free"]
  for value in (0, 2):
    np.testing.assert_array_equal(found[f"paid kl_coef={value}"]["train/kl_coef"], np.full((2, 2), value))
  for name in ("train/reward", "train/loss"):  # the first rollout is the same: nothing has moved away yet
    np.testing.assert_allclose(found["free"][name][:, 0], found["paid kl_coef=0"][name][:, 0], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found["free"]["train/reward"], found["paid kl_coef=0"]["train/reward"], rtol=1e-4)
  first = [metrics["evaluation/reward"][:, 0] for metrics in found.values()]
  np.testing.assert_array_equal(first[0], first[2])
