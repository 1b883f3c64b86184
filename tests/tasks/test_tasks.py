import copy
import json

import numpy as np
import pytest

from rl_jax import tasks
from rl_jax.models import presets
from rl_jax.tasks import arithmetic, text
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

  def test_chat_prompts_and_another_prompt_column(self, tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    path = write(tmp_path, [{"messages": chat}] * 3)
    task = tasks.load(path, ["evaluation_size=1", "prompt_column=messages"], rewards=[ONE])
    assert task.row(0)["prompt"] == chat

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
      ([{"prompt": "a"}, {"text": "b"}], "line 2: no column 'prompt'"),
      ([{"prompt": "a"}, {"prompt": ""}], "line 2: the prompt must be text"),
      ([{"prompt": "a"}, {"prompt": [{"role": "user"}]}], "line 2: the prompt must be text"),
      ([{"prompt": "a"}, ["b"]], "line 2: no column 'prompt'"),
      ([{"prompt": "a"}], "has 1 rows, no more than evaluation_size=64"),
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
    with pytest.raises(ValueError, match="must be int, got 'x'"):
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
    drawn = text.make_prompts(task, tokenizer, (1,), max_prompt_tokens=6).draw(0, 4)
    assert [len(row["prompt"]) for row in drawn.rows] == [3, 4, 5, 3]
    assert drawn.position == 6 and drawn.skipped == 2 and drawn.tokens.shape == (4, 5)
    with pytest.raises(ValueError, match="rows 0 to 999 are over max_prompt_tokens=2"):
      text.make_prompts(task, tokenizer, (1,), max_prompt_tokens=2).draw(0, 4)

  def test_chat_without_a_template(self, tokenizer):
    silent = copy.deepcopy(tokenizer)
    silent.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
      text.encode(silent, [{"role": "user", "content": "hi"}])
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="refuses the prompt .*roles must alternate"):
      text.encode(strict, [{"role": "user", "content": "hi"}])
    with pytest.raises(ValueError, match="has no tokens"):
      text.encode(tokenizer, "")

  def test_stop_texts_must_be_one_token(self, tokenizer):
    assert len(text.stop_tokens(tokenizer, ("\n",), (1,))) == 2
    with pytest.raises(ValueError, match="is 2 tokens"):
      text.stop_tokens(tokenizer, ("ab",), (1,))
    with pytest.raises(ValueError, match="no end-of-sequence token"):
      text.stop_tokens(tokenizer, (), ())

  def test_decoding_drops_padding_and_special_tokens(self, tokenizer):
    ids = tokenizer("42\n")["input_ids"] + [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert text.decode(tokenizer, np.array([ids]), np.array([[1, 1, 1, 1, 0]], bool)) == ["42\n"]


def test_unknown_task():
  with pytest.raises(ValueError, match="unknown task 'sums'"):
    tasks.load("sums")
