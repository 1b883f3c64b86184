"""Variants: grid points and seeds in one program are what they are alone, and finished ones are not trained again."""

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
