"""The README's example runs as it is printed."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_the_composed_objective_runs_and_gives_the_value_by_hand():
  example = re.findall(r"```python\n(import.*?)```", README.read_text(), re.DOTALL)[0]
  scope: dict = {}
  exec(compile(example, str(README), "exec"), scope)
  # Six tokens, each with weight 1/6. Ratios are e^0.1 = 1.105, inside the clip; advantages 0.7 (4 tokens), -0.7 (2).
  policy = -0.7 * np.exp(0.1) * (4 - 2) / 6
  penalty = 0.01 * 0.2**2 / 2
  np.testing.assert_allclose(scope["loss"], policy + penalty - 1e-3 * 1.0, rtol=1e-5)
  dirty = scope["inputs"]._replace(logp=jnp.where(scope["mask"] == 1, scope["logp"], jnp.nan))
  assert scope["objective"].loss(dirty, scope["weights"])[0] == scope["loss"]
