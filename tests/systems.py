"""Values that other systems computed with their own code on one ragged batch each, in float64 where they allow it.

verl at commit 1dda039b, OpenRLHF at 3c3be623, TRL 1.16.0. `data/systems.json` describes the cases, `data/systems.npz`
holds the arrays. Padding holds finite junk, so that a missing mask shows.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.objectives.base import Inputs

_DATA = Path(__file__).parent / "data"
DESCRIBED = json.loads((_DATA / "systems.json").read_text())
ARRAYS = np.load(_DATA / "systems.npz")


class Case(NamedTuple):
  config: dict
  given: dict
  expected: dict


def ids(prefix: str) -> list[str]:
  return [case["id"] for case in DESCRIBED["verl_openrlhf"] if case["id"].startswith(prefix)]


def cases(prefix: str, compared: list[str]) -> pytest.MarkDecorator:
  """Runs a test on all cases whose id begins so, and notes them as compared."""
  found = ids(prefix)
  compared.extend(found)
  return pytest.mark.parametrize("name", found, ids=lambda name: name.partition("/")[2])


def load(name: str) -> Case:
  found = next(case for case in DESCRIBED["verl_openrlhf"] if case["id"] == name)

  def read(names: dict) -> dict:
    return {key: jnp.asarray(np.asarray(ARRAYS[where], np.float64)) for key, where in names.items()}

  return Case(found["config"], read(found["inputs"]), read(found["outputs"]))


def value_and_gradient(objective, inputs: Inputs, **learner):
  """The loss and its gradients in the learner's fields, with the weights of the whole batch."""
  (name, at), *_ = learner.items()
  weights = objective.weight(inputs)
  return jax.value_and_grad(lambda x: objective.loss(inputs._replace(**{name: x}), weights)[0])(at)


def assert_agrees(actual, expected, rtol=1e-6):
  """Relative to the largest entry, so that entries that cancel to nearly nothing are not held to their own size."""
  scale = max(float(np.max(np.abs(expected))), 1e-12)
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * 1e-3 * scale)
