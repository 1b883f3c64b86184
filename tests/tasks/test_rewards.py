import asyncio
import time
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.ops import shaping
from rl_jax.state import Judgment
from rl_jax.tasks import named_rewards, rewards
from rl_jax.tasks.rewards import Reward

ROWS = dict(prompts=["p", "q", "r"], completions=["a", "bb", "ccc"], completion_ids=[[1], [2, 2], [3, 3, 3]])


def call(*functions, columns=None, weights=None):
  """Each function's numbers, and their weighted sum, NaN where none applies."""
  weights = weights or [1.0] * len(functions)
  names = [getattr(function, "__name__", f"f{i}") for i, function in enumerate(functions)]
  given = [Reward(*each) for each in zip(functions, weights, names, strict=True)]
  parts = rewards.judge(given, columns=columns or {}, **ROWS)
  scores = {name: jnp.asarray(values, jnp.float32) for name, values in parts.items()}
  judgment = Judgment.of(scores, dict(zip(names, weights, strict=True)))
  combined = shaping.combine(judgment.scores, judgment.weights, jnp.ones((3, 4)))
  return SimpleNamespace(parts=parts, total=combined.known)


def length(completions, **_):
  return [len(c) for c in completions]


def test_functions_get_keywords_and_columns():
  def check(prompts, completions, completion_ids, answer, **rest):
    assert rest == {}
    return [
      p == "q" and len(c) == len(ids) and a == 2
      for p, c, ids, a in zip(prompts, completions, completion_ids, answer, strict=True)
    ]

  np.testing.assert_array_equal(call(check, columns={"answer": [1, 2, 3]}).total, [0, 1, 0])


def test_weighted_sum_and_rows_where_nothing_applies():
  def sometimes(**_):
    return [None, float("nan"), 1]

  def other(**_):
    return [None, jnp.float32(2.0), np.float32(3)]

  scored = call(sometimes, other, weights=[10.0, 0.5])
  np.testing.assert_array_equal(scored.total, [np.nan, 1.0, 11.5])
  np.testing.assert_array_equal(scored.parts["sometimes"], [np.nan, np.nan, 1.0])


def test_async_functions_run_at_the_same_time():
  both = []

  async def first(completions, **_):
    both.append("first starts")
    await asyncio.sleep(0.01)
    both.append("first ends")
    return [1.0] * len(completions)

  class Second:
    async def __call__(self, completions, **_):
      both.append("second starts")
      return [2] * len(completions)

  np.testing.assert_array_equal(call(first, Second(), length).total, [4, 5, 6])
  assert both.index("second starts") < both.index("first ends")


def test_async_functions_work_inside_a_running_loop():
  async def reward(completions, **_):
    return [1.0] * len(completions)

  async def notebook():
    return call(reward).total

  np.testing.assert_array_equal(asyncio.run(notebook()), 1)


@pytest.mark.parametrize(
  "returned,message",
  [
    (lambda **_: [1.0, 2.0], "'bad' returned 2 rewards for 3 completions"),
    (lambda **_: 1.0, "'bad' must return a list of 3 numbers, got float"),
    (lambda **_: [1.0, "2", 3.0], "'bad' returned str for row 1, expected a number"),
    (lambda **_: [1.0, 2.0, float("inf")], "'bad' returned inf for row 2"),
    (lambda completions, **_: [1 / (len(c) - 2) for c in completions], "ZeroDivisionError on row 1 of the batch"),
    (lambda completions: [1.0] * 3, "'bad' raised TypeError on row 0 of the batch"),
  ],
)
def test_what_goes_wrong_names_function_and_row(returned, message):
  returned.__name__ = "bad"
  with pytest.raises(ValueError, match=message):
    call(returned)


def test_async_failure_is_named():
  async def bad(**_):
    raise RuntimeError("no connection")

  with pytest.raises(ValueError, match="'bad' raised RuntimeError on row 0 of the batch: no connection"):
    call(bad)


def test_dotted_paths(tmp_path, monkeypatch):
  code = "def reward(completions, **_):\n  return [1.0] * len(completions)\nnumber = 3\n"
  (tmp_path / "my_rewards.py").write_text(code)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  (found,) = named_rewards.load(["my_rewards:reward"], [0.5])
  assert found.name == "reward" and found.weight == 0.5
  for path, message in (
    ("my_rewards:absent", "cannot be imported"),
    ("no_such_module:reward", "cannot be imported"),
    ("my_rewards", "unknown reward 'my_rewards'; there are math, "),
    ("my_rewards:", "must read 'module:function' or"),
    ("my_rewards:number", "is not callable"),
  ):
    with pytest.raises(ValueError, match=message):
      named_rewards.load([path])
  with pytest.raises(ValueError, match="2 for 1 reward functions"):
    named_rewards.load(["my_rewards:reward"], [1.0, 2.0])
  with pytest.raises(ValueError, match="must differ"):
    named_rewards.load(["my_rewards:reward", "my_rewards:reward"])
  (tmp_path / "others.py").write_text("from my_rewards import reward")
  assert [r.name for r in named_rewards.load(["my_rewards:reward", "others:reward"])] == [
    "my_rewards:reward",
    "others:reward",
  ]
  (tmp_path / "broken.py").write_text("def reward(:\n")
  with pytest.raises(ValueError, match="cannot be imported: SyntaxError"):
    named_rewards.load(["broken:reward"])


