"""The catalogue's estimators against numpy loops over groups of uneven size, and their degenerate cases."""

import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import advantages, masking, selection, token_advantages

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(4)
REWARDS = RNG.normal(size=(4, 5))
REWARDS[2] = 0.3  # all equal
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]], bool)  # the last: a group of one
DIRTY = np.where(MASK, REWARDS, np.nan)
LENGTHS = RNG.integers(1, 9, size=(4, 5))


def by_group(function):
  """Applies a function of one group's rewards (and places) to each, and puts zeros elsewhere."""
  out = np.zeros(REWARDS.shape)
  for row, exists in enumerate(MASK):
    places = np.flatnonzero(exists)
    out[row, places] = function(REWARDS[row, places], row, places)
  return out


def constant(r):
  return np.ptp(r) == 0


CASES = {
  "opo": (
    lambda: advantages.opo(DIRTY, jnp.asarray(LENGTHS), MASK),
    lambda r, row, p: np.zeros(len(r)) if constant(r) else r - (LENGTHS[row, p] * r).sum() / LENGTHS[row, p].sum(),
  ),
  "maxrl": (
    lambda: advantages.maxrl(DIRTY, MASK),
    lambda r, row, p: (r - r.mean()) / r.mean() if r.mean() > 0 and not constant(r) else np.zeros(len(r)),
  ),
  "leave_self_out": (
    lambda: advantages.group_normalized(DIRTY, MASK, leave_self_out=True, eps=0.1),
    lambda r, row, p: (
      np.zeros(len(r))
      if constant(r)
      else np.array([(r[i] - np.delete(r, i).mean()) / (np.delete(r, i).std(ddof=1) + 0.1) for i in range(len(r))])
    ),
  ),
  "pass_at_k": (
    lambda: advantages.pass_at_k(DIRTY, MASK, normalize=True, eps=0.1),
    lambda r, row, p: (
      np.zeros(len(r))
      if len(r) < 2 or constant(r)
      else np.where(np.arange(len(r)) == r.argmax(), (np.sort(r)[-1] - np.sort(r)[-2]) / (r.std(ddof=1) + 0.1), 0)
    ),
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_against_a_loop_over_groups(name):
  actual, loop = CASES[name]
  np.testing.assert_allclose(actual(), by_group(loop), rtol=1e-10, atol=1e-13)


def test_gpg_scales_by_the_rewards_that_are_not_zero():
  rewards = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
  mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
  expected = 5 / 1 * np.array([[2 / 3, -1 / 3, -1 / 3], [0, 0, 0]])
  np.testing.assert_allclose(advantages.gpg(jnp.asarray(rewards), mask), expected, atol=1e-12)
  by_deviation = advantages.gpg(jnp.asarray(rewards), mask, f_norm=jnp.array([[0.5], [0.0]]))
  np.testing.assert_allclose(by_deviation, 2 * expected, atol=1e-12)


def test_baselines():
  selected = REWARDS[MASK]
  np.testing.assert_allclose(advantages.baseline(DIRTY, MASK)[MASK], selected - selected.mean())
  np.testing.assert_allclose(advantages.baseline(DIRTY, MASK, value=0.5)[MASK], selected - 0.5)
  greedy = RNG.normal(size=4)
  against_greedy = advantages.remax(DIRTY, jnp.asarray(greedy), MASK)
  np.testing.assert_allclose(against_greedy, by_group(lambda r, row, places: r - greedy[row]))
  kept = advantages.running_mean(jnp.array(2.0), DIRTY, MASK, decay=0.9)
  np.testing.assert_allclose(kept, 1.8 + 0.1 * selected.mean())
  assert advantages.running_mean(jnp.array(2.0), DIRTY, jnp.zeros((4, 5))) == 2


def test_normalize_then_sum_keeps_a_wide_reward_from_drowning_a_narrow_one():
  wide, narrow = 1000 * REWARDS[:1], RNG.normal(size=(1, 5))
  actual = advantages.normalize_then_sum(jnp.asarray(np.stack([wide, narrow])), weights=jnp.array([2.0, 0.5]), eps=0.0)
  z = lambda x: (x - x.mean()) / x.std(ddof=1)  # noqa: E731
  np.testing.assert_allclose(actual, 2 * z(wide) + 0.5 * z(narrow), rtol=1e-10)
  np.testing.assert_allclose(advantages.whitened(actual, eps=0.0), z(actual), rtol=1e-10)


def test_filters():
  np.testing.assert_array_equal(advantages.keep_groups(DIRTY, MASK), [True, True, False, False])
  solved = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
  np.testing.assert_array_equal(advantages.keep_groups(solved, low=0.0, high=1.0), [False, True, False])
  assert not advantages.keep_groups(solved, jnp.zeros((3, 2)), low=-1.0).any()
  kept = np.asarray(advantages.keep_top_k(DIRTY, MASK, k=2))
  assert kept.sum(-1).tolist() == [2, 2, 2, 1] and not kept[~MASK].any()
  np.testing.assert_array_equal(np.sort(np.abs(REWARDS[0])[kept[0]]), np.sort(np.abs(REWARDS[0]))[-2:])
  np.testing.assert_array_equal(kept[2], [True, True, False, False, False])  # ties go to the earlier one
  with pytest.raises(ValueError, match="k must be at least 1"):
    advantages.keep_top_k(DIRTY, MASK, k=0)


TOKENS = np.arange(6) < RNG.integers(1, 7, size=(2, 3, 1))
TOKENS[0, 1, 1] = False if TOKENS[0, 1].sum() > 2 else TOKENS[0, 1, 1]
TOKEN_REWARDS, LOGP = RNG.normal(size=(2, 2, 3, 6))
LOGP = -np.abs(LOGP)
SQUARES = np.exp(2 * LOGP) + 0.05


def test_optimal_token_baseline_against_loops():
  dirty = [np.where(TOKENS, x, np.nan) for x in (TOKEN_REWARDS, LOGP, SQUARES)]
  actual, returns = token_advantages.optimal_token_baseline(*dirty, TOKENS, zero_tail=False, eps=0.0)
  rewards = np.where(TOKENS, TOKEN_REWARDS, 0)
  to_go = np.flip(np.cumsum(np.flip(rewards, -1), -1), -1)
  norm = np.cumsum(np.where(TOKENS, 1 - 2 * np.exp(LOGP) + SQUARES, 0), -1)
  for p in range(2):
    for t in range(6):
      present = TOKENS[p, :, t]
      if present.any():
        b = (to_go[p, present, t] * norm[p, present, t]).sum() / norm[p, present, t].sum()
        np.testing.assert_allclose(actual[p, present, t], to_go[p, present, t] - b, rtol=1e-9, atol=1e-12)
  assert not actual[~jnp.asarray(TOKENS)].any()
  np.testing.assert_allclose(returns[TOKENS], to_go[TOKENS])


def test_the_longest_completion_has_nobody_to_be_compared_with_at_its_end():
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])
  ones = jnp.ones((2, 4))
  arguments = 0.0 * ones + jnp.array([[0, 0, 0, 2.0], [0, 1.0, 0, 0]]), jnp.log(0.5 * ones), 0.3 * ones, mask
  tail, _ = token_advantages.optimal_token_baseline(*arguments)
  np.testing.assert_allclose(tail[0, 2:], [2, 2])
  compared, _ = token_advantages.optimal_token_baseline(*arguments, zero_tail=False)
  np.testing.assert_allclose(compared[0, 2:], [0, 0], atol=1e-6)
  lone, _ = token_advantages.optimal_token_baseline(*(x[:1] for x in arguments))
  np.testing.assert_allclose(lone, [[2, 2, 2, 2]])


