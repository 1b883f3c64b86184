import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.sampling import samplers
from rl_jax.sampling.samplers import SamplingParams

P = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
LOGITS = jnp.asarray(np.log(P), jnp.float32)
DRAWS = 20_000


def draw(sampler, logits=LOGITS, seed=0):
  return samplers.sample_token(jax.random.key(seed), jnp.broadcast_to(logits, (DRAWS, logits.size)), sampler)


def renormalized(keep, temperature=1.0):
  p = P ** (1 / temperature) * keep
  return p / p.sum()


@pytest.mark.parametrize(
  "sampler,expected",
  [
    (SamplingParams(), renormalized([1, 1, 1, 1, 1])),
    (SamplingParams(temperature=0.5), renormalized([1, 1, 1, 1, 1], 0.5)),
    (SamplingParams(top_k=2), renormalized([1, 1, 0, 0, 0])),
    (SamplingParams(top_p=0.6), renormalized([1, 1, 0, 0, 0])),
    (SamplingParams(top_p=0.75), renormalized([1, 1, 1, 0, 0])),
    (SamplingParams(min_p=0.3), renormalized([1, 1, 1, 0, 0])),
    (SamplingParams(temperature=2.0, top_k=4, top_p=0.5), renormalized([1, 1, 0, 0, 0], 2.0)),
    (SamplingParams(top_k=4, min_p=0.5), renormalized([1, 1, 0, 0, 0])),
  ],
)
def test_frequencies_and_recorded_log_probs(sampler, expected):
  choice = draw(sampler)
  frequencies = np.bincount(choice.token, minlength=5) / DRAWS
  # Five standard errors of a frequency.
  assert (np.abs(frequencies - expected) <= 5 * np.sqrt(expected * (1 - expected) / DRAWS)).all()
  np.testing.assert_allclose(np.exp(choice.logp), expected[choice.token], rtol=1e-5)
  full = renormalized([1, 1, 1, 1, 1], sampler.temperature)
  np.testing.assert_allclose(np.exp(choice.full_logp), full[choice.token], rtol=1e-5)


def test_greedy_takes_the_likeliest_with_certainty():
  choice = draw(SamplingParams(temperature=0.0))
  np.testing.assert_array_equal(choice.token, 0)
  np.testing.assert_array_equal(choice.logp, 0)


def test_numbers_are_traced():
  traces = []

  @jax.jit
  def sample_token(key, sampler):
    traces.append(1)
    return samplers.sample_token(key, LOGITS, sampler)

  for temperature, top_k, top_p in ((0.0, 1, 0.1), (0.7, 3, 0.9), (2.0, 5, 1.0)):
    sample_token(jax.random.key(0), SamplingParams(temperature, top_k, top_p))
  assert len(traces) == 1


@pytest.mark.parametrize("vocabulary", [3, 256, 257, 1000])
def test_two_step_draw_covers_every_block(vocabulary):
  p = np.random.default_rng(0).dirichlet(np.ones(vocabulary) * 0.2)
  tokens = samplers.categorical(jax.random.key(1), jnp.broadcast_to(jnp.log(jnp.asarray(p)), (DRAWS, vocabulary)))
  counts = np.bincount(tokens, minlength=vocabulary)
  assert counts.size == vocabulary
  expected = p * DRAWS
  # Pearson's statistic has mean about `vocabulary - 1`; rare tokens are pooled.
  common = expected >= 5
  observed = np.append(counts[common], counts[~common].sum())
  wanted = np.append(expected[common], expected[~common].sum())
  statistic = ((observed - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum()
  degrees = common.sum()
  assert statistic < degrees + 6 * np.sqrt(2 * degrees) + 10


def test_excluded_tokens_are_never_drawn():
  logits = jnp.full(600, -jnp.inf).at[jnp.array([5, 300, 599])].set(0.0)
  tokens = np.asarray(samplers.categorical(jax.random.key(0), jnp.broadcast_to(logits, (2000, 600))))
  assert set(tokens.tolist()) == {5, 300, 599}


@pytest.mark.parametrize(
  "sampler,message",
  [
    (SamplingParams(temperature=-0.1), "temperature"),
    (SamplingParams(top_k=0), "top_k"),
    (SamplingParams(top_p=0.0), "top_p"),
    (SamplingParams(min_p=1.5), "min_p"),
  ],
)
def test_settings_out_of_range_are_named(sampler, message):
  with pytest.raises(ValueError, match=message):
    samplers.check(sampler)
