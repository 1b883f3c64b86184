"""A folder of a small model."""

import pytest

from rl_jax.models import presets


@pytest.fixture
def folder(tmp_path):
  model = presets.load("tiny")
  presets.save(tmp_path / "model", model, model.params)
  return tmp_path / "model"
