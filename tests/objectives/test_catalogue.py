"""Each objective's loss and closed-form gradient in a few lines of numpy, and one value worked by hand.

`r` is the ratio to the old policy, `l` the learner's log-probs, `A` the advantages, `w` the weights of the aggregation.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.objectives.base import Inputs
from rl_jax.ops.metrics import results

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(7)
SHAPE = (3, 2, 5)
MASK = np.arange(5) < RNG.integers(1, 6, size=(3, 2, 1))
OLD, REF, MU = -RNG.random((3, *SHAPE)) * 2 - 0.1
L = np.minimum(OLD + RNG.normal(size=SHAPE) * 0.4, -0.01)
A = np.broadcast_to(RNG.normal(size=(3, 2, 1)) * 2, SHAPE)
VALUES, OLD_VALUES, RETURNS = RNG.normal(size=(3, *SHAPE)) * 0.4
NOISE = RNG.random(SHAPE)
TARGET = ~MASK & (np.arange(5) >= 3)
SCORES, RATINGS, KL_BASELINE = RNG.normal(size=(3, 3, 2))
N = MASK.sum(-1, keepdims=True)
R = np.exp(L - OLD)
TOKEN = MASK / MASK.sum()
SEQUENCE = MASK / N / 6
SUM = MASK / 6


def inputs(**changes):
  fields = dict(
    mask=MASK,
    advantages=A,
    old_logp=OLD,
    ref_logp=REF,
    behavior_logp=MU,
    batch_logp=L,
    old_values=OLD_VALUES,
    returns=RETURNS,
    noise=NOISE,
    target_mask=TARGET,
    ratings=RATINGS,
    kl_baseline=KL_BASELINE,
  )
  return Inputs(**{name: jnp.asarray(value) for name, value in (fields | changes).items()})


def evaluate(objective, given, **learner):
  weights = objective.weight(given)

  def loss(learner):
    return objective.loss(given._replace(**learner), weights)[0]

  return jax.value_and_grad(loss)({name: jnp.asarray(x) for name, x in learner.items()})


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def clipped(low, high):
  """PPO's clip: loss and slope by token."""
  stopped = np.where(A > 0, R > 1 + high, R < 1 - low)
  return -np.minimum(R * A, np.clip(R, 1 - low, 1 + high) * A), np.where(stopped, 0, -R * A)


def clipped_sequence(low, high, weight):
  """GSPO's clip: every token of a row carries the row's ratio, and its slope is spread evenly over the row."""
  s = np.exp((np.where(MASK, L - OLD, 0)).sum(-1, keepdims=True) / N)
  stopped = np.where(A > 0, s > 1 + high, s < 1 - low)
  loss = -np.minimum(s * A, np.clip(s, 1 - low, 1 + high) * A)
  slope = np.where(stopped, 0, -s * A) * (weight.sum(-1, keepdims=True) / N)
  return (weight * loss).sum(), MASK * slope


def plain(loss, slope, weight=TOKEN):
  return (weight * loss).sum(), weight * slope


def value_part(clip):
  loss = (VALUES - RETURNS) ** 2
  slope = 2 * (VALUES - RETURNS)
  if clip is not None:
    near = np.clip(VALUES, OLD_VALUES - clip, OLD_VALUES + clip)
    other = (near - RETURNS) ** 2
    slope = np.where(other > loss, np.where(near == VALUES, slope, 0), slope)
    loss = np.maximum(loss, other)
  return (TOKEN * loss).sum() / 2, TOKEN * slope / 2


def with_value(policy, coef, clip):
  value, slope = value_part(clip)
  return policy[0] + coef * value, policy[1], coef * slope


def covariance():
  mean = lambda x: x[MASK].mean()  # noqa: E731
  return (A - mean(A)) * (L - mean(L))


def grpo():
  loss, slope = clipped(0.2, 0.2)
  d = REF - L
  return plain(loss + 0.04 * (np.exp(d) - d - 1), slope + 0.04 * (1 - np.exp(d)), SEQUENCE)


def sapo():
  tau = np.where(A > 0, 1.0, 1.05)
  gate = sigmoid(tau * (R - 1))
  return plain(-4 / tau * gate * A, -4 * gate * (1 - gate) * R * A, SEQUENCE)


