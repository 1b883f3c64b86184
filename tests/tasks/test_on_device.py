"""On-device tasks against verifiers in plain Python that read nothing but the prompt's and the completion's text."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_jax.tasks import on_device
from rl_jax.tasks.on_device import base

LONGER_PARITY = on_device.load("parity", bits=4, max_new_tokens=9)
TASKS = {
  "copying": on_device.load("copying", length=4),
  "reversing": on_device.load("copying", length=4, reverse=True),
  "sorting": on_device.load("sorting", length=4),
  "addition": on_device.load("addition", digits=3),
  "modular": on_device.load("modular", modulus=13),
  "countdown": on_device.load("countdown", count=3),
  "parity": LONGER_PARITY,
  "stopping": on_device.load("stopping", longest=12),
}


def graded(right, text, stopped):
  if stopped and text == right:
    return 1.0, True
  places = sum(a == b for a, b in zip(right, text, strict=False))
  return 0.5 * places / max(len(right), len(text), 1), False


def exact(right, text, stopped):
  if stopped and text == right:
    return 1.0, True
  return (0.1 if stopped and text and set(text) <= set("0123456789") else 0.0), False


def countdown(prompt, text, stopped):
  digits, target = prompt.rstrip("=").split(":")
  well_formed = (
    stopped
    and len(text) == 5
    and all(c in "0123456789" for c in text[::2])
    and all(c in "+-*" for c in text[1::2])
    and sorted(text[::2]) == sorted(digits.split(","))
  )
  solved = well_formed and eval(text) == int(target)
  return (1.0 if solved else 0.1 if well_formed else 0.0), solved


def parity(prompt, text, stopped):
  bits = prompt.rstrip(":")
  solved = stopped and text != "" and text[-1] == str(bits.count("1") % 2)
  return float(solved), solved


def stopping(prompt, text, stopped):
  wanted = int(prompt.rstrip(":"))
  letters = stopped and set(text) <= set("abcd")
  solved = letters and len(text) == wanted
  return (1.0 if solved else 0.5 * max(0, 1 - abs(len(text) - wanted) / 12) if letters else 0.0), solved


def modular(prompt):
  return str(eval(prompt.rstrip("=")) % 13)


PLAIN = {
  "copying": lambda prompt, text, stopped: graded(prompt[:-1], text, stopped),
  "reversing": lambda prompt, text, stopped: graded(prompt[-2::-1], text, stopped),
  "sorting": lambda prompt, text, stopped: graded("".join(sorted(prompt[:-1])), text, stopped),
  "addition": lambda prompt, text, stopped: exact(str(sum(map(int, prompt[:-1].split("+")))), text, stopped),
  "modular": lambda prompt, text, stopped: exact(modular(prompt), text, stopped),
  "countdown": countdown,
  "parity": parity,
  "stopping": stopping,
}


def mutated(task, rng, tokens, count):
  """A right answer with some tokens replaced, cut, or doubled, or entirely random tokens; cut behind its first end."""
  row = list(tokens[:count])
  kind = rng.integers(5)
  if kind == 1:
    row[rng.integers(len(row))] = rng.integers(task.vocab_size)
  elif kind == 2:
    del row[rng.integers(len(row))]
  elif kind == 3:
    row.insert(rng.integers(len(row)), rng.integers(task.vocab_size))
  elif kind == 4:
    row = list(rng.integers(task.vocab_size, size=task.max_new_tokens))
  row = row[: task.max_new_tokens]
  return row[: row.index(base.EOS) + 1] if base.EOS in row else row


@functools.cache
def programs(name):
  """Jitted: `(key, count) -> problems with demonstrations`, and the verdict on completions."""
  task = TASKS[name]

  def draw(key, count):
    problems = base.sample(task, key, count)
    return problems, *base.demonstrate(task, problems.data)

  return jax.jit(draw, static_argnums=1), jax.jit(lambda *given: base.judge(task, *given))


@pytest.mark.parametrize("name", TASKS)
def test_verifier_agrees_with_plain_python_on_ten_thousand_completions(name):
  task, (draw, judge) = TASKS[name], programs(name)
  rows, seen = 500, Counter()

  @settings(max_examples=20, deadline=None, derandomize=True, database=None)
  @given(st.integers(0, 2**31 - 1))
  def check(seed):
    rng = np.random.default_rng(seed)
    problems, right, right_mask = draw(jax.random.key(seed), rows)
    right, counts = np.asarray(right), np.asarray(right_mask).sum(-1)
    answers = [mutated(task, rng, row, count) for row, count in zip(right, counts, strict=True)]
    tokens, mask = np.zeros((2, rows, task.max_new_tokens), np.int32)
    for row, answer in enumerate(answers):
      tokens[row, : len(answer)], mask[row, : len(answer)] = answer, 1
    verdict = judge(problems.data, tokens[:, None], mask[:, None])
    prompts = base.decode(task, problems.prompts, problems.prompt_mask)
    stopped = [base.EOS in answer for answer in answers]
    texts = base.decode(task, tokens, mask)
    expected = [PLAIN[name](*each) for each in zip(prompts, texts, stopped, strict=True)]
    np.testing.assert_allclose(verdict.reward[:, 0], [reward for reward, _ in expected], atol=1e-6)
    np.testing.assert_array_equal(verdict.solved[:, 0], [solved for _, solved in expected])
    seen.update(solved for _, solved in expected)

  check()
  assert min(seen[True], seen[False]) > 1000  # both verdicts were put to the test
  assert sum(seen.values()) >= 10_000


@pytest.mark.parametrize("name", TASKS)
def test_demonstrations_earn_the_best_reward_and_fill_the_declared_sizes(name):
  task, (draw, judge) = TASKS[name], programs(name)
  problems, tokens, mask = draw(jax.random.key(1), 2000)
  verdict = judge(problems.data, tokens[:, None], mask[:, None])
  assert verdict.solved.all() and (verdict.reward == task.best_reward).all()
  assert tokens.shape == (2000, task.max_new_tokens) and problems.prompts.shape == (2000, task.prompt_length)
  assert (jnp.take_along_axis(tokens, mask.sum(-1, keepdims=True) - 1, axis=-1) == base.EOS).all()
  assert int(problems.prompt_mask.sum(-1).max()) == task.prompt_length or name == "countdown"
  assert int(tokens.max()) < task.vocab_size and int(jnp.where(problems.prompt_mask, problems.prompts, 3).min()) >= 3


@pytest.mark.parametrize("name", TASKS)
def test_baseline_is_the_best_answer_that_ignores_the_prompt(name):
  """The likeliest demonstrations, each given to 20,000 problems, succeed as often as the baseline says."""
  task, draws, (draw, judge) = TASKS[name], 20_000, programs(name)
  problems, tokens, _ = draw(jax.random.key(2), draws)
  common = [list(row) for row, _ in Counter(map(tuple, np.asarray(tokens).tolist())).most_common(3)]

  def success(row):
    row = jnp.array(row)
    mask = jnp.broadcast_to(row != base.PAD, (draws, 1, task.max_new_tokens))
    return float(judge(problems.data, jnp.broadcast_to(row, mask.shape), mask).solved.mean())

  best = max(success(row) for row in common)
  assert best == pytest.approx(task.baseline, abs=4 * (task.baseline / draws) ** 0.5)


def test_step_rewards_of_parity_stand_at_right_steps():
  task = LONGER_PARITY
  tokens = jnp.array([base.encode(task, "101") + [base.EOS] + [base.PAD] * 5])
  steps = base.Text(jnp.array(base.encode(task, "1001")), jnp.int32(4))
  verdict = base.judge(task, jax.tree.map(lambda x: x[None], steps), tokens[None], (tokens != base.PAD)[None])
  np.testing.assert_allclose(verdict.step_rewards[0, 0], [0.25, 0.25, 0, 0, 0, 0, 0, 0, 0])
  assert verdict.solved[0, 0]  # the last bit is right, whatever the chain


def test_tokens_are_those_of_the_tokenizer():
  from rl_jax.models.presets import character_tokenizer

  for task in TASKS.values():
    tokenizer = character_tokenizer(task.characters)
    assert tokenizer(task.characters)["input_ids"] == base.encode(task, task.characters)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (base.PAD, base.EOS)
    assert len(tokenizer) == task.vocab_size


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("nothing", {}, "unknown on-device task 'nothing'"),
    ("addition", {"size": 3}, "no option 'size'; it has digits, shortest, format_reward"),
    ("addition", {"digits": "3"}, "option digits of task 'addition' must be like 2, got '3'"),
    ("addition", {"digits": 7}, "digits must be from 1"),
    ("copying", {"length": 0}, "length must be at least 1"),
    ("sorting", {"length": -1}, "length must be at least 1"),
    ("modular", {"modulus": 1}, "modulus must be from 2"),
    ("modular", {"operators": "/"}, "operators must be some of"),
    ("countdown", {"count": 5}, "count must be from 2 to 4"),
    ("parity", {"bits": 4, "max_new_tokens": 4}, "max_new_tokens must be at least 5"),
    ("stopping", {"longest": 100}, "longest must be from 1 to 99"),
  ],
)
def test_bad_options_are_named(name, options, message):
  with pytest.raises(ValueError, match=message):
    on_device.load(name, **options)