def test_whitened_token_advantages():
  rewards = RNG.normal(size=(2, 3))
  actual = token_advantages.reinforce_plus_plus_baseline(jnp.asarray(rewards), TOKENS)
  centered = np.broadcast_to((rewards - rewards.mean(-1, keepdims=True))[..., None], TOKENS.shape)
  expected = (centered - centered[TOKENS].mean()) / np.sqrt(centered[TOKENS].var(ddof=1) + 1e-8)
  np.testing.assert_allclose(actual[TOKENS], expected[TOKENS], rtol=1e-9)
  np.testing.assert_allclose(masking.masked_mean(actual, TOKENS), 0, atol=1e-12)


def test_steps_from_the_same_state_are_compared():
  step_rewards, states = jnp.array([1.0, 3.0, 5.0, 7.0]), jnp.array([8, 8, 8, 2])
  steps, mask = jnp.array([[0, 0, 3, -7], [1, 2, 2, 2]]), jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
  actual = token_advantages.step_level(jnp.ones((2, 4)), step_rewards, states, steps, mask, weight=0.5)
  z = np.array([-1.0, 0.0, 1.0, 0.0])  # (1, 3, 5) normalized by their deviation of 2, and a state seen once
  expected = np.where(mask, 1 + 0.5 * z[np.where(mask, steps, 0)], 0)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_distillation_is_the_difference_of_log_probs():
  teacher, student = -RNG.random((2, 2, 4))
  mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
  dirty = [jnp.asarray(np.where(mask, x, np.inf)) for x in (teacher, student)]
  np.testing.assert_allclose(token_advantages.distillation(*dirty, mask), np.where(mask, teacher - student, 0))


