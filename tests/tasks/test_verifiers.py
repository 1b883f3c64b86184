"""Rewards by name and from files: what they say of answers as models write them, and how they are found and checked."""

import importlib.util

import pytest

from rl_jax.tasks import Task, load, named_rewards, verifiers
from rl_jax.tasks.load import with_verifier
from rl_jax.tasks.rewards import Reward, check_arguments, judge


@pytest.mark.parametrize(
  ("text", "answer"),
  [
    ("Natalia sold 48/2 = 24 clips in May.\n#### 72", "72"),
    ("#### 72\nThat is 72 clips, of 100.", "72"),
    ("#### The answer is 72.", "72"),
    ("#### Step 1\n2 and 3\n#### Step 2\nSo it is 18.", "18"),
    (r"#### Step 1: foo \boxed{18}", "18"),
    ("#### 1,234", "1,234"),
    (r"Thus \boxed{\dfrac{3}{4}} is the answer.", r"\dfrac{3}{4}"),
    (r"\boxed{1} and then \boxed{\text{B}}", r"\text{B}"),
    (r"\boxed{unfinished", "unfinished"),
    ("She pays $1,050.50 in all.", "1,050.50"),
    ("between -3 and -2", "-2"),
    ("16-20", "20"),
    ("it is \u22125", "-5"),
    ("a list: 1,2,3", "3"),
    ("of .5", ".5"),
    ("  yes\n", "yes"),
    ("", ""),
  ],
)
def test_final_answers(text, answer):
  assert verifiers.final_answer(text) == answer


def test_gsm8k_compares_final_numbers_in_text_and_chat():
  gold = ["... #### 72", "#### 5", "#### 0.50", None]
  said = ["The answer is 72.", [{"role": "assistant", "content": r"\boxed{6}"}], "$0.5", "1"]
  assert verifiers.gsm8k(said, answer=gold) == [1.0, 0.0, 1.0, None]
  assert verifiers.gsm8k(["7"] * 3, reward_model=[{"ground_truth": "7"}, {"ground_truth": None}, None]) == [
    1,
    None,
    None,
  ]
  for nothing in (None, "", " ", float("nan"), []):
    assert verifiers.gsm8k(["7"], answer=[nothing], solution=["7"]) == [1.0]
    assert verifiers.gsm8k(["nan", ""], answer=[nothing] * 2) == [None, None]
  assert verifiers.gsm8k(["7"], reward_model=['{"ground_truth": "7"}']) == [1.0]


@pytest.mark.parametrize(
  ("said", "gold", "reward"),
  [
    (r"\boxed{18\text{ eggs}}", "18", 1),
    (r"\boxed{18 eggs}", "18", 1),
    (r"\boxed{x=18}", "18", 1),
    (r"\boxed{50\%}", "50", 1),
    (r"\boxed{\$1{,}000}", "1000", 1),
    (r"\boxed{1/2}", "1/2", 1),
    (r"\boxed{0.5}", "1/2", 1),
    ("#### - 5", "-5", 1),
    ("it is –5", "-5", 1),
    ("pages 3–5", "5", 1),
    (r"\boxed{42 km/h}", "42", 1),
    (r"\boxed{42^\circ}", "42", 1),
    (r"\boxed{42\ \text{eggs}}", "42", 1),
    (r"\boxed{42~\text{eggs}}", "42", 1),
    (r"\boxed{+42}", "42", 1),
    (r"\boxed{€25}", "25", 1),
    (r"\boxed{1\,000}", "1000", 1),
    ("#### 15/2", "2", 0),
    ("so 3/4", "4", 0),
    (r"\boxed{3^2}", "3", 0),
    ("2", "2x+y", 0),
    (r"\boxed{3}", r"3\pi", 0),
    ("5", "5x - y", 0),
    ("on 5/10/2024", "2024", 1),
    ("it is 1/2.", "1/2", 1),
    (r"\boxed{x+1}", "x+1", 1),
    ("42", "The answer is 42.", 1),
    ("42", ["42"], 1),
    ("5/2", "1/2", 0),
    ("2", "1/2", 0),
    ("\u22125", "5", 0),
    ("0.5", ".50", 1),
    ("1,2,3", "123", 0),
  ],
)
def test_gsm8k_on_answers_as_models_write_them(said, gold, reward):
  assert verifiers.gsm8k([said], answer=[gold]) == [reward]


