import copy
import json

import numpy as np
import pytest

from rl_jax import tasks
from rl_jax.models import presets
from rl_jax.tasks import arithmetic, files, text
from rl_jax.tasks.held_out import hold_out
from rl_jax.tasks.reading import Reader, prompt_tokens
from rl_jax.tasks.rewards import Reward

ONE = Reward(lambda completions, **_: [1.0] * len(completions), 1.0, "one")


def write(tmp_path, lines, name="rows.jsonl"):
  path = tmp_path / name
  path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
  return str(path)


class TestArithmetic:
  def test_rows_are_fixed_by_their_index_and_right(self):
    task = arithmetic.load(digits=2)
    for index in (0, 5, 10**6):
      row = task.row(index)
      assert row == arithmetic.load(digits=2).row(index)
      a, b = row["prompt"].splitlines()[-1].removesuffix(" =").split(" + ")
      assert int(a) + int(b) == int(row["answer"]) and 10 <= int(a) <= 99 and 10 <= int(b) <= 99
    assert task.row(0) != arithmetic.load(digits=2, seed=1).row(0)

  def test_held_out_problems_are_never_drawn(self):
    task = arithmetic.load()
    held_out = {row["prompt"] for row in task.evaluation}
    assert len(held_out) == len(task.evaluation) == 256
    assert not held_out & {task.row(index)["prompt"] for index in range(3000)}

  def test_grades_by_hand(self):
    graded = arithmetic.graded(completions=[" 123\n", "124", " 193", "12", "", "-123", "123 4"], answer=["123"] * 7)
    assert graded == pytest.approx([1, 0.2 + 0.4 / 3, 0.2 + 0.4 / 3, 0.1, 0, 0, 0])

  def test_few_digits_have_few_problems(self):
    assert 0 < len(arithmetic.load(digits=1).evaluation) < 20


