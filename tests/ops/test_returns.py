import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import returns

FORMS = [returns.gae, returns.gae_associative]
RNG = np.random.default_rng(0)
REWARDS, VALUES = RNG.normal(size=(2, 3, 9))
MASK = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0]])


def loop(rewards, values, mask, gamma, lam, last, holes):
  """One row, right to left, as the recursion reads."""
  advantages = np.zeros(len(rewards))
  real = np.flatnonzero(mask)
  steps = real if holes == "carry" else np.arange(real[-1] + 1 if real.size else 0)
  next_value, next_advantage = last, 0.0
  for t in reversed(steps):
    reward, value = (rewards[t], values[t]) if mask[t] else (0.0, 0.0)
    next_advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
    next_value = value
    advantages[t] = next_advantage if mask[t] else 0
  return advantages, np.where(mask, advantages + values, 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("holes", ["carry", "zero"])
@pytest.mark.parametrize("gamma,lam", [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
def test_matches_a_loop(form, holes, gamma, lam, x64):
  last = np.array([0.7, -0.4, 0.3])
  actual = form(
    jnp.asarray(REWARDS),
    jnp.asarray(VALUES),
    jnp.asarray(MASK),
    gamma=gamma,
    lam=lam,
    last_value=jnp.asarray(last),
    holes=holes,
  )
  rows = [loop(*row, gamma, lam, final, holes) for *row, final in zip(REWARDS, VALUES, MASK, last, strict=True)]
  np.testing.assert_allclose(actual[0], [row[0] for row in rows], rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(actual[1], [row[1] for row in rows], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("holes", ["carry", "zero"])
def test_padding_never_leaks(form, holes):
  dirty = np.where(MASK == 1, REWARDS, np.nan), np.where(MASK == 1, VALUES, np.inf)
  args = dict(gamma=0.99, lam=0.95, holes=holes)
  actual = form(jnp.asarray(dirty[0]), jnp.asarray(dirty[1]), jnp.asarray(MASK), **args)
  clean = form(jnp.asarray(REWARDS), jnp.asarray(VALUES), jnp.asarray(MASK), **args)
  np.testing.assert_array_equal(actual[0], clean[0])
  np.testing.assert_array_equal(actual[1], clean[1])
  longer = [np.pad(x, ((0, 0), (0, 4)), constant_values=np.nan) for x in (REWARDS, VALUES)]
  padded = form(jnp.asarray(longer[0]), jnp.asarray(longer[1]), jnp.asarray(np.pad(MASK, ((0, 0), (0, 4)))), **args)
  np.testing.assert_allclose(padded[0][:, :9], clean[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_lone_sequence_traced_discount_and_gradient(form):
  rewards, values, mask = jnp.asarray(REWARDS[0]), jnp.asarray(VALUES[0]), jnp.ones(9)

  def total(gamma):
    return form(rewards, values, mask, gamma=gamma, lam=0.9)[0].sum()

  assert np.isfinite(jax.jit(jax.grad(total))(0.9))


def test_the_two_forms_agree_on_long_sequences():
  rewards, values = (jnp.asarray(x, jnp.float32) for x in RNG.normal(size=(2, 4, 2048)))
  mask = jnp.asarray(RNG.random((4, 2048)) < 0.9)
  pairs = zip(jax.jit(returns.gae)(rewards, values, mask), returns.gae_associative(rewards, values, mask), strict=True)
  for one, other in pairs:
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_unknown_convention_is_an_error():
  with pytest.raises(ValueError, match="holes must be"):
    returns.gae(jnp.ones(2), jnp.ones(2), jnp.ones(2), holes="skip")


@pytest.mark.parametrize("form", FORMS)
def test_mixed_types_are_promoted(form, x64):
  actual, _ = form(jnp.ones(3, jnp.float64), jnp.zeros(3, jnp.float32), jnp.ones(3, jnp.float32), gamma=1.0, lam=1.0)
  assert actual.dtype == jnp.float64
  np.testing.assert_allclose(actual, [3, 2, 1])


@pytest.mark.parametrize("holes", ["carry", "zero"])
def test_forms_agree_with_a_discount_a_row_and_two_leading_axes(holes):
  rng = np.random.default_rng(5)
  rewards, values = rng.normal(size=(2, 2, 3, 150))
  mask = rng.random((2, 3, 150)) < 0.8
  gamma, lam, last = (jnp.asarray(rng.uniform(0.0, 1.0, size=(2, 3))) for _ in range(3))
  args = dict(gamma=gamma, lam=lam, last_value=last, holes=holes)
  actual, expected = (form(rewards, values, mask, **args) for form in (returns.gae_associative, returns.gae))
  chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_forms_agree_on_empty_axes_and_types():
  for shape in ((2, 0), (0, 5)):
    empty = jnp.zeros(shape)
    for form in (returns.gae, returns.gae_associative):
      for holes in ("carry", "zero"):
        assert form(empty, empty, empty, holes=holes)[0].shape == shape
  with jax.enable_x64(True):
    x = jnp.ones(3, jnp.float32)
    for form in (returns.gae, returns.gae_associative):
      assert form(x, x, x, lam=jnp.asarray(0.5, jnp.float64))[0].dtype == jnp.float32


@pytest.mark.parametrize("form", [returns.gae, returns.gae_associative])
def test_the_bootstrap_of_a_row_without_tokens_is_not_looked_at(form):
  """Two rows, gamma = lam = 0.9: d_1 = 1 + .45 - 1, d_0 = 1 + .9 - 1, A = (.9 + .81 * .45, .45), R = A + V."""
  mask, ones = jnp.array([[1, 1, 0], [0, 0, 0]]), jnp.ones((2, 3))

  def total(gamma):
    advantages, targets = form(ones, ones, mask, gamma=gamma, lam=0.9, last_value=jnp.array([0.5, jnp.nan]))
    return advantages.sum() + targets.sum()

  value, gradient = jax.value_and_grad(total)(0.9)
  np.testing.assert_allclose(value, 2 * (0.9 + 0.81 * 0.45 + 0.45) + 2, rtol=1e-6)
  np.testing.assert_allclose(gradient, 2 * (1 + 0.5 + 0.9 * 0.45 + 0.81 * 0.5), rtol=1e-6)


def test_decoupled_gae_by_hand():
  """Ten tokens, alpha 0.2: lambda = 1 - 1 / 2. One reward at the end, values 0: A_t = 0.5^(9 - t), returns 1."""
  rewards, ones = jnp.zeros(10).at[9].set(1.0), jnp.ones(10)
  advantages, targets = returns.decoupled_gae(rewards, 0 * ones, ones, alpha=0.2)
  np.testing.assert_allclose(advantages, 0.5 ** np.arange(9, -1, -1), rtol=1e-6)
  np.testing.assert_allclose(targets, 1.0, rtol=1e-6)
