"""The suite on objectives of a user's own: `pytest tests/conformance --objective my_module:objective`."""

import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("test_conformance.py")
RIGHT = '''
"""As GRPO, with another clip and no reference."""

from rl_jax.objectives.base import policy_gradient
from rl_jax.ops import aggregation, ratios, surrogates


def objective(*, clip: float = 0.3):
  return policy_gradient(ratios.token(), surrogates.clip(low=clip, high=clip), aggregation.sequence_mean())
'''
WRONG = '''
"""One divides by the padded length, the other multiplies what is under the mask by 0, which leaves NaN as it is."""

import jax.numpy as jnp

from rl_jax.objectives.base import Objective, policy_gradient
from rl_jax.ops import ratios, surrogates


def by_width():
  return policy_gradient(ratios.token(), surrogates.clip(), lambda mask: mask / (mask.shape[-1] * mask.shape[0]))


def leaky():
  def loss(inputs, weights):
    return -jnp.sum(weights * inputs.advantages * inputs.logp), {}

  needs = frozenset({"advantages", "logp"})
  return Objective(lambda inputs: inputs.mask / jnp.maximum(jnp.sum(inputs.mask), 1), loss, needs)
'''


def run(folder, *names, only):
  options = [option for name in names for option in ("--objective", name)]
  command = [sys.executable, "-m", "pytest", str(SUITE), *options, "-k", only, "-p", "no:cacheprovider", "--tb=no"]
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
  return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_right_one_passes(tmp_path):
  (tmp_path / "mine.py").write_text(RIGHT)
  code, output = run(tmp_path, "mine:objective", only="more_padding or nothing_selected or docstring")
  assert code == 0 and "2 passed, 1 skipped" in output, output


@pytest.mark.slow
def test_wrong_ones_fail_where_they_are_wrong(tmp_path):
  (tmp_path / "wrong.py").write_text(WRONG)
  code, output = run(tmp_path, "wrong:by_width", "wrong:leaky", only="more_padding or (masked_slots and not inf)")
  assert code == 1
  failed = {line.split("::")[1].split(" - ")[0] for line in output.splitlines() if line.startswith("FAILED")}
  assert {name for name in failed if "by_width" in name} == {"test_more_padding_changes_nothing[wrong:by_width]"}, (
    output
  )
  assert any(name.startswith("test_masked_slots_are_inert") and "leaky" in name for name in failed), output