def gmpo():
  pessimistic = np.where(A > 0, np.minimum(L - OLD, 0.4), np.maximum(L - OLD, -0.4))
  inside = np.where(A > 0, L - OLD <= 0.4, L - OLD >= -0.4)
  row = np.exp(np.where(MASK, pessimistic, 0).sum(-1, keepdims=True) / N)
  return (SEQUENCE * -row * A).sum(), -SEQUENCE * row * A * inside


def vespo():
  w = np.exp(np.where(MASK, L - OLD, 0).sum(-1, keepdims=True))
  phi = np.where(A >= 0, w**2 * np.exp(3 * (1 - w)), w**3 * np.exp(2 * (1 - w)))
  return plain(-phi * A * L, -phi * A)


def dppo():
  moved = np.exp(L) - np.exp(OLD)
  weight = np.where(np.where(A > 0, moved <= 0.15, moved >= -0.15), np.minimum(R, 20), 0)
  return plain(-weight * A * L, -weight * A)


def kl_cov():
  top = np.zeros(SHAPE, bool)
  top.flat[np.argmax(np.where(MASK, covariance(), -np.inf))] = True  # 2e-4 of so few tokens: one
  return plain(-R * A + top * np.abs(L - OLD), -R * A + top * np.sign(L - OLD))


def clip_cov():
  loss, slope = clipped(0.2, 0.2)
  candidates = MASK & (slope != 0) & (covariance() > 1) & (covariance() < 5)
  assert candidates.any()
  kept = np.ones(SHAPE)
  kept.flat[np.argmin(np.where(candidates, NOISE, np.inf))] = 0
  return plain(kept * loss, kept * slope)


def ppo_kl():
  d = L - OLD
  return with_value(plain(-R * A + np.exp(d) - 1 - d, -R * A + np.exp(d) - 1), 0.1, 0.2)


def instruct_gpt():
  value, slope, value_slope = with_value(plain(*clipped(0.2, 0.2)), 0.1, 0.2)
  target = 27.8 * TARGET / TARGET.sum()
  return value - (target * L).sum(), slope - target, value_slope


def vapo():
  value, slope, value_slope = with_value(plain(*clipped(0.2, 0.28)), 1.0, None)
  target = 0.1 * TARGET / TARGET.sum()
  return value - (target * L).sum(), slope - target, value_slope


def log_ratios(reference=REF):
  return np.where(MASK, L - reference, 0).sum(-1)


def pair(loss, slope_chosen, slope_rejected):
  """Losses of three pairs, with their slopes in the two summed log-probs."""
  slopes = np.stack([slope_chosen, slope_rejected], axis=-1)[..., None] / 3
  return loss.mean(), MASK * slopes


def dpo():
  u = 0.1 * (log_ratios()[:, 0] - log_ratios()[:, 1])
  return pair(np.log1p(np.exp(-u)), -0.1 * sigmoid(-u), 0.1 * sigmoid(-u))


def orpo():
  n = N[..., 0]
  mean = log_ratios(0.0) / n
  odds = mean - np.log(1 - np.exp(mean))
  d_odds = 1 / (1 - np.exp(mean))  # of the log-odds in the mean log-prob
  gap = odds[:, 0] - odds[:, 1]
  pull = 0.1 * sigmoid(-gap)
  loss = -mean[:, 0] + 0.1 * np.log1p(np.exp(-gap))
  return pair(loss, (-1 - pull * d_odds[:, 0]) / n[:, 0], pull * d_odds[:, 1] / n[:, 1])


def simpo():
  n = N[..., 0]
  mean = log_ratios(0.0) / n
  u = 2.0 * (mean[:, 0] - mean[:, 1]) - 1.0
  return pair(np.log1p(np.exp(-u)), -2 * sigmoid(-u) / n[:, 0], 2 * sigmoid(-u) / n[:, 1])


def cpo():
  total, n = log_ratios(0.0), N[..., 0]
  u = 0.1 * (total[:, 0] - total[:, 1])
  loss = np.log1p(np.exp(-u)) - total[:, 0] / n[:, 0]
  return pair(loss, -0.1 * sigmoid(-u) - 1 / n[:, 0], 0.1 * sigmoid(-u))


