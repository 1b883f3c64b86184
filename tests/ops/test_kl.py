import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import kl

LOGP = np.array([-1.0, -0.3, -2.5, -0.7])
REF = np.array([-1.4, -0.3, -0.5, -3.0])
D = REF - LOGP

VALUES = {"k1": -D, "k2": D**2 / 2, "k3": np.exp(D) - D - 1}
GRADIENTS = {"k1": np.ones(4), "k2": -D, "k3": 1 - np.exp(D)}


@pytest.mark.parametrize("name", VALUES)
def test_value_and_gradient_in_closed_form(name, x64):
  estimator = getattr(kl, name)
  np.testing.assert_allclose(estimator(jnp.asarray(LOGP), jnp.asarray(REF)), VALUES[name], rtol=1e-12)
  gradient = jax.grad(lambda logp: estimator(logp, jnp.asarray(REF)).sum())(jnp.asarray(LOGP))
  np.testing.assert_allclose(gradient, GRADIENTS[name], rtol=1e-12, atol=1e-15)


def test_k3_keeps_small_differences_in_float32():
  # exp(d) - 1 - d in float32 gives 0 or 5e-8 at d = 1e-4. With expm1 the error is an ulp of 1e-4, which is 7.3e-12.
  tiny = kl.k3(jnp.zeros(1), jnp.full(1, 1e-4))
  np.testing.assert_allclose(tiny, 0.5e-8, rtol=0, atol=7.3e-12)


@pytest.mark.parametrize("name", VALUES)
def test_means_over_samples_estimate_the_divergence(name):
  # Exact expectations over a two-token vocabulary: k1 and k3 are unbiased.
  p, q = np.array([0.7, 0.3]), np.array([0.6, 0.4])
  exact = (p * np.log(p / q)).sum()
  estimate = (p * np.asarray(getattr(kl, name)(jnp.log(p), jnp.log(q)))).sum()
  np.testing.assert_allclose(estimate, exact, rtol=0.2 if name == "k2" else 1e-5)


@pytest.mark.parametrize("name", VALUES)
def test_clamp_bounds_the_log_ratio(name):
  estimator = getattr(kl, name)
  logp, ref = jnp.zeros(2), jnp.array([90.0, -90.0])
  np.testing.assert_allclose(
    estimator(logp, ref, max_log_ratio=20.0), estimator(logp, jnp.array([20.0, -20.0])), rtol=1e-6
  )
  gradient = jax.grad(lambda x: estimator(x, ref, max_log_ratio=20.0).sum())(logp)
  np.testing.assert_array_equal(gradient, 0)


def test_bfloat16_is_upcast():
  assert kl.k3(jnp.zeros(1, jnp.bfloat16), jnp.zeros(1, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("name", ["k1", "k2", "k3", "absolute"])
def test_every_estimate_can_be_clamped(name):
  estimator = getattr(kl, name)
  logp, ref = jnp.array([0.0, -3.0]), jnp.array([-3.0, -3.1])

  def total(logp):
    return estimator(logp, ref, max_value=0.5).sum()

  free = np.asarray(estimator(logp, ref))
  np.testing.assert_allclose(estimator(logp, ref, max_value=0.5), np.minimum(free, 0.5))
  assert free[0] > 0.5 and jax.grad(total)(logp)[0] == 0 and jax.grad(total)(logp)[1] != 0


def test_exact_kl_of_close_distributions_is_small_and_not_negative():
  """Summed as `p (log p - log q)` alone, half of such values are below 0; here they are right to a few per cent."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(200, 50)) * 3
  others = logits + rng.normal(size=logits.shape) * 1e-4
  found = np.asarray(kl.categorical(jnp.float32(logits), jnp.float32(others)))
  p, q = (np.exp(x - np.log(np.exp(x).sum(-1, keepdims=True))) for x in np.float64(np.float32([logits, others])))
  assert found.min() >= 0
  np.testing.assert_allclose(found, (p * np.log(p / q)).sum(-1), rtol=0.05)


def test_exact_kl_counts_what_the_policy_never_chooses():
  never = jnp.array([0.0, -jnp.inf, 0.0])
  np.testing.assert_allclose(kl.categorical(never, jnp.zeros(3)), np.log(1.5), rtol=1e-6)
  assert kl.categorical(jnp.zeros(3), never) == jnp.inf
  logits, other = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.5, -0.2])
  logp, ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
  by_hand = jnp.exp(logp) * (logp - ref - kl.categorical(logits, other))
  np.testing.assert_allclose(jax.grad(kl.categorical)(logits, other), by_hand, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  ("logits", "other", "exact"),
  [
    ([0.0, 90.0], [0.0, 0.0], np.log(2)),
    ([0.0, -120.0], [0.0, 0.0], np.log(2)),
    ([0.0, 200.0], [200.0, 0.0], 200.0),
    ([0.0, 0.0], [0.0, 1e4], 5e3 - np.log(2)),
  ],
)
def test_exact_kl_of_distributions_that_lie_far_apart_is_finite(logits, other, exact):
  given = jnp.array(logits), jnp.array(other)
  np.testing.assert_allclose(kl.categorical(*given), exact, rtol=1e-5)
  assert all(np.isfinite(jax.grad(kl.categorical, argnums=side)(*given)).all() for side in (0, 1))
