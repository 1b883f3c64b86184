"""Every estimator of `ops`, through its factory, against loops in numpy that are written from the formula."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import advantages, estimates, returns, token_advantages
from rl_jax.ops.estimates import Experience

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(7)
P, G, T = 2, 3, 4
LENGTHS = np.array([[4, 2, 3], [1, 4, 2]])
REWARDED = np.array([[1, 1, 1], [1, 0, 1]], bool)  # nobody judged the second completion of the second prompt
MASK = (np.arange(T) < LENGTHS[..., None]) & REWARDED[..., None]
MASK[0, 0, 1] = False  # the output of a tool
REAL = MASK.copy()
REAL[0, 0, 1] = True
MASK[0, 2] = False  # left out of the loss; it keeps its reward
TOKEN_REWARDS = np.where(REAL, RNG.normal(size=(P, G, T)), 0)
TOKEN_REWARDS[1, 1] = np.nan
TOTAL = np.array([[sum(TOKEN_REWARDS[p, g]) for g in range(G)] for p in range(P)])
VALUES, OLD_LOGP, TEACHER_LOGP = RNG.normal(size=(3, P, G, T)) - [[[[0.0]]], [[[3.0]]], [[[3.0]]]]
SQUARES = np.exp(2 * OLD_LOGP) + 0.05
LAST_VALUES = np.array([[0.7, 0.0, -0.4], [0.0, 0.3, 1.1]])
GREEDY = np.array([0.3, np.nan])
PARTS = RNG.normal(size=(2, P, G))
PARTS[:, 1, 1] = np.nan
PARTS[1, 0, 2] = np.nan  # the second reward does not apply to one that the first does
WEIGHTS = np.array([2.0, 0.5])
STEP_REWARDS, STATES = np.array([1.0, 3.0, 7.0, 2.0]), np.array([5, 5, 5, 9])
STEPS = np.where(MASK, RNG.integers(4, size=(P, G, T)), -7)


def dirty(x):
  return np.where(MASK, x, np.nan)


EXPERIENCE = Experience(
  mask=MASK,
  token_rewards=TOKEN_REWARDS,
  rewarded=REWARDED,
  lengths=LENGTHS,
  values=dirty(VALUES),
  last_values=LAST_VALUES,
  greedy_rewards=GREEDY,
  reward_parts=PARTS,
  reward_weights=WEIGHTS,
  reward_baseline=np.array(0.5),
  old_logp=dirty(OLD_LOGP),
  sum_squared_probs=dirty(SQUARES),
  teacher_logp=dirty(TEACHER_LOGP),
  step_rewards=STEP_REWARDS,
  states=STATES,
  steps=STEPS,
)
BESIDES = {"reward_parts": {"reward_weights"}, "values": {"last_values"}}  # optional where another field is needed


def deviation(x):
  mean = sum(x) / len(x)
  return (sum((s - mean) ** 2 for s in x) / (len(x) - 1)) ** 0.5


def at_tokens(of_group):
  """`[P, G, T]` from what a function gives for the rewards of one prompt's judged completions, and their places."""
  found = np.zeros((P, G, T))
  for p in range(P):
    judged = [g for g in range(G) if REWARDED[p, g]]
    for g, a in zip(judged, of_group([TOTAL[p, g] for g in judged], p, judged), strict=True):
      for t in range(T):
        found[p, g, t] = a if MASK[p, g, t] else 0
  return {"advantages": found}


def whiten(x, eps=1e-8):
  chosen = [x[place] for place in np.argwhere(MASK).tolist() for place in [tuple(place)]]
  mean, variance = sum(chosen) / len(chosen), deviation(chosen) ** 2
  return np.where(MASK, (x - mean) / np.sqrt(variance + eps), 0)


def rows(of_row):
  """`[P, G, T]` from what a function gives for the chosen places of one completion, last one first."""
  found = np.zeros((P, G, T))
  for p in range(P):
    for g in range(G):
      backwards = [t for t in reversed(range(T)) if MASK[p, g, t]]
      for t, a in zip(backwards, of_row(p, g, backwards), strict=True):
        found[p, g, t] = a
  return found


def to_go(gamma):
  def of_row(p, g, backwards):
    total = 0.0
    for t in backwards:
      total = TOKEN_REWARDS[p, g, t] + gamma * total
      yield total

  return rows(of_row)