def test_no_column_of_right_answers_is_named_before_anything_is_loaded():
  with pytest.raises(ValueError, match="no column says what is right"):
    check_arguments(named_rewards.load(["gsm8k"]), ["question"])
  with pytest.raises(ValueError, match="one of answer, solution, final_answer, ground_truth"):
    verifiers.gsm8k(["7"], question=["?"])


@pytest.mark.slow
def test_math_is_equal_in_any_form_and_hangs_on_nothing():
  if importlib.util.find_spec("math_verify") is None:
    pytest.skip("math-verify is not installed")
  gold = [r"\frac{1}{2}", "x^2+2x+1", "#### 8", r"So \boxed{12}.", "7", None]
  said = ["It is 0.5.", r"\boxed{(x+1)^2}", "8", r"$\boxed{13}$", "I do not know", "3"]
  assert verifiers.math(said, solution=gold) == [1.0, 1.0, 1.0, 0.0, 0.0, None]
  assert verifiers.math(["$(1,2)$", "18"], answer=["#### (1,2)", r"\$18"]) == [1.0, 1.0]
  said = ["(1,100)", "1100", "[2,100)", r"\{100,200\}", "100200", "100", "1,234"]
  gold = ["(1,100)", r"Thus \boxed{(1,100)}.", "[2,100)", r"\{100,200\}", "(100,200)", "0,100", "1234"]
  boxed = ["\\boxed{" + each + "}" for each in said]
  assert verifiers.math(boxed, answer=gold) == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
  assert verifiers.math(["4"], answer=[float("nan")]) == [None]
  assert (
    verifiers.math([r"\boxed{1000\%}", r"\boxed{1000}", r"\boxed{1000}"], answer=["1,000%", "x = 1,000", "+1,000"])
    == [1] * 3
  )
  assert verifiers.math([r"\boxed{9^{9^{9^{9}}}}", "4"], answer=["3", "4"]) == [0.0, 1.0]
  workers = verifiers._workers()
  for _ in range(workers.maxsize):  # one that was ended is started anew, for the next answer
    worker = workers.get()
    if worker._process is not None:
      worker._process.kill()
    workers.put(worker)
  verifiers.math(["4"] * workers.maxsize, answer=["4"] * workers.maxsize)
  assert verifiers.math(["4", "5"], answer=["4", "4"]) == [1.0, 0.0]


@pytest.mark.slow
def test_an_answer_that_hangs_is_wrong_and_the_others_are_not(tmp_path, monkeypatch):
  file = tmp_path / "math_worker.py"
  file.write_text(
    "import json, sys, time\nprint('1', flush=True)\n"
    "for line in sys.stdin:\n  gold, text = json.loads(line)\n  time.sleep(60 * (text == 'hang'))\n"
    "  print(float(gold == text), flush=True)\n"
  )
  monkeypatch.setattr(verifiers, "__file__", str(tmp_path / "verifiers.py"))
  monkeypatch.setattr(verifiers, "SECONDS", 2.0)
  verifiers.close_workers()
  try:
    assert verifiers.math(["4", "hang", "4", "5"], answer=["4"] * 4) == [1.0, 0.0, 1.0, 0.0]
    file.write_text("raise SystemExit\n")
    verifiers.close_workers()
    with pytest.raises(ValueError, match="its process does not start"):
      verifiers.math(["4"], answer=["4"])
  finally:
    verifiers.close_workers()


def test_rewards_of_form():
  good = "<think>\nso\n</think>\n<answer>4</answer>"
  assert verifiers.format([good, good + "!", "4", [{"role": "assistant", "content": good}]]) == [1, 0, 0, 1]
  assert verifiers.format(["<think>a</think><answer>1</answer> junk <answer>2</answer>"]) == [0]
  assert verifiers.json_(["[" * 200_000]) == [0]
  assert verifiers.json_(["```JSON\n{}\n```", "```{}```", "NaN"]) == [1, 1, 0]
  assert verifiers.json_(["[1]", "[1", [{"role": "assistant", "content": "null"}]]) == [1, 0, 1]
  assert verifiers.length(completion_ids=[[1, 2], []]) == [-0.002, 0]