class TestFiles:
  def test_rows_and_epochs(self, tmp_path):
    path = write(tmp_path, [{"prompt": f"p{i}", "n": i} for i in range(10)])
    task = tasks.load(path, ["evaluation_size=3"], rewards=[ONE])
    held_out = {row["n"] for row in task.evaluation}
    epochs = [[task.row(epoch * 7 + i)["n"] for i in range(7)] for epoch in range(3)]
    assert all(set(epoch) == set(range(10)) - held_out for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [task.row(i)["n"] for i in range(7, 14)] == epochs[1]

  def test_no_held_out_prompt_is_trained_on_however_often_it_stands_there(self, tmp_path):
    rows = [{"prompt": f"p{i % 7}", "n": i} for i in range(70)] + [{"prompt": "p3", "other": 1}]
    for task in (
      tasks.load(write(tmp_path, rows), ["evaluation_size=3"], rewards=[ONE]),
      tasks.from_rows("rows", rows, [ONE], evaluation_size=3),
    ):
      held_out = [row["prompt"] for row in task.evaluation]
      trained = [task.row(index) for index in range(200)]
      assert len(set(held_out)) == len(held_out) == 3  # each measured once
      assert {row["prompt"] for row in trained} == {f"p{i}" for i in range(7)} - set(held_out)
      assert "of 4 prompts to train on" in task.description and "3 are measured" in task.description
      assert len(task.rows) == 71 and task.rows[70][0].endswith(("line 71", "row 71"))
    with pytest.raises(ValueError, match="too small for evaluation_size=7 .* 71 rows of 7 different prompts"):
      tasks.from_rows("rows", rows, [ONE], evaluation_size=7)

  def test_a_column_that_some_rows_lack_is_none_there(self):
    rows = [{"prompt": f"p{i}", "a": i} for i in range(5)] + [{"prompt": "last", "b": 1}]
    task = tasks.from_rows("rows", rows, [ONE], evaluation_size=1)
    for row in [task.row(i) for i in range(5)] + list(task.evaluation):
      assert set(row) == {"prompt", "a", "b"}
      assert (row["a"] is None) == (row["prompt"] == "last") and (row["b"] is None) == (row["prompt"] != "last")

  @pytest.mark.parametrize(
    "broken", [{"prompt": "\ud83d"}, {"prompt": "a", "answer": ["b", "\ude00"]}, {"p\ud83d": "a"}]
  )
  def test_half_a_character_is_named_by_its_row(self, tmp_path, broken):
    rows = [{"prompt": f"p{i}"} for i in range(4)] + [{"prompt": "last"} | broken]
    with pytest.raises(ValueError, match="line 5: text with half of a character"):
      tasks.load(write(tmp_path, rows), ["evaluation_size=1"], rewards=[ONE])
    with pytest.raises(ValueError, match="row 5: text with half of a character"):
      tasks.from_rows("rows", rows, [ONE], evaluation_size=1)
    with pytest.raises(ValueError, match="^text with half of a character"):
      files.check_text(rows[4])

  def test_chat_prompts_and_another_prompt_column(self, tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    path = write(tmp_path, [{"said": chat}] * 3 + [{"said": [{"role": "user", "content": "bye"}]}])
    task = tasks.load(path, ["evaluation_size=1", "rename=said:prompt"], rewards=[ONE])
    prompts = [task.evaluation[0]["prompt"], task.row(0)["prompt"]]
    assert chat in prompts and prompts[0] != prompts[1]

  def test_parquet(self, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [{"prompt": [{"role": "user", "content": f"{i}"}], "answer": i} for i in range(4)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    task = tasks.load(str(tmp_path / "rows.parquet"), ["evaluation_size=1"], rewards=[ONE])
    assert sorted(task.row(i)["answer"] for i in range(3)) == sorted(set(range(4)) - {task.evaluation[0]["answer"]})
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(ValueError, match="no readable Parquet"):
      tasks.load(str(tmp_path / "bad.parquet"), rewards=[ONE])

  @pytest.mark.parametrize(
    "lines,message",
    [
      ([{"prompt": "a"}, '{"prompt": "b"'], "line 2: not JSON"),
      ([{"prompt": "a"}, {"text": "b"}], "line 2: no column prompt, question, .* it has text. Rename one"),
      ([{"prompt": "a"}, {"prompt": ""}], "line 2: the prompt must be text"),
      ([{"prompt": "a"}, {"prompt": [{"role": "user"}]}], "line 2: the prompt must be text"),
      ([{"prompt": "a"}, ["b"]], "line 2: a row must be a mapping of columns, got list"),
      ([{"prompt": "a"}], "too small for evaluation_size=1 .* 1 rows of 1 different prompts"),
    ],
  )
  def test_bad_files(self, tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
      tasks.load(write(tmp_path, lines), rewards=[ONE])

  def test_lines_are_counted_as_an_editor_does_and_must_be_utf8(self, tmp_path):
    with pytest.raises(ValueError, match="line 3: not JSON"):
      tasks.load(write(tmp_path, ['{"prompt": "a"}', "", "{"]), rewards=[ONE])
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
    with pytest.raises(ValueError, match="line 2: not JSON .*utf-8"):
      tasks.load(str(tmp_path / "latin.jsonl"), rewards=[ONE])

  def test_missing_file_rewards_and_options(self, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
      tasks.load("absent.jsonl", rewards=[ONE])
    with pytest.raises(ValueError, match="has no option 'digit'; it has digits"):
      tasks.load("arithmetic", ["digit=3"])
    with pytest.raises(ValueError, match="must be like 2, got 'x'"):
      tasks.load("arithmetic", ["digits=x"])
    with pytest.raises(ValueError, match="must read key=value"):
      tasks.load("arithmetic", ["digits"])
    with pytest.raises(ValueError, match="digits must be from 1 to 9"):
      tasks.load("arithmetic", ["digits=0"])


class TestReasoningGym:
  def test_scores_with_the_datasets_own_scorer(self):
    pytest.importorskip("reasoning_gym")
    task = tasks.load("reasoning_gym/chain_sum", ["evaluation_size=4", "min_terms=2", "max_terms=2"])
    row = task.row(7)
    assert row == task.row(7) and len(task.evaluation) == 4
    right = [{"role": "assistant", "content": f"<answer>{row['entry']['answer']}</answer>"}]
    wrong = [{"role": "assistant", "content": "<answer>none</answer>"}]
    score = task.rewards[0].function
    assert score(completions=[right, wrong], entry=[row["entry"]] * 2)[0] == 1.0
    assert score(completions=[right, wrong], entry=[row["entry"]] * 2)[1] < 1.0
    assert task.solved(prompts=[], completions=[right, wrong], entry=[row["entry"]] * 2) == [True, False]

  def test_unknown_names_and_options(self):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match="unknown reasoning-gym dataset 'chain_sums'"):
      tasks.load("reasoning_gym/chain_sums")
    with pytest.raises(ValueError, match="chain_sum"):
      tasks.load("reasoning_gym/chain_sum", ["no_such_option=1"])


@pytest.fixture(scope="module")
def tokenizer():
  return presets.load("tiny").tokenizer


class TestText:
  def test_long_prompts_are_passed_over_and_counted(self, tokenizer):
    rows = [{"prompt": "x" * n} for n in (3, 9, 4, 9, 5)]
    task = tasks.Task("t", lambda i: rows[i % 5], rows, (ONE,))
    drawn = text.make_prompts(task, Reader(tokenizer, (1,)), max_prompt_tokens=6).draw(0, 4)
    assert [len(row["prompt"]) for row in drawn.rows] == [3, 4, 5, 3]
    assert drawn.position == 6 and drawn.skipped == 2 and drawn.tokens.shape == (4, 5)
    with pytest.raises(ValueError, match="rows 0 to 999 are over max_prompt_tokens=2"):
      text.make_prompts(task, Reader(tokenizer, (1,)), max_prompt_tokens=2).draw(0, 4)

  def test_chat_without_a_template(self, tokenizer):
    silent = copy.deepcopy(tokenizer)
    silent.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
      prompt_tokens(Reader(silent, (1,)), [{"role": "user", "content": "hi"}])
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="refuses .*roles must alternate"):
      prompt_tokens(Reader(strict, (1,)), [{"role": "user", "content": "hi"}])
    with pytest.raises(ValueError, match="has no tokens"):
      prompt_tokens(Reader(tokenizer, (1,)), "")

  def test_stop_texts_must_be_one_token(self, tokenizer):
    assert len(text.stop_tokens(Reader(tokenizer, (1,)), ("\n",))) == 2
    with pytest.raises(ValueError, match="is 2 tokens"):
      text.stop_tokens(Reader(tokenizer, (1,)), ("ab",))
    with pytest.raises(ValueError, match="no end-of-sequence token"):
      text.stop_tokens(Reader(tokenizer, ()))

  def test_decoding_drops_padding_and_special_tokens(self, tokenizer):
    ids = tokenizer("42\n")["input_ids"] + [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert text.decode(tokenizer, np.array([ids]), np.array([[1, 1, 1, 1, 0]], bool)) == ["42\n"]


def test_unknown_task():
  with pytest.raises(ValueError, match="unknown task 'sums'"):
    tasks.load("sums")


def test_rows_are_held_out_by_what_they_are_about():
  rows = [f"{letter}{number}" for letter in "abcdefghij" for number in range(3)]
  split = hold_out(rows, 0.2, seed=1, key=lambda row: row[0])
  assert split.prompts == (8, 2) and len(split.held_out) == 6
  assert not {row[0] for row in split.training} & {row[0] for row in split.held_out}
  assert sorted(split.training + split.held_out) == rows
  assert hold_out(rows, 0.01, seed=1, key=lambda row: row[0]).prompts == (9, 1)
  with pytest.raises(ValueError, match="30 rows of 10 different prompts: none would be left"):
    hold_out(rows, 10, seed=1, key=lambda row: row[0])


@pytest.mark.parametrize(("keep", "wanted"), [(False, "42"), (True, "42<eos>")])
def test_special_tokens_are_text_where_rewards_look_for_them(keep, wanted):
  tokenizer = presets.character_tokenizer("0123456789+= \n")
  prompts = text.make_prompts(tasks.load("arithmetic"), Reader(tokenizer, (1,)), keep_special_tokens=keep)
  assert prompts.decode(np.array([[7, 5, 1]]), np.ones((1, 3), bool)) == [wanted]
