"""Each check on metrics of a few lines: what it must see, and what it must not mind."""

import math

import pytest

from rl_jax.runs import checks
from rl_jax.runs.checks import CHECKS, Finding, Seen, Watch, diagnose

TEXT = {"max_new_tokens": 8, "max_prompt_tokens": 16, "epochs": 2, "minibatches": 2}


def seen(config=TEXT, records=(), **columns):
  """Steps with the given metrics, of which all have one length."""
  made = Seen(config)
  for values in zip(*columns.values(), strict=True):
    made.add(dict(zip(columns, values, strict=True)))
  made.records.extend(records)
  return made


def answers(count, reward, solved=lambda i: bool(i % 2), completion=str):
  return [
    {"prompt": "p", "completion": completion(i), "tokens": 1, "reward": reward(i), "solved": solved(i)}
    for i in range(count)
  ]


RISING, FALLING = [i / 40 + i % 3 / 50 for i in range(40)], [1 - i / 40 + i % 3 / 50 for i in range(40)]

# (check, what it must name, what it must not)
CASES = [
  (checks.entropy_collapse, dict(entropy=[1.0] * 6 + [0.01] * 10), dict(entropy=[1.0] * 6 + [0.1] * 10)),
  (
    checks.entropy_collapse,
    dict(entropy=[1.0] * 6 + [0.01] * 10, solved=[0.5] * 16),
    dict(entropy=[1.0] * 6 + [0.01] * 10, solved=[0.95] * 16),
  ),
  (checks.entropy_collapse, dict(entropy=[1.0] * 6 + [0.0] * 10), dict(entropy=[1.0] * 6 + [-0.01] * 10)),
  (checks.no_variance, dict(zero_variance=[0.95] * 5), dict(zero_variance=[0.8] * 5)),
  (checks.no_variance, dict(zero_variance=[1.0] * 5), dict(zero_variance=[1.0] * 4)),
  (checks.kl_runaway, dict(kl_ref=[0.1] * 6 + [2.0] * 6), dict(kl_ref=[0.1] * 6 + [0.9] * 6)),
  (checks.kl_runaway, dict(kl_reward=[0.1] * 6 + [2.0] * 6), dict(kl_reward=[1.5] * 12)),
  (checks.negative_kl, dict(kl_ref=[0.1, -0.001]), dict(kl_ref=[0.1, -1e-8])),
  (checks.reward_without_solving, dict(reward=RISING, solved=FALLING), dict(reward=RISING, solved=RISING)),
  (checks.reward_without_solving, dict(reward=RISING, solved=FALLING), dict(reward=FALLING, solved=FALLING)),
  (checks.truncated, dict(terminated=[0.4] * 5), dict(terminated=[0.6] * 5)),
  (checks.large_updates, dict(clip_low=[0.2] * 5, clip_high=[0.2] * 5), dict(clip_low=[0.1] * 5, clip_high=[0.1] * 5)),
  (
    checks.no_updates,
    dict(approx_kl=[0.0] * 10, grad_norm=[1.0] * 10),
    dict(approx_kl=[1e-5] * 10, grad_norm=[1] * 10),
  ),
  (checks.mismatch, dict(mismatch_kl=[0.01] * 2), dict(mismatch_kl=[0.001] * 2)),
  (checks.few_effective_samples, dict(ess=[0.4] * 2), dict(ess=[0.9] * 2)),
  (checks.gradient_spike, dict(grad_norm=[1.0] * 20 + [30.0]), dict(grad_norm=[1.0] * 20 + [5.0])),
  (checks.gradient_spike, dict(grad_norm=[1.0] * 20 + [30.0]), dict(grad_norm=[40.0] + [1.0] * 20 + [30.0])),
  (checks.blind_critic, dict(explained_variance=[-0.1] * 20), dict(explained_variance=[-0.1] * 10 + [0.5] * 10)),
  (checks.ratio_off, dict(ratio=[1.2] * 2), dict(ratio=[1.01] * 2)),
  (checks.skipped, dict(skipped=[0.25]), dict(skipped=[0.0])),
  (checks.reward_missing, dict(reward=[math.nan]), dict(reward=[0.0])),
  (
    checks.reward_never_applies,
    {"reward/a": [1.0] * 10, "reward/b": [None] * 10},
    {"reward/a": [1.0] * 10, "reward/b": [None] * 9 + [0.5]},
  ),
  (checks.prompts_passed_over, dict(prompts_skipped=[2.0]), dict(prompts_skipped=[0.0])),
  (checks.simulations_broke, dict(simulations_failed=[2.0]), dict(simulations_failed=[0.0])),
  (
    checks.reward_tells_nothing,
    dict(loss=[0.0], records=answers(400, lambda i: float(i % 3 == 0))),
    dict(loss=[0.0], records=answers(400, lambda i: 0.5 * (i % 2) + (i % 3))),
  ),
  (
    checks.reward_of_equals,
    dict(loss=[0.0], records=answers(100, lambda i: float(i % 7), completion=lambda i: f"{i % 9}!")),
    dict(loss=[0.0], records=answers(100, lambda i: float(i % 9), completion=lambda i: f"{i % 9}!")),
  ),
]


@pytest.mark.parametrize(("check", "wrong", "right"), CASES)
def test_a_check_names_what_it_must_and_minds_nothing_else(check, wrong, right):
  finding = check(seen(**wrong))
  assert isinstance(finding, Finding) and finding.sign and finding.cause and finding.remedy
  assert check(seen(**right)) is None


def test_every_check_has_a_case_and_is_silent_where_there_is_nothing_to_see():
  assert {check for check, _, _ in CASES} == set(CHECKS)
  for config in ({}, TEXT):
    for columns in ({}, {"loss": [1.0]}, {"loss": [math.nan] * 50}, {"reward": [0.5] * 50, "solved": [0.5] * 50}):
      assert [check for check in CHECKS if check(seen(config, **columns)) is not None] == []


def test_densities_and_episodes_are_not_judged_as_text():
  walking = {"environment": "biped", "epochs": 6, "minibatches": 4}
  assert checks.entropy_collapse(seen(walking, entropy=[4.0] * 6 + [0.01] * 10)) is None
  assert checks.truncated(seen(walking, terminated=[0.0] * 20)) is None


def test_each_finding_is_told_once_at_the_step_where_it_is_first_seen():
  watch = Watch(TEXT)
  told = [[finding.name for finding in watch.add(step, {"skipped": float(step > 1)})] for step in (1, 2, 3)]
  assert told == [[], ["skipped updates"], []]
  rows = [{"step": step, "skipped": float(step > 1), "ratio": 1.5} for step in (1, 2, 3)]
  assert [(finding.name, finding.step) for finding in diagnose(rows, {})] == [
    ("skipped updates", 2),
    ("ratios away from 1", 2),
  ]


def test_the_cause_of_equal_rewards_depends_on_what_is_solved():
  causes = [checks.no_variance(seen(zero_variance=[1.0] * 5, solved=[x] * 5)).cause for x in (0.0, 0.5, 1.0)]
  assert "too hard" in causes[0] and "alike" in causes[1] and "too easy" in causes[2]


def test_a_mismatch_by_filters_is_called_that():
  assert "top_p cuts off" in checks.mismatch(seen(TEXT | {"top_p": 0.9}, mismatch_kl=[0.1] * 2)).cause