def gae(gamma, lam, bootstrap):
  """`lam` is a function of the number of chosen tokens."""

  def of_row(p, g, backwards):
    value, advantage = LAST_VALUES[p, g] if bootstrap else 0.0, 0.0
    for t in backwards:
      error = TOKEN_REWARDS[p, g, t] + gamma * value - VALUES[p, g, t]
      advantage = error + gamma * lam(len(backwards)) * advantage
      value = VALUES[p, g, t]
      yield advantage

  return rows(of_row)


def critic(gamma, lam, *, value_lam=None, bootstrap=True, whitened=False):
  found = gae(gamma, lam, bootstrap)
  of_values = found if value_lam is None else gae(gamma, value_lam, bootstrap)
  return {"advantages": whiten(found) if whitened else found, "returns": np.where(MASK, of_values + VALUES, 0)}


def group_normalized(s, p, judged):
  return [(x - sum(s) / len(s)) / (deviation(s) + 1e-6) for x in s]


def opo(s, p, judged):
  n = [LENGTHS[p, g] for g in judged]
  return [x - sum(a * b for a, b in zip(n, s, strict=True)) / sum(n) for x in s]


def pass_at_k(s, p, judged):
  second, best = sorted(s)[-2:]
  return [best - second if x == best else 0 for x in s]


def maxrl(s, p, judged):
  mean = sum(s) / len(s)
  return [(x - mean) / mean if mean > 0 else 0 for x in s]


def normalize_then_sum():
  """Each reward by itself within each prompt; then by the mean and deviation of all judged completions."""
  total = np.zeros((P, G))
  for k in range(2):
    for p in range(P):
      has = [g for g in range(G) if not np.isnan(PARTS[k, p, g])]
      own = [PARTS[k, p, g] for g in has]
      for g in has:
        total[p, g] += WEIGHTS[k] * (PARTS[k, p, g] - sum(own) / len(own)) / (deviation(own) + 1e-6)
  plain = at_tokens(lambda s, p, judged: [total[p, g] for g in judged])
  every = [total[p, g] for p in range(P) for g in range(G) if REWARDED[p, g]]
  mean, std = sum(every) / len(every), deviation(every) + 1e-4
  return plain, at_tokens(lambda s, p, judged: [(total[p, g] - mean) / std for g in judged])


def reinforce_plus_plus_baseline():
  return {"advantages": whiten(at_tokens(lambda s, p, judged: [x - sum(s) / len(s) for x in s])["advantages"])}


def optimal_token_baseline():
  to_go_, norm, found = to_go(1.0), np.zeros((P, G, T)), np.zeros((P, G, T))
  for p in range(P):
    for g in range(G):
      so_far = 0.0
      for t in range(T):
        if MASK[p, g, t]:
          so_far += 1 - 2 * np.exp(OLD_LOGP[p, g, t]) + SQUARES[p, g, t]
          norm[p, g, t] = so_far
    tokens = sorted(MASK[p].sum(-1))
    for t in range(T):
      present = [g for g in range(G) if MASK[p, g, t]]
      weight = sum(norm[p, g, t] for g in present)
      b = sum(to_go_[p, g, t] * norm[p, g, t] for g in present) / (weight + 1e-8)
      for g in present:
        alone = MASK[p, g].sum() == tokens[-1] > tokens[-2] and t >= tokens[-2]
        found[p, g, t] = to_go_[p, g, t] - (0 if alone else b)
  return {"advantages": found, "returns": to_go_}


def step_level():
  """The first three steps are from one state: (1, 3, 7) has the mean 11/3; the last one has nobody to compare with."""
  mean, std = 11 / 3, (((1 - 11 / 3) ** 2 + (3 - 11 / 3) ** 2 + (7 - 11 / 3) ** 2) / 2) ** 0.5
  own = [(r - mean) / (std + 1e-6) for r in (1, 3, 7)] + [0]
  episodes = at_tokens(lambda s, p, judged: [x - 0.5 for x in s])["advantages"]
  part = rows(lambda p, g, backwards: [own[STEPS[p, g, t]] for t in backwards])
  return {"advantages": episodes + 0.25 * part}