def test_one_success_in_a_group_has_finite_scale_without_itself():
  actual = advantages.group_normalized(jnp.array([1.0, 0.0, 0.0]), leave_self_out=True, eps=0.0)
  np.testing.assert_allclose(actual, [1.0, -0.5 / np.std([1, 0], ddof=1), -0.5 / np.std([1, 0], ddof=1)], rtol=1e-6)


def test_group_ids_carry_other_arrays_and_drop_padding():
  ids = jnp.array([0, 0, 1, 1, -1])
  by_ids = advantages.by_group_ids(advantages.opo, num_groups=2, max_group_size=3)
  actual = by_ids(jnp.array([0.0, 3.0, 1.0, 9.0, 9.0]), ids, jnp.array([10, 1, 1, 1, 7]))
  np.testing.assert_allclose(actual, [-3 / 11, 3 - 3 / 11, -4, 4, np.nan], rtol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.7, 100.1])
def test_equal_rewards_give_exactly_zero(value):
  same = jnp.full(1000, value, jnp.float32)
  assert not masking.masked_whiten(same, jnp.ones(1000)).any()
  assert not advantages.baseline(same).any()
  assert not token_advantages.reinforce_plus_plus(same[:, None], jnp.ones((1000, 1))).any()


def test_rewards_that_do_not_apply_are_left_out_of_their_own_normalization():
  first, second = np.array([[1.0, 2.0, np.nan]]), np.array([[0.0, 1.0, 5.0]])
  mask = jnp.array([[[1, 1, 0]], [[1, 1, 1]]])
  actual = advantages.normalize_then_sum(jnp.asarray(np.stack([first, second])), mask, eps=0.0)
  z = (second - 2) / np.std(second, ddof=1)
  np.testing.assert_allclose(actual, z + [[-np.sqrt(0.5), np.sqrt(0.5), 0]], rtol=1e-6)


def test_members_that_do_not_exist_count_in_no_mean_of_reinforce_plus_plus_baseline():
  """Centered (.5, -.5) and (1, -1, 0) without the third of the first group; two tokens each, mean 0."""
  rewards, group_mask = jnp.array([[1.0, 0.0, jnp.nan], [2.0, 0.0, 1.0]]), jnp.array([[1, 1, 0], [1, 1, 1]])
  estimates = token_advantages.reinforce_plus_plus_baseline(
    rewards, jnp.ones((2, 3, 2)), group_mask=group_mask, ddof=0, eps=0.0
  )
  std = (2.5 / 5) ** 0.5
  np.testing.assert_allclose(estimates[..., 0], np.array([[0.5, -0.5, 0], [1, -1, 0]]) / std, rtol=1e-6, atol=1e-7)


def test_holes_and_degrees_of_reinforce_plus_plus():
  """Stepped through (OpenRLHF), gamma .9: returns 2.268, 2.52, 2.8, 2; whitened with the population's variance."""
  rewards, mask = jnp.array([0.0, 0.0, jnp.nan, 1.0, 2.0]), jnp.array([1, 1, 0, 1, 1])
  estimates = token_advantages.reinforce_plus_plus(rewards, mask, gamma=0.9, ddof=0, eps=0.0, holes="zero")
  returns = np.array([0.9**3 * 2.8, 0.9**2 * 2.8, 2.8, 2.0])
  np.testing.assert_allclose(estimates[np.array([0, 1, 3, 4])], (returns - returns.mean()) / returns.std(), rtol=1e-5)


