"""Distributions of actions against SciPy and numbers worked by hand, and their gradients in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rl_jax.ops.distributions import Categorical, Gaussian

RNG = np.random.default_rng(0)
MEAN, LOG_STD, OTHER = RNG.normal(size=(3, 5, 2)), RNG.normal(size=(3, 5, 2)), RNG.normal(size=(2, 3, 5, 2))
LOGITS = RNG.normal(size=(3, 5, 4)) * 3


def test_a_gaussian_is_scipys(x64):
  actions = RNG.normal(size=MEAN.shape)
  found, expected = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD)), scipy.stats.norm(MEAN, np.exp(LOG_STD))
  np.testing.assert_allclose(found.log_prob(jnp.asarray(actions)), expected.logpdf(actions).sum(-1), rtol=1e-12)
  np.testing.assert_allclose(found.entropy(), expected.entropy().sum(-1), rtol=1e-12)
  np.testing.assert_array_equal(found.mode(), MEAN)


def test_a_categorical_is_a_softmax(x64):
  found, p = Categorical(jnp.asarray(LOGITS)), scipy.special.softmax(LOGITS, axis=-1)
  actions = RNG.integers(4, size=(3, 5))
  expected = np.log(np.take_along_axis(p, actions[..., None], axis=-1)[..., 0])
  np.testing.assert_allclose(found.log_prob(jnp.asarray(actions)), expected)
  np.testing.assert_allclose(found.entropy(), scipy.stats.entropy(p, axis=-1), rtol=1e-12)
  np.testing.assert_array_equal(found.mode(), LOGITS.argmax(-1))


def test_kl_is_the_mean_log_ratio_and_0_to_itself(x64):
  """Against quadrature: the expectation under the first of log p - log q."""
  first, second = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD)), Gaussian(*map(jnp.asarray, OTHER))
  points, weights = np.polynomial.hermite_e.hermegauss(40)
  each = MEAN[..., None] + np.exp(LOG_STD)[..., None] * points
  ratio = scipy.stats.norm.logpdf(each, MEAN[..., None], np.exp(LOG_STD)[..., None])
  ratio -= scipy.stats.norm.logpdf(each, OTHER[0][..., None], np.exp(OTHER[1])[..., None])
  expected = (ratio * weights / weights.sum()).sum(-1).sum(-1)
  np.testing.assert_allclose(first.kl(second), expected, rtol=1e-9)
  p, q = (scipy.special.softmax(x, axis=-1) for x in (LOGITS, LOGITS[::-1]))
  found = Categorical(jnp.asarray(LOGITS)).kl(Categorical(jnp.asarray(LOGITS[::-1].copy())))
  np.testing.assert_allclose(found, scipy.stats.entropy(p, q, axis=-1), atol=1e-12)
  for same in (first, Categorical(jnp.asarray(LOGITS))):
    np.testing.assert_allclose(same.kl(same), 0, atol=1e-12)


def test_gradients_have_their_closed_form(x64):
  """d log p / d mean = (a - m) / s^2, d log p / d log s = ((a - m) / s)^2 - 1; softmax: one-hot - p."""
  actions = jnp.asarray(RNG.normal(size=MEAN.shape))
  of_mean, of_scale = jax.grad(lambda *args: Gaussian(*args).log_prob(actions).sum(), argnums=(0, 1))(
    jnp.asarray(MEAN), jnp.asarray(LOG_STD)
  )
  distance = (np.asarray(actions) - MEAN) / np.exp(LOG_STD)
  np.testing.assert_allclose(of_mean, distance / np.exp(LOG_STD), rtol=1e-12)
  np.testing.assert_allclose(of_scale, distance**2 - 1, rtol=1e-9)
  chosen = jnp.asarray(RNG.integers(4, size=(3, 5)))
  of_logits = jax.grad(lambda logits: Categorical(logits).log_prob(chosen).sum())(jnp.asarray(LOGITS))
  np.testing.assert_allclose(of_logits, np.eye(4)[chosen] - scipy.special.softmax(LOGITS, axis=-1), atol=1e-12)


@pytest.mark.parametrize(
  "distribution",
  [Gaussian(jnp.array([0.5, -2.0]), jnp.log(jnp.array([0.1, 2.0]))), Categorical(jnp.array([0.0, 1.0, 2.0]))],
  ids=["gaussian", "categorical"],
)
def test_draws_follow_the_distribution(distribution):
  drawn = np.asarray(jax.vmap(distribution.sample)(jax.random.split(jax.random.key(0), 20_000)))
  if isinstance(distribution, Gaussian):
    np.testing.assert_allclose(drawn.mean(0), distribution.mean, atol=0.05)
    np.testing.assert_allclose(drawn.std(0), jnp.exp(distribution.log_std), rtol=0.02)
  else:
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), jax.nn.softmax(distribution.logits), atol=0.01)