SELECTED = TOTAL[REWARDED]
MEAN = sum(SELECTED) / len(SELECTED)
# The estimator's name in `ops`, and what tells two uses of it apart: its factory's result, and what it must give.
CASES = {
  "group_normalized": (estimates.per_completion(advantages.group_normalized), at_tokens(group_normalized)),
  "leave_one_out": (
    estimates.per_completion(advantages.leave_one_out),
    at_tokens(lambda s, p, judged: [x - (sum(s) - x) / (len(s) - 1) for x in s]),
  ),
  "baseline": (estimates.per_completion(advantages.baseline), at_tokens(lambda s, p, judged: [x - MEAN for x in s])),
  "running_mean": (
    estimates.against_running_mean(decay=0.9),
    at_tokens(lambda s, p, judged: [x - 0.5 for x in s]) | {"reward_baseline": 0.9 * 0.5 + 0.1 * MEAN},
  ),
  "remax": (
    estimates.against_greedy(advantages.remax),  # the second prompt's greedy completion has no reward
    at_tokens(lambda s, p, judged: [x - 0.3 if p == 0 else 0 for x in s]),
  ),
  "opo": (estimates.with_lengths(advantages.opo), at_tokens(opo)),
  "gpg": (
    estimates.per_completion(advantages.gpg),  # five rewards, none of them 0
    at_tokens(lambda s, p, judged: [x - sum(s) / len(s) for x in s]),
  ),
  "pass_at_k": (estimates.per_completion(advantages.pass_at_k), at_tokens(pass_at_k)),
  "maxrl": (estimates.per_completion(advantages.maxrl), at_tokens(maxrl)),
  "normalize_then_sum": (estimates.per_reward(advantages.normalize_then_sum, whiten=False), normalize_then_sum()[0]),
  "normalize_then_sum, whitened": (estimates.per_reward(advantages.normalize_then_sum), normalize_then_sum()[1]),
  "reinforce_plus_plus": (
    estimates.per_token(partial(token_advantages.reinforce_plus_plus, gamma=0.9)),
    {"advantages": whiten(to_go(0.9))},
  ),
  "reinforce_plus_plus_baseline": (
    estimates.over_tokens(token_advantages.reinforce_plus_plus_baseline),
    reinforce_plus_plus_baseline(),
  ),
  "optimal_token_baseline": (
    estimates.with_probabilities(token_advantages.optimal_token_baseline),
    optimal_token_baseline(),
  ),
  "step_level": (
    estimates.by_steps(
      estimates.per_completion(partial(advantages.baseline, value=0.5)),
      partial(token_advantages.step_level, weight=0.25),
    ),
    step_level(),
  ),
  "distillation": (estimates.from_teacher(), {"advantages": np.where(MASK, TEACHER_LOGP - OLD_LOGP, 0)}),
  "discounted_returns": (
    estimates.per_token(partial(returns.discounted_returns, gamma=0.9)),
    {"advantages": to_go(0.9)},
  ),
  "gae": (estimates.with_critic(partial(returns.gae, gamma=0.9, lam=0.8)), critic(0.9, lambda n: 0.8, whitened=True)),
  "gae, plain": (
    estimates.with_critic(partial(returns.gae, gamma=0.9, lam=0.8), whiten=False),
    critic(0.9, lambda n: 0.8),
  ),
  "gae, one step": (
    estimates.with_critic(partial(returns.gae, gamma=0.9, lam=0.0), whiten=False),
    critic(0.9, lambda n: 0.0),
  ),
  "gae_associative": (
    estimates.with_critic(partial(returns.gae_associative, gamma=0.9, lam=0.8), whiten=False),
    critic(0.9, lambda n: 0.8),
  ),
  "decoupled_gae": (
    estimates.with_critic(partial(returns.decoupled_gae, gamma=0.9, alpha=0.75, value_lam=0.95), whiten=False),
    critic(0.9, lambda n: 1 - 1 / max(0.75 * n, 1), value_lam=lambda n: 0.95),
  ),
}
NO_ESTIMATORS = {
  advantages: {"whitened", "by_group_ids", "keep_groups", "keep_top_k", "zero_variance"},
  token_advantages: {"broadcast_to_tokens"},
  returns: {"td_errors", "explained_variance", "length_adaptive_lambda"},  # TD errors are `gae` with lambda 0
}


def given(advantage, token_rewards=TOKEN_REWARDS, **others):
  """The fields that an estimate says it needs, and those that every one gets."""
  needs = advantage.needs.union(*(BESIDES.get(name, set()) for name in advantage.needs))
  unread = {name for name in Experience._fields[4:] if name not in needs}
  fields = dict.fromkeys(unread) | {"token_rewards": token_rewards} | others
  return jax.tree.map(jnp.asarray, EXPERIENCE._replace(**fields))  # in float64: not before a test runs