def test_filters_of_flat_groups():
  rewards, ids = jnp.array([1.0, 0, 2, 3, 9]), jnp.array([0, 1, 0, 0, 5])
  flat = dict(num_groups=2, max_group_size=3)
  top = advantages.by_group_ids(lambda r, mask: selection.best_of(r, mask, n=2), **flat)
  np.testing.assert_array_equal(top(rewards, ids), [False, True, True, True, False])
  varied = advantages.by_group_ids(lambda r, mask: ~advantages.zero_variance(r, mask), **flat)
  np.testing.assert_array_equal(varied(rewards, ids), [True, False, True, True, False])


def test_only_the_mean_is_left_out():
  """1, 2, 4: mean of the others 3, 2.5, 1.5; the distances -2, -0.5, 2.5 have the root mean square sqrt(10.5 / 2)."""
  estimates = advantages.group_normalized(jnp.array([1.0, 2.0, 4.0]), leave_self_out="mean", eps=0.0)
  np.testing.assert_allclose(estimates, np.array([-2, -0.5, 2.5]) / np.sqrt(5.25), rtol=1e-6)
  # As AReaL has it.
  one = advantages.group_normalized(jnp.array([0.0, 0, 0, 1]), leave_self_out="mean", eps=0.0)
  np.testing.assert_allclose(one, [-0.5, -0.5, -0.5, 1.5], rtol=1e-6)
  np.testing.assert_array_equal(advantages.group_normalized(jnp.array([1.0, 0, 0, 0]), leave_self_out=True)[0], 1.0)


def test_multi_reward_without_a_division():
  rewards = jnp.array([[1.0, 0.0], [0.0, 4.0]])
  np.testing.assert_allclose(advantages.normalize_then_sum(rewards, scale="none", leave_self_out=True), [-3.0, 3.0])


def test_group_ids_serve_estimators_of_tokens():
  rng = np.random.default_rng(0)
  ids, lengths = jnp.array([1, 0, 1, 0, 1]), np.array([3, 2, 4, 4, 1])
  mask = jnp.asarray(np.arange(4) < lengths[:, None])
  rewards, logp = jnp.asarray(rng.normal(size=(5, 4))), -jnp.asarray(rng.uniform(0.1, 2, size=(5, 4)))
  squares = jnp.asarray(rng.uniform(0.1, 0.9, size=(5, 4)))
  flat = dict(num_groups=2, max_group_size=3)
  estimate = advantages.by_group_ids(token_advantages.optimal_token_baseline, exists=None, **flat)
  found, returns = estimate(rewards, ids, logp, squares, mask)
  for group in (0, 1):
    rows = np.flatnonzero(ids == group)
    expected = token_advantages.optimal_token_baseline(rewards[rows], logp[rows], squares[rows], mask[rows])
    np.testing.assert_allclose(found[rows], expected[0], rtol=1e-6)
    np.testing.assert_allclose(returns[rows], expected[1], rtol=1e-6)

  scalar = rewards[:, 0]
  whiten = advantages.by_group_ids(token_advantages.reinforce_plus_plus_baseline, exists="group_mask", **flat)
  order = np.array([1, 3, 0, 2, 4])  # groups of 2 and 3, the first one padded
  padded = jnp.zeros((2, 3)).at[0, :2].set(scalar[order[:2]]).at[1].set(scalar[order[2:]])
  tokens = jnp.zeros((2, 3, 4), bool).at[0, :2].set(mask[order[:2]]).at[1].set(mask[order[2:]])
  exists = jnp.array([[1, 1, 0], [1, 1, 1]])
  expected = token_advantages.reinforce_plus_plus_baseline(padded, tokens, group_mask=exists)
  np.testing.assert_allclose(whiten(scalar, ids, mask)[order[:2]], expected[0, :2], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(whiten(scalar, ids, mask)[order[2:]], expected[1], rtol=1e-5, atol=1e-6)