def test_rewards_are_found_by_name_by_module_and_by_file(tmp_path, monkeypatch):
  (tmp_path / "beside.py").write_text("VALUE = 0.25\n")
  file = tmp_path / "own.py"
  file.write_text("from beside import VALUE\ndef paid(completions, **_):\n  return [VALUE] * len(completions)\n")
  found = named_rewards.load(["gsm8k", f"{file}:paid", "json"], (1.0, 0.5, 0.0))
  assert [(each.name, each.weight) for each in found] == [("gsm8k", 1.0), ("paid", 0.5), ("json", 0.0)]
  values = judge(found, prompts=["?"], completions=["4"], completion_ids=[[1]], columns={"answer": ["4"]})
  assert {name: value.tolist() for name, value in values.items()} == {"gsm8k": [1.0], "paid": [0.25], "json": [1.0]}
  monkeypatch.chdir(tmp_path)
  assert named_rewards.load(["own.py:paid"])[0].function is found[1].function
  (tmp_path / "math.py").write_text("def paid(completions, **_):\n  return [2.0] * len(completions)\n")
  assert named_rewards.load(["math.py:paid"])[0].function(["a"]) == [2.0] and importlib.import_module("math").pi > 3
  (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
  for _ in range(2):
    with pytest.raises(ValueError, match="ModuleNotFoundError: No module named 'nothing_of_that_name'"):
      named_rewards.load(["broken.py:paid"])
  with pytest.raises(ValueError, match="there is no file 'nowhere.py'"):
    named_rewards.load(["nowhere.py:paid"])
  with pytest.raises(ValueError, match="unknown reward 'maths'; there are math, gsm8k, format, length, json, 'module:"):
    named_rewards.load(["maths"])


@pytest.mark.parametrize(
  ("function", "message"),
  [
    (lambda completions, target, **_: [], "needs the argument 'target', which is no column of the task; it has answer"),
    (lambda completions, answer: [], r"must take \*\*_ too: it is also given completion_ids, prompts"),
  ],
)
def test_rewards_are_checked_before_anything_is_loaded(tmp_path, function, message):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(f'{{"prompt": "{i}", "answer": "{i}"}}\n' for i in range(4)))
  with pytest.raises(ValueError, match=message):
    load(str(path), ["evaluation_size=1"], rewards=[Reward(function, 1.0, "own")])
  check_arguments([Reward(lambda completions, answer, target=None, **_: [], 1.0, "own")], ["answer"])
  check_arguments([Reward(max, 1.0, "max")], ["answer"])


def test_a_verifier_says_what_is_solved_and_which_answers_are_equal(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(f'{{"prompt": "{i} + 0 =", "answer": "#### {i}"}}\n' for i in range(4)))
  task = load(str(path), ["evaluation_size=1"], rewards=named_rewards.load(["format", "gsm8k"]))
  assert task.solved(
    prompts=[""] * 2, completions=["It is 3", "4"], completion_ids=[[]] * 2, answer=["#### 3"] * 2
  ) == [True, False]
  assert task.answer("so 3.") == task.answer(r"\boxed{3}") == "3"
  assert load(str(path), ["evaluation_size=1"], rewards=named_rewards.load(["format"])).solved is None


def test_rows_that_do_not_say_what_is_right_are_not_measured(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(f'{{"prompt": "{i}", "answer": {i if i % 2 else "null"}}}\n' for i in range(20)))
  task = load(str(path), ["evaluation_size=10"], rewards=named_rewards.load(["gsm8k"]))
  held_out = load(str(path), ["evaluation_size=10"], rewards=named_rewards.load(["format"])).evaluation
  known = [row for row in held_out if row["answer"] is not None]
  assert 0 < len(known) < 10 and task.evaluation == known
  assert f"; {10 - len(known)} of these left out, which do not say what is right" in task.description
  rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b"}]  # of a task of one's own, whose rows differ
  own = Task("own", lambda index: rows[0], rows, tuple(named_rewards.load(["gsm8k"])))
  found = with_verifier(own)
  assert found.evaluation == rows[:1] and found.description == "1 of these left out, which do not say what is right"
  path.write_text("".join(f'{{"prompt": "{i}", "answer": null}}\n' for i in range(20)))
  assert load(str(path), ["evaluation_size=10"], rewards=named_rewards.load(["gsm8k"])).solved is None
