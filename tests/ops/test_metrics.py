import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import metrics
from rl_jax.ops.metrics import Max, Mean, Min

VALUES = np.array([[1.0, 2.0, np.nan], [5.0, np.nan, np.nan]])
MASK = np.array([[1, 1, 0], [1, 0, 0]])


def test_micro_batches_combine_to_the_mean_over_tokens_not_the_mean_of_means():
  parts = [
    {"mean": Mean.of(v, m), "max": Max.of(v, m), "min": Min.of(v, m)}
    for v, m in zip(jnp.asarray(VALUES), jnp.asarray(MASK), strict=True)
  ]
  stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *parts)
  combined = metrics.results(metrics.reduce(stacked))
  assert combined == pytest.approx({"mean": (1 + 2 + 5) / 3, "max": 5.0, "min": 1.0})


def test_nothing_selected():
  nothing = jnp.zeros(2)
  results = metrics.results({"mean": Mean.of(nothing, nothing), "max": Max.of(nothing, nothing)})
  assert np.isnan(results["mean"]) and results["max"] == -np.inf


def test_metrics_carry_no_gradient():
  gradient = jax.grad(lambda x: Mean.of(x, jnp.ones(2)).total + Max.of(x, jnp.ones(2)).value)(jnp.ones(2))
  np.testing.assert_array_equal(gradient, 0)