def kto():
  z0, l = max(KL_BASELINE.mean(), 0), log_ratios()  # noqa: E741
  sign = np.where(A[..., 0] > 0, 1, -1)
  gain = sigmoid(0.1 * sign * (l - z0))
  return (1 - gain).mean(), MASK * (-0.1 * sign * gain * (1 - gain) / 6)[..., None]


def reward_model():
  gap = SCORES[:, 0] - SCORES[:, 1]
  slope = sigmoid(-gap) / 3
  return np.log1p(np.exp(-gap)).mean(), np.stack([-slope, slope], axis=-1)


EXPECTED = {
  "cispo": lambda: plain(-np.minimum(R, 5) * A * L, -np.minimum(R, 5) * A),
  "clip_cov": clip_cov,
  "cpo": cpo,
  "dapo": lambda: plain(*clipped(0.2, 0.28)),
  "decoupled_ppo": lambda: plain(*clipped(0.2, 0.2), TOKEN * np.exp(OLD - MU)),
  "dpo": dpo,
  "dppo": dppo,
  "dr_grpo": lambda: plain(*clipped(0.2, 0.2), MASK / 6 / 512),
  "dro": lambda: plain(-A * L + 0.05 * (L - OLD) ** 2, -A + 0.1 * (L - OLD)),
  "gmpo": gmpo,
  "gpg": lambda: plain(-A * L, -A),
  "grpo": grpo,
  "gspo": lambda: clipped_sequence(3e-4, 4e-4, SEQUENCE),
  "instruct_gpt": instruct_gpt,
  "kl_cov": kl_cov,
  "kto": kto,
  "luspo": lambda: clipped_sequence(3e-4, 4e-4, SUM),
  "orpo": orpo,
  "ppo": lambda: with_value(plain(*clipped(0.2, 0.2)), 0.1, 0.2),
  "ppo_kl": ppo_kl,
  "reinforce": lambda: plain(-A * L, -A, SUM),
  "reinforce_plus_plus": lambda: plain(*clipped(0.2, 0.2)),
  "remax": lambda: plain(-A * L, -A, SUM),
  "reward_model": reward_model,
  "rloo": lambda: plain(-A * L, -A, SUM),
  "sapo": sapo,
  "sft": lambda: plain(-L, -1.0),
  "simpo": simpo,
  "vapo": vapo,
  "vespo": vespo,
}


def build(name, **arguments):
  module = importlib.import_module(f"rl_jax.objectives.{name}")
  return module.objective(**(getattr(module, "example", {}) | arguments))


def test_all_objectives_are_here():
  from rl_jax.objectives import names

  assert sorted(EXPECTED) == names()


@pytest.mark.parametrize("name", EXPECTED)
def test_loss_and_gradient_in_closed_form(name):
  objective = build(name)
  learner = {key: x for key, x in dict(logp=L, values=VALUES, reward_scores=SCORES).items() if key in objective.needs}
  value, gradients = evaluate(objective, inputs(), **learner)
  expected, *slopes = EXPECTED[name]()
  np.testing.assert_allclose(value, expected, rtol=1e-10)
  for gradient, slope in zip(gradients.values(), slopes, strict=True):
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-14)