def test_functions_are_called_once_a_batch():
  calls = []

  def reward(completions, **_):
    calls.append(time.time())
    return [0] * len(completions)

  call(reward)
  assert len(calls) == 1


def test_columns_cannot_hide_arguments():
  with pytest.raises(ValueError, match="column 'completions' has the name"):
    call(length, columns={"completions": [1, 2, 3]})


def test_async_failure_on_a_later_row():
  async def bad(completions, **_):
    return [1 / (len(c) - 3) for c in completions]

  with pytest.raises(ValueError, match="'bad' raised ZeroDivisionError on row 2"):
    call(bad)


def test_async_rewards_share_one_event_loop():
  lock = asyncio.Lock()

  async def locked(completions, **_):
    async def one(text):
      async with lock:
        await asyncio.sleep(0)
        return len(text)

    return await asyncio.gather(*(one(text) for text in completions))

  for _ in range(2):
    np.testing.assert_array_equal(call(locked).total, [1, 2, 3])


def test_an_error_of_several_lines_is_told_in_one():
  def judge(**_):
    raise TimeoutError("no answer\nfrom the judge")

  with pytest.raises(ValueError) as caught:
    call(judge)
  first, _, place = str(caught.value).partition(" (test_rewards.py, line ")
  assert first == "reward function 'judge' raised TimeoutError on row 0 of the batch: no answer" and place.endswith(")")


def test_what_a_function_does_to_what_it_is_given_stays_with_it():
  prompts = [[{"role": "user", "content": "Hi"}]] * 2  # a group shares its prompt
  completions = [[{"role": "assistant", "content": "Ho"}] for _ in prompts]
  columns = {"tests": [{"cases": [1, 2], "pairs": ([],), "numbers": np.zeros(2)}] * 2}

  def greedy(prompts, completions, tests, **_):
    for prompt, completion, each in zip(prompts, completions, tests, strict=True):
      prompt.append(completion[0])
      each["cases"].pop()
      each["pairs"][0].append(1)
      each["numbers"] += 1
    completions.append("more")
    return [float(len(prompt) + len(each["cases"])) for prompt, each in zip(prompts, tests, strict=True)]

  twice = [Reward(greedy, 1.0, "one"), Reward(greedy, 1.0, "two")]
  found = rewards.judge(twice, prompts=prompts, completions=completions, completion_ids=[[1]] * 2, columns=columns)
  assert found["one"].tolist() == found["two"].tolist() == [3.0, 3.0]
  assert len(prompts[0]) == 1 and len(completions) == 2 and columns["tests"][0]["cases"] == [1, 2]
  assert columns["tests"][0]["pairs"] == ([],) and not columns["tests"][0]["numbers"].any()


class Halt(BaseException):
  """What no library should stop at."""


@pytest.mark.parametrize(
  ("function", "message"),
  [
    (
      lambda completions, **_: (1 / (len(c) - 1) for c in completions),
      "raised ZeroDivisionError on row 1 of the batch",
    ),
    (lambda completions, **_: {0: 0.1, 1: 0.2}, "must return a list of 2 numbers, got dict"),
    (lambda completions, **_: {0.1, 0.2}, "must return a list of 2 numbers, got set"),
    (lambda completions, **_: "ab", "must return a list of 2 numbers, got str"),
    (lambda completions, **_: [1.0, 10**400], "returned 1000.* for row 1, more than a float32 holds"),
    (lambda completions, **_: [1e39, 1.0], "returned 1e.39 for row 0, more than a float32 holds"),
  ],
)
def test_what_is_no_list_of_numbers_is_named(function, message):
  with pytest.raises(ValueError, match=message):
    rewards.judge(
      [Reward(function, 1.0, "own")], prompts=["?"] * 2, completions=["ab", "c"], completion_ids=[[1]] * 2, columns={}
    )


def test_whatever_a_function_raises_is_named():
  def halt(**_):
    raise Halt("stop")

  with pytest.raises(ValueError, match="'own' raised Halt on row 0 of the batch: stop"):
    rewards.judge([Reward(halt, 1.0, "own")], prompts=["?"], completions=["a"], completion_ids=[[1]], columns={})


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_must_be_finite(weight):
  with pytest.raises(ValueError, match="reward weights must be finite"):
    named_rewards.load(["json"], [weight])