def check(advantage, experience, expected):
  found = advantage.estimate(experience)
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
  np.testing.assert_array_equal(found["advantages"][~jnp.asarray(MASK)], 0)


@pytest.mark.parametrize("module", NO_ESTIMATORS, ids=lambda module: module.__name__)
def test_every_estimator_is_compared(module):
  public = {
    name
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
  }
  compared = {case.partition(",")[0] for case in CASES}
  assert NO_ESTIMATORS[module] <= public
  assert public - NO_ESTIMATORS[module] == public & compared


@pytest.mark.parametrize("case", CASES)
def test_against_loops(case):
  advantage, expected = CASES[case]
  assert advantage.needs <= set(Experience._fields)
  check(advantage, given(advantage), expected)


@pytest.mark.parametrize("case", [case for case, (advantage, _) in CASES.items() if "token_rewards" in advantage.needs])
def test_rewards_under_the_mask_reach_no_token(case):
  advantage, expected = CASES[case]
  check(advantage, given(advantage, np.where(MASK, TOKEN_REWARDS, np.nan)), expected)


def test_cases_tell_estimators_apart():
  """A case whose numbers are those of another would not notice that one was taken for the other."""
  found = {case: expected["advantages"] for case, (_, expected) in CASES.items()}
  same = {
    (one, other)
    for i, one in enumerate(found)
    for other in list(found)[i + 1 :]
    if np.allclose(found[one], found[other], rtol=1e-3)
  }
  assert same == {("gae, plain", "gae_associative")}


def test_a_critic_without_last_values_bootstraps_from_0():
  for whitened in (True, False):
    advantage = estimates.with_critic(partial(returns.gae, gamma=0.9, lam=0.8), whiten=whitened)
    expected = critic(0.9, lambda n: 0.8, bootstrap=False, whitened=whitened)
    check(advantage, given(advantage, last_values=None), expected)


def test_returns_are_those_of_a_completion_by_itself():
  """Completions worth 1, 2 and 4, each rewarded at its end: nothing is summed across the group."""
  rewards = np.zeros((1, 3, 2))
  rewards[0, :, 1] = 1, 2, 4
  ones = jnp.ones((1, 3, 2))
  experience = Experience(ones, jnp.asarray(rewards), ones[..., 0], 2 * ones[..., 0])
  plain = estimates.per_token(returns.discounted_returns).estimate(experience)["advantages"]
  np.testing.assert_array_equal(plain, [[[1, 1], [2, 2], [4, 4]]])
  halved = estimates.per_token(partial(returns.discounted_returns, gamma=0.5)).estimate(experience)["advantages"]
  np.testing.assert_array_equal(halved, [[[0.5, 1], [1, 2], [2, 4]]])


def test_the_running_mean_is_carried_from_batch_to_batch():
  """Batches with means 2 and 6 after a baseline of 0, decay 1/2: baselines 0, 1 and 3.5."""
  advantage, ones, baseline = estimates.against_running_mean(decay=0.5), jnp.ones((1, 2, 1)), jnp.zeros(())
  for rewards, before, after in (((1.0, 3.0), 0.0, 1.0), ((4.0, 8.0), 1.0, 3.5)):
    experience = Experience(ones, jnp.array(rewards).reshape(1, 2, 1), ones[..., 0], ones[..., 0])
    found = advantage.estimate(experience._replace(reward_baseline=baseline))
    np.testing.assert_allclose(found["advantages"].ravel(), np.array(rewards) - before)
    baseline = found["reward_baseline"]
    np.testing.assert_allclose(baseline, after)


def test_several_rewards_are_normalized_within_their_prompt():
  """Two prompts of very different levels: (1, 3) and (101, 103) both give -+ 1/sqrt 2."""
  ones = jnp.ones((2, 2, 1))
  parts = jnp.array([[[1.0, 3.0], [101.0, 103.0]]])
  experience = Experience(ones, ones, ones[..., 0], ones[..., 0], reward_parts=parts, reward_weights=jnp.ones(1))
  found = estimates.per_reward(advantages.normalize_then_sum, whiten=False).estimate(experience)["advantages"]
  np.testing.assert_allclose(found[..., 0], 2 * [[-(0.5**0.5), 0.5**0.5]], rtol=1e-6)