# One token a row, two rows; l = log(3/5), log(1/5); old = log(1/2), log(1/2); A = +1, -1: the ratios are 1.2 and 0.4.
HAND = dict(
  mask=np.ones((1, 2, 1)),
  logp=np.log([[[0.6], [0.2]]]),
  old_logp=np.log([[[0.5], [0.5]]]),
  ref_logp=np.log([[[0.5], [0.5]]]),
  behavior_logp=np.log([[[0.25], [0.5]]]),
  batch_logp=np.log([[[0.6], [0.2]]]),
  advantages=np.array([[[1.0], [-1.0]]]),
  noise=np.zeros((1, 2, 1)),
  target_mask=np.zeros((1, 2, 1)),
  values=np.array([[[1.0], [0.0]]]),
  old_values=np.array([[[1.0], [0.0]]]),
  returns=np.array([[[2.0], [0.0]]]),
  reward_scores=np.array([[np.log(3.0), 0.0]]),
  kl_baseline=np.array([[-1.0, -1.0]]),
)
LOG = np.log
BY_HAND = {
  # clip to [0.8, 1.2]: (-1.2 + max(0.4, 0.8)) / 2
  "grpo": (-1.2 + 0.8) / 2 + 0.04 / 2 * ((5 / 6 - 1 - LOG(5 / 6)) + (2.5 - 1 - LOG(2.5))),
  "dapo": (-1.2 + 0.8) / 2,
  "reinforce_plus_plus": (-1.2 + 0.8) / 2,
  "dr_grpo": (-1.2 + 0.8) / 2 / 512,
  "gspo": (-1.0004 + 0.9997) / 2,
  "luspo": (-1.0004 + 0.9997) / 2,
  "decoupled_ppo": (-2 * 1.2 + 0.8) / 2,  # rho = 2 and 1
  "ppo": (-1.2 + 0.8) / 2 + 0.1 * (1 / 2) / 2,  # the value is off by 1 at one of two tokens
  "ppo_kl": (-1.2 + 0.4) / 2 + ((1.2 - 1 - LOG(1.2)) + (0.4 - 1 - LOG(0.4))) / 2 + 0.1 * (1 / 2) / 2,
  "instruct_gpt": (-1.2 + 0.8) / 2 + 0.1 * (1 / 2) / 2,
  "vapo": (-1.2 + 0.8) / 2 + (1 / 2) / 2,
  "clip_cov": (-1.2 + 0.8) / 2,  # both covariances are 0.55: no candidate
  "kl_cov": (-1.2 + 0.4) / 2 + LOG(1.2) / 2,  # equal covariances: the first token is picked
  "reinforce": (-LOG(0.6) + LOG(0.2)) / 2,
  "rloo": (-LOG(0.6) + LOG(0.2)) / 2,
  "remax": (-LOG(0.6) + LOG(0.2)) / 2,
  "gpg": (-LOG(0.6) + LOG(0.2)) / 2,
  "cispo": (-1.2 * LOG(0.6) + 0.4 * LOG(0.2)) / 2,
  "dppo": (-1.2 * LOG(0.6) + 0) / 2,  # 0.6 - 0.5 is within 0.15, 0.2 - 0.5 is not
  "dro": (-LOG(0.6) + LOG(0.2)) / 2 + 0.05 * (LOG(1.2) ** 2 + LOG(0.4) ** 2) / 2,
  "gmpo": (-1.2 + np.exp(-0.4)) / 2,
  "sapo": (-4 / (1 + np.exp(-0.2)) + 4 / 1.05 / (1 + np.exp(1.05 * 0.6))) / 2,
  "vespo": (-(1.2**2) * np.exp(-0.6) * LOG(0.6) + 0.4**3 * np.exp(1.2) * LOG(0.2)) / 2,
  "sft": -(LOG(0.6) + LOG(0.2)) / 2,
  "dpo": -LOG(sigmoid(0.1 * LOG(3))),
  "simpo": -LOG(sigmoid(2 * LOG(3) - 1)),
  "cpo": -LOG(sigmoid(0.1 * LOG(3))) - LOG(0.6),
  "orpo": -LOG(0.6) - 0.1 * LOG(6 / 7),  # odds 3/2 and 1/4
  "kto": 1 - (sigmoid(0.1 * LOG(1.2)) + sigmoid(-0.1 * LOG(0.4))) / 2,
  "reward_model": LOG(4 / 3),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_value_by_hand(name):
  given = Inputs(**{key: jnp.asarray(value) for key, value in HAND.items()})
  objective = build(name)
  np.testing.assert_allclose(objective.loss(given, objective.weight(given))[0], BY_HAND[name], rtol=1e-12)


def test_supervised_cross_entropy_is_the_policy_gradient_with_reward_1():
  from rl_jax.objectives.base import policy_gradient
  from rl_jax.ops import aggregation, ratios, surrogates

  reinforce = policy_gradient(
    ratios.on_policy(), surrogates.reinforce(), aggregation.token_mean(), needs=("logp", "advantages")
  )
  supervised = evaluate(build("sft"), inputs(), logp=L)
  rewarded = evaluate(reinforce, inputs(advantages=np.ones(SHAPE)), logp=L)
  np.testing.assert_allclose(supervised[0], rewarded[0], rtol=1e-12)
  np.testing.assert_allclose(supervised[1]["logp"], rewarded[1]["logp"], rtol=1e-12)


def test_dft_takes_the_inverse_probability_out_of_sft():
  value, gradient = evaluate(build("sft", loss="dft"), inputs(), logp=L)
  np.testing.assert_allclose(value, (-TOKEN * np.exp(L) * L).sum(), rtol=1e-12)
  np.testing.assert_allclose(gradient["logp"], -TOKEN * np.exp(L), rtol=1e-12)


U, V = log_ratios()[:, 0], log_ratios()[:, 1]
DPO_LOSSES = {
  "robust": lambda b, e: ((1 - e) * np.log1p(np.exp(-b * (U - V))) - e * np.log1p(np.exp(b * (U - V)))) / (1 - 2 * e),
  "hinge": lambda b, e: np.maximum(1 - b * (U - V), 0),
  "ipo": lambda b, e: (U - V - 1 / (2 * b)) ** 2,
  "exo": lambda b, e: sum(
    q * (np.log(q) - np.log(p)) for q, p in ((sigmoid(b * (U - V)), 1 - e), (sigmoid(-b * (U - V)), e))
  ),
  "nca": lambda b, e: -np.log(sigmoid(b * U)) - np.log(sigmoid(-b * U)) / 2 - np.log(sigmoid(-b * V)) / 2,
  "bco": lambda b, e: -np.log(sigmoid(b * U)) - np.log(sigmoid(-b * V)),
  "sppo": lambda b, e: (U - 0.5 / b) ** 2 + (V + 0.5 / b) ** 2,
  "apo_zero": lambda b, e: 1 - sigmoid(b * U) + sigmoid(b * V),
  "apo_down": lambda b, e: sigmoid(b * U) + 1 - sigmoid(b * (U - V)),
  "discopop": lambda b, e: (
    -np.log(sigmoid(b * (U - V))) * sigmoid(-b * (U - V) / 0.05) + np.exp(-b * (U - V)) * sigmoid(b * (U - V) / 0.05)
  ),
  "sigmoid": lambda b, e: -(1 - e) * np.log(sigmoid(b * (U - V))) - e * np.log(sigmoid(-b * (U - V))),
}


@pytest.mark.parametrize("loss", DPO_LOSSES)
def test_dpo_family(loss):
  value, gradient = evaluate(build("dpo", loss=loss, beta=0.3, label_smoothing=0.1), inputs(), logp=L)
  np.testing.assert_allclose(value, DPO_LOSSES[loss](0.3, 0.1).mean(), rtol=1e-10)
  # Nothing is held constant in these losses: central differences of the numpy formula are the gradient.
  for index in ((0, 0, 0), (1, 1, 0)):
    shifted = []
    for sign in (1, -1):
      moved = L.copy()
      moved[index] += sign * 1e-6
      shifted.append(evaluate(build("dpo", loss=loss, beta=0.3, label_smoothing=0.1), inputs(), logp=moved)[0])
    np.testing.assert_allclose(gradient["logp"][index], (shifted[0] - shifted[1]) / 2e-6, rtol=1e-5, atol=1e-9)


def _mean_logp():
  return np.where(MASK, L, 0).sum(-1) / np.maximum(MASK.sum(-1), 1)


@pytest.mark.parametrize(
  ("name", "settings", "rewards"),
  [
    ("dpo", dict(beta=0.3), lambda: 0.3 * log_ratios()),
    ("dpo", dict(loss="aot", beta=0.3), lambda: 0.3 * log_ratios()),
    ("dpo", dict(loss="apo_zero", beta=0.3), lambda: 0.3 * log_ratios()),
    ("simpo", dict(beta=2.0), lambda: 2.0 * _mean_logp()),
    ("cpo", dict(beta=0.2), lambda: 0.2 * np.where(MASK, L, 0).sum(-1)),
    ("orpo", dict(), lambda: _mean_logp() - np.log1p(-np.exp(_mean_logp()))),
  ],
)
def test_preference_losses_report_the_rewards_of_both_sides(name, settings, rewards):
  objective = build(name, **settings)
  given = inputs()._replace(logp=jnp.asarray(L), batch_logp=jnp.asarray(L))
  metrics = results(objective.loss(given, objective.weight(given))[1])
  complete = MASK.any(-1).all(-1)
  wanted = rewards()[complete]
  np.testing.assert_allclose(metrics["reward_chosen"], wanted[:, 0].mean(), rtol=1e-6)
  np.testing.assert_allclose(metrics["reward_rejected"], wanted[:, 1].mean(), rtol=1e-6)
  np.testing.assert_allclose(metrics["margin"], (wanted[:, 0] - wanted[:, 1]).mean(), rtol=1e-6)
  np.testing.assert_allclose(metrics["accuracy"], np.heaviside(wanted[:, 0] - wanted[:, 1], 0.5).mean())


def test_kto_reports_the_rewards_of_desirable_and_other_sequences():
  mask = jnp.ones((3, 1))
  logp, signs = jnp.array([[-1.0], [-2.0], [-4.0]]), jnp.array([[1.0], [1.0], [-1.0]])
  given = Inputs(mask, signs, logp=logp, ref_logp=jnp.full((3, 1), -2.0), kl_baseline=jnp.zeros(3))
  objective = build("kto", beta=0.5)
  metrics = results(objective.loss(given, objective.weight(given))[1])
  assert (metrics["reward_chosen"], metrics["reward_rejected"]) == (0.25, -1.0)


def test_aot_compares_sorted_margins():
  policy, reference = log_ratios(0.0) @ [1, -1], np.sort(np.where(MASK, REF, 0).sum(-1) @ [1, -1])
  gap = 0.1 * (policy - reference[np.argsort(np.argsort(policy))])
  value, gradient = evaluate(build("dpo", loss="aot"), inputs(), logp=L)
  np.testing.assert_allclose(value, np.log1p(np.exp(-gap)).mean(), rtol=1e-10)
  slope = 0.1 * sigmoid(-gap)[:, None, None] * np.array([[-1], [1]]) / 3
  np.testing.assert_allclose(gradient["logp"], MASK * slope, rtol=1e-9)


@pytest.mark.parametrize(
  "divergence,f",
  [
    ("forward_kl", lambda u: 1 - np.exp(-u)),
    ("js", lambda u: np.log(2) + np.log(sigmoid(u))),
    ("alpha", lambda u: (np.exp(-0.5 * u) - 1) / -0.5),
  ],
)
def test_dpo_f_divergences(divergence, f):
  value, _ = evaluate(build("dpo", divergence=divergence, alpha=0.5), inputs(), logp=L)
  np.testing.assert_allclose(value, np.log1p(np.exp(-0.1 * (f(U) - f(V)))).mean(), rtol=1e-10)


def test_length_desensitized_dpo():
  place = np.cumsum(MASK, axis=-1)
  shared = N.min(axis=1, keepdims=True)
  weight = np.where(place <= shared, 1, 0.5) * MASK
  u = (weight * (L - REF)).sum(-1)
  value, gradient = evaluate(build("dpo", tail_weight=0.5), inputs(), logp=L)
  gap = 0.1 * (u[:, 0] - u[:, 1])
  np.testing.assert_allclose(value, np.log1p(np.exp(-gap)).mean(), rtol=1e-10)
  slope = 0.1 * sigmoid(-gap)[:, None] * [-1, 1] / 3
  np.testing.assert_allclose(gradient["logp"], weight * slope[..., None], rtol=1e-9, atol=1e-15)


def test_rankings_take_all_pairs_with_margins_and_centering():
  scores, ratings = np.array([[3.0, 1.0, 0.5], [2.0, 0.0, 9.0]]), np.array([[2.0, 1.0, 0.0], [1.0, 0.0, 9.0]])
  mask = np.ones((2, 3, 1))
  mask[1, 2] = 0  # the second ranking has two answers
  given = Inputs(mask=jnp.asarray(mask), ratings=jnp.asarray(ratings))
  value, _ = evaluate(build("reward_model", centering=0.1, margins=True), given, reward_scores=scores)

  def loss(row, i, j):
    gap = scores[row, i] - scores[row, j] - (ratings[row, i] - ratings[row, j])
    return np.log1p(np.exp(-gap)) + 0.1 * (scores[row, i] + scores[row, j]) ** 2

  first = (loss(0, 0, 1) + loss(0, 0, 2) + loss(0, 1, 2)) / 3
  np.testing.assert_allclose(value, (first + loss(1, 0, 1)) / 2, rtol=1e-12)
  ratings[0] = [2.0, 1.0, 1.0]  # the last two are as good as each other
  tied, _ = evaluate(
    build("reward_model", centering=0.1, margins=True), given._replace(ratings=ratings), reward_scores=scores
  )
  np.testing.assert_allclose(tied, ((loss(0, 0, 1) + loss(0, 0, 2)) / 2 + loss(1, 0, 1)) / 2, rtol=1e-12)


@pytest.mark.parametrize(
  "name,arguments,message",
  [
    ("dpo", dict(loss="dpo"), "loss must be one of"),
    ("dpo", dict(divergence="tv"), "divergence must be one of"),
    ("dpo", dict(loss="exo"), "needs a positive label_smoothing"),
    ("dpo", dict(loss="aot", length_normalized=True), "takes neither"),
    ("dpo", dict(divergence="alpha", alpha=1.0), "alpha must not be 1"),
    ("dppo", dict(divergence="js"), "divergence must be 'tv' or 'kl'"),
    ("gspo", dict(gradient="row"), "gradient must be 'sequence' or 'token'"),
    ("sft", dict(loss="mse"), "loss must be 'nll' or 'dft'"),
    ("dr_grpo", dict(length=0), "length must be at least 1"),
  ],
)
def test_mistakes_are_named(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    build(name, **arguments)


def test_the_accuracy_of_equals_is_a_half():
  logp = jnp.log(jnp.array([[[0.5], [0.25]], [[0.5], [0.5]], [[0.25], [0.5]], [[0.5], [0.5]]]))
  inputs = Inputs(jnp.ones(logp.shape), ref_logp=jnp.zeros(logp.shape), logp=logp)
  for objective, given in (
    (build("dpo"), inputs),
    (build("reward_model"), inputs._replace(reward_scores=logp[..., 0])),
  ):
    metrics = objective.loss(given, objective.weight(given))[1]
    np.testing.assert_allclose(metrics["accuracy"].total / metrics["accuracy"].count, (1 + 0.5 + 0 + 0.5) / 4)


def test_a_preference_batch_must_hold_pairs():
  with pytest.raises(ValueError, match=r"must be \[..., 2, T\]"):
    evaluate(build("dpo"), Inputs(jnp.ones((3, 5)), ref_logp=jnp.zeros((3, 5))), logp=np.zeros((3, 5)))


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_squared_losses_of_exponentials_stay_finite_in_float32(divergence):
  far = Inputs(jnp.ones((1, 2, 1)), ref_logp=jnp.zeros((1, 2, 1), jnp.float32))
  logp = jnp.array([[[-90.0], [-1.0]]], jnp.float32)
  value, gradient = evaluate(build("dpo", loss="ipo", divergence=divergence), far, logp=logp)
  assert np.isfinite(value) and np.isfinite(gradient["logp"]).all()


def test_a_constant_length_may_be_traced():
  from rl_jax.ops import aggregation

  weights = jax.jit(lambda length: aggregation.constant_length(length=length)(jnp.ones((2, 3))))(4)
  np.testing.assert_allclose(weights, np.full((2, 3), 1 / 8))


@pytest.mark.parametrize("loss", ["nca", "bco", "sppo", "apo_zero", "apo_down"])
@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_losses_of_more_than_a_difference_take_no_other_divergence(loss, divergence):
  with pytest.raises(ValueError, match="is defined for divergence 'reverse_kl' alone"):
    build("dpo", loss=loss, divergence=divergence)
