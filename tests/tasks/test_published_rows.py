"""Rows as data sets publish them: what is recognised, and what is read from files, compressed or not, and renamed."""

import gzip
import json

import pytest

from rl_jax import tasks
from rl_jax.models import presets
from rl_jax.tasks import examples, forms, messages, preferences, sources
from rl_jax.tasks.reading import Reader
from rl_jax.tasks.rewards import Reward

ONE = Reward(lambda completions, **_: [1.0] * len(completions), 1.0, "one")
SYSTEM = {"role": "system", "content": "Be brief."}
USER, REPLY = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}
BAD = {"role": "assistant", "content": "3"}
NAN = float("nan")  # one, since it equals itself alone

PROMPTS = {
  "GSM8K": ({"question": "1 + 1?", "answer": "#### 2"}, {"prompt": [USER], "answer": "#### 2"}, "questions, as chat"),
  "MATH": (
    {"problem": "1 + 1?", "solution": r"\boxed{2}", "level": "1"},
    {"prompt": [USER], "solution": r"\boxed{2}", "level": "1"},
    "problems, as chat",
  ),
  "DAPO-Math": (
    {"prompt": [USER], "reward_model": {"ground_truth": "2", "style": "rule"}, "data_source": "math"},
    {"prompt": [USER], "reward_model": {"ground_truth": "2", "style": "rule"}, "data_source": "math"},
    "prompts",
  ),
  "ShareGPT": (
    {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
    {"prompt": [USER]},
    "ShareGPT's conversations, up to the last answer",
  ),
  "Alpaca": (
    {"instruction": "Add.", "input": "1, 1", "output": "2"},
    {"prompt": [{"role": "user", "content": "Add.\n\n1, 1"}], "output": "2"},
    "Alpaca's instructions, as chat",
  ),
  "Alpaca after other turns": (
    {"instruction": "1 + 1?", "input": float("nan"), "history": [["Hi", "Yes?"]], "system": "Be brief."},
    {
      "prompt": [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, USER],
      "system": "Be brief.",
    },
    "Alpaca's instructions, as chat",
  ),
  "Dolly": (
    {"instruction": "Add.", "context": "1, 1", "response": "2"},
    {"prompt": [{"role": "user", "content": "Add.\n\n1, 1"}], "context": "1, 1", "response": "2"},
    "Alpaca's instructions, as chat",
  ),
  "a system prompt": (
    {"system_prompt": "Be brief.", "question": "1 + 1?"},
    {"prompt": [SYSTEM, USER], "system_prompt": "Be brief."},
    "questions, as chat",
  ),
  "a system prompt to text": (
    {"system": "Be brief.", "prompt": "1 + 1?"},
    {"prompt": [SYSTEM, USER], "system": "Be brief."},
    "prompts",
  ),
  "one that is there already": (
    {"system": "Be long.", "messages": [SYSTEM, USER, REPLY]},
    {"prompt": [SYSTEM, USER], "system": "Be long."},
    "conversations, up to the last answer",
  ),
  "messages in a text": ({"prompt": json.dumps([USER])}, {"prompt": [USER]}, "prompts"),
  "ShareGPT's roles": (
    {"messages": [{**USER, "role": "human"}, {**REPLY, "role": "gpt"}]},
    {"prompt": [USER]},
    "conversations, up to the last answer",
  ),
  "a context that is read": (
    {"instruction": "Q", "context": "one 'line'\nand another", "response": "2"},
    {
      "prompt": [{"role": "user", "content": "Q\n\none 'line'\nand another"}],
      "context": "one 'line'\nand another",
      "response": "2",
    },
    "Alpaca's instructions, as chat",
  ),
  "a context that is no text": (
    {"instruction": "1 + 1?", "context": ["a", "b"], "history": "[]", "output": "2"},
    {"prompt": [USER], "context": ["a", "b"], "output": "2"},
    "Alpaca's instructions, as chat; the model does not read context",
  ),
  "turns in a text": (
    {"conversations": json.dumps([{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}])},
    {"prompt": [USER]},
    "ShareGPT's conversations, up to the last answer",
  ),
  "a text like JSON": ({"prompt": '[{"a":' + "[" * 5000}, {"prompt": '[{"a":' + "[" * 5000}, "prompts"),
  "a question about a text": (
    {"question": "1 + 1?", "choices": ["2", "3"], "context": "1 + 1?", "options": NAN},
    {"prompt": [USER], "choices": ["2", "3"], "context": "1 + 1?", "options": NAN},
    "questions, as chat; the model does not read choices",
  ),
  "empty": ({"prompt": "", "question": "1 + 1?"}, {"prompt": [USER]}, "questions, as chat"),
  "null": ({"prompt": None, "question": "1 + 1?"}, {"prompt": [USER]}, "questions, as chat"),
  "messages": ({"messages": [USER, REPLY]}, {"prompt": [USER]}, "conversations, up to the last answer"),
  "parts": (
    {"prompt": [{"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}]}]},
    {"prompt": [USER]},
    "prompts",
  ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name):
  row, wanted, form = PROMPTS[name]
  read = sources.as_form(sources.Rows(["line 1"], [row], "", ""), forms.PROMPTS)
  assert read.rows == [wanted] and read.description == f"1 row read as {form}"
  other = {key: value for key, value in row.items() if not key.startswith("system")} | {"prompt": "other"}
  task = tasks.from_rows(name, [row, other], [ONE], evaluation_size=1)
  assert {str(task.row(0)["prompt"]), str(task.evaluation[0]["prompt"])} == {str(wanted["prompt"]), "other"}


@pytest.mark.parametrize(
  ("row", "prompt", "answers"),
  [
    ({"prompt": "1 + 1?", "chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "3"}]}, [USER], ["2", "3"]),
    (
      {"prompt": "1 + 1?", "chosen": [SYSTEM, USER, REPLY], "rejected": [SYSTEM, USER, {**REPLY, "content": "3"}]},
      [SYSTEM, USER],
      ["2", "3"],
    ),
    (
      {
        "prompt": "1 + 1?",
        "chosen": [{**USER, "content": "Hi"}, {**REPLY, "content": "Yes?"}, USER, REPLY],
        "rejected": [{**USER, "content": "Hi"}, {**REPLY, "content": "Yes?"}, USER, {**REPLY, "content": "3"}],
      },
      [{**USER, "content": "Hi"}, {**REPLY, "content": "Yes?"}, USER],
      ["2", "3"],
    ),
    ({"prompt": [USER], "chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "3"}]}, [USER], ["2", "3"]),
    ({"prompt": "1 + 1?", "chosen": [REPLY], "rejected": [{**REPLY, "content": "3"}]}, [USER], ["2", "3"]),
    ({"prompt": [SYSTEM, USER], "chosen": [USER, REPLY], "rejected": [USER, BAD]}, [SYSTEM, USER], ["2", "3"]),
    ({"prompt": [USER], "chosen": [SYSTEM, USER, REPLY], "rejected": [SYSTEM, USER, BAD]}, [SYSTEM, USER], ["2", "3"]),
    ({"prompt": [USER], "chosen": [USER, REPLY], "rejected": [BAD]}, [USER], ["2", "3"]),
    ({"system": "Be brief.", "prompt": "1 + 1?", "chosen": "2", "rejected": "3"}, [SYSTEM, USER], ["2", "3"]),
    ({"system": "Be brief.", "chosen": [USER, REPLY], "rejected": [USER, BAD]}, [SYSTEM, USER], ["2", "3"]),
    (
      {
        "prompt": "\n\nHuman: 1 + 1?\n\nAssistant:",
        "chosen": "\n\nHuman: 1 + 1?\n\nAssistant: 2",
        "rejected": "\n\nHuman: 1 + 1?\n\nAssistant: 3",
      },
      [USER],
      ["2", "3"],
    ),
    (
      {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 1 + 1?\n\nAssistant: 2",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 1 + 1?\n\nAssistant: 3",
      },
      [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, USER],
      ["2", "3"],
    ),
  ],
  ids=[
    "UltraFeedback",
    "with a system prompt",
    "of several turns",
    "a chat twice",
    "answers alone",
    "a system prompt in the prompt alone",
    "and in the answers alone",
    "one answer with its prompt",
    "Orca's pairs",
    "a column beside conversations",
    "HH-RLHF's prompts apart",
    "HH-RLHF",
  ],  # fmt: skip
)
def test_preferences(row, prompt, answers):
  (found,) = preferences.from_rows([("row 1", row)]).rankings
  assert found.prompt == prompt and [answer[-1]["content"] for answer in found.answers] == answers
  assert all(len(answer) == 1 for answer in found.answers)


def test_texts_that_all_say_their_prompt_again_are_cut_behind_it():
  rows = [(f"row {i}", {"prompt": f"Q{i}: ", "chosen": f"Q{i}: A", "rejected": f"Q{i}: B"}) for i in range(3)]
  found = preferences.from_rows(rows)
  assert [ranking.answers for ranking in found.rankings] == [("A", "B")] * 3
  assert "answers are cut behind the prompts, which all of them say again" in found.describe()
  greeting = ("row 9", {"prompt": "Hello", "chosen": "Hello! How can I help?", "rejected": "Hello there"})
  for some in ([greeting], [greeting, ("row 10", {"prompt": "Q", "chosen": "A", "rejected": "B"})]):
    assert preferences.from_rows(some).rankings[0].answers == ("Hello! How can I help?", "Hello there")


def test_a_system_prompt_stands_before_the_conversation_that_is_read():
  for row in (
    {"messages": [USER, REPLY], "prompt": "1 + 1?", "system": "Be brief."},
    {
      "conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}],
      "prompt": "",
      "system": "Be brief.",
    },
  ):
    assert forms.read(row, forms.DEMONSTRATIONS)[1]["messages"] == [SYSTEM, USER, REPLY]


@pytest.mark.parametrize(
  "row",
  [
    {"instruction": "Say nothing.", "input": "", "output": "", "text": "### Instruction: ..."},
    {"prompt": "Q", "completion": "", "text": "t"},
    {"question": "Q", "answer": "", "text": "t"},
  ],
)
def test_an_empty_answer_does_not_make_a_row_another_form(row):
  model = presets.load("tiny")
  rows = [("row 1", row), ("row 2", {"prompt": "a", "completion": "b"})]
  found = examples.encode_demonstrations(Reader(model.tokenizer, model.eos_tokens), rows, max_tokens=64)
  assert len(found.found) == 1 and found.problems == {examples.EMPTY: 1}


def test_white_space_makes_no_other_prompt():
  rows = [("row 1", {"prompt": "1 + 1? ", "chosen": [USER, REPLY], "rejected": [USER, BAD]})]
  assert preferences.from_rows(rows).rankings[0].prompt == [USER]


def test_turns_of_tables_have_what_they_do_not_say():
  filled = [{"from": None, "value": None, **turn} for turn in (USER, REPLY)]
  assert messages.of_turns(filled) == [USER, REPLY]


def test_a_question_that_is_not_asked_again_is_not_lost():
  other = {"role": "user", "content": "2 + 2?"}
  rows = [("row 1", {"prompt": [other], "chosen": [USER, REPLY], "rejected": [USER, BAD]})]
  assert preferences.from_rows(rows).rankings[0].prompt == [other, USER]


def test_single_answers_that_say_their_prompt_again_are_cut_behind_it():
  row = {"prompt": [SYSTEM, USER], "completion": [USER, REPLY], "label": True}
  (found,) = preferences.from_rows([("row 1", row)]).rankings
  assert found.prompt == [SYSTEM, USER] and found.answers == ([REPLY],)
  read = forms.read({"prompt": [USER], "completion": [SYSTEM, USER, REPLY]}, forms.DEMONSTRATIONS)[1]
  assert read["prompt"] == [SYSTEM, USER] and read["completion"] == [REPLY]


def test_columns_with_other_meanings_do_not_change_a_row():
  row = {"prompt": "Q", "chosen": "A", "rejected": "B", "answers": ["one", "two"], "label": 0}
  assert preferences.from_rows([("row 1", row)]).rankings[0].answers == ("A", "B")
  model = presets.load("tiny")
  rows = [("row 1", {"question": "1 + 1?", "answer": "2", "label": 0})]
  found = examples.encode_demonstrations(Reader(model.tokenizer, model.eos_tokens), rows, max_tokens=64)
  assert len(found.found) == 1 and not found.problems


def test_conversations_in_which_nothing_is_answered_are_counted():
  model = presets.load("tiny")
  rows = [("row 1", {"messages": [USER, {**REPLY, "content": ""}]}), ("row 2", {"messages": [USER, REPLY]})]
  found = examples.encode_demonstrations(Reader(model.tokenizer, model.eos_tokens), rows, max_tokens=64)
  assert len(found.found) == 1 and found.problems == {examples.EMPTY: 1}


def test_turns_keep_what_they_say_besides():
  turns = [{"from": "Human", "value": "1 + 1?"}, {"from": "gpt", "value": "3", "weight": 0}]
  assert messages.of_turns(turns) == [USER, BAD | {"weight": 0}]


def test_single_answers_have_a_label():
  rows = [{"prompt": [USER], "completion": [REPLY], "label": label} for label in (True, False, 1, 0)]
  found = preferences.from_rows((f"row {i}", row) for i, row in enumerate(rows))
  assert found.read == "4 rows read as single answers with a label"
  assert found.describe().endswith("4 rankings of 1 answer, 2 with the label true and 2 with false")
  assert [ranking.answers for ranking in found.rankings] == [([REPLY],)] * 4
  assert [ranking.ratings for ranking in found.rankings] == [(1.0,), (-1.0,), (1.0,), (-1.0,)]
  texts = [{"prompt": "a", "completion": "b", "label": label} for label in ("True", "false", "1", "0")]  # of a .csv
  found = preferences.from_rows((f"row {i}", row) for i, row in enumerate(texts))
  assert [ranking.ratings for ranking in found.rankings] == [(1.0,), (-1.0,), (1.0,), (-1.0,)]


@pytest.mark.parametrize("more", [{"label": True}, {"label": None}, {"answers": None}, {"label": 1, "completion": "d"}])
def test_columns_of_other_forms_do_not_change_what_a_pair_is(more):
  (found,) = preferences.from_rows([("row 1", {"prompt": "a", "chosen": "b", "rejected": "c", **more})]).rankings
  assert found.answers == ("b", "c") and found.ratings == ()
  single = {"prompt": "a", "completion": "b", "label": True, "answers": None}
  assert preferences.from_rows([("row 1", single)]).rankings[0].answers == ("b",)


TURN = "\n\nHuman: Hi\n\nAssistant: "
GOOD_AND_BAD = {
  "prompts": ({"prompt": "Hi"}, {"prompt": ""}),
  "a message says nothing": ({"prompt": [USER]}, {"prompt": [{"role": "user", "content": None}]}),
  "images": ({"prompt": [USER]}, {"prompt": [{"role": "user", "content": [{"type": "image"}]}]}),
  "ShareGPT": (
    {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
    {"conversations": [{"from": "human", "value": "1 + 1?"}]},
  ),
  "ShareGPT, a stranger": (
    {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
    {"conversations": [{"from": "alien", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
  ),
  "HH-RLHF": (
    {"chosen": f"{TURN}Yes", "rejected": f"{TURN}No"},
    {"chosen": f"{TURN}Yes", "rejected": "\n\nHuman: Hello\n\nAssistant: No"},
  ),
  "UltraFeedback": (
    {"prompt": "1 + 1?", "chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "3"}]},
    {"prompt": "another", "chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "3"}]},
  ),
  "half a character": ({"text": "Hi"}, {"text": "\ud83d"}),
}


def read_by(name, rows):
  """What one of the three readers makes of rows: how many are left, and what it tells."""
  placed = [(f"line {i + 1}", row) for i, row in enumerate(rows)]
  if "rejected" in rows[0]:
    found = preferences.from_rows(placed)
    return len(found.rankings), found.describe()
  if "prompt" in rows[0]:
    task = tasks.from_rows(name, [{**row, "number": i} for i, row in enumerate(rows)], [ONE], evaluation_size=1)
    return len(task.rows), task.description
  model = presets.load("tiny")
  found = examples.encode_demonstrations(Reader(model.tokenizer, model.eos_tokens), placed, max_tokens=64)
  return len(found.found), found.read


@pytest.mark.parametrize("name", GOOD_AND_BAD)
def test_few_rows_that_cannot_be_read_are_left_out_and_many_are_refused(name):
  good, bad = GOOD_AND_BAD[name]
  many = [good] * 199
  if good.keys() == {"prompt"}:  # a task holds some prompts out
    as_good = (lambda text: text) if isinstance(good["prompt"], str) else messages.user
    many = [{"prompt": as_good(str(i))} for i in range(199)]
  count, told = read_by(name, [*many[:60], bad, *many[60:]])
  assert count == 199 and "; 1 row left out that cannot be read, such as " in told and " 61: " in told
  with pytest.raises(ValueError, match=" 61: "):
    read_by(name, [*many[:60], bad, *many[60:80]])


def test_how_many_rows_cannot_be_read_is_told():
  with pytest.raises(ValueError, match=r"row 2: .* \(2 of 30 rows cannot be read; up to one in a hundred is left"):
    read_by("x", [{"prompt": "Hi"}, {"prompt": ""}, {"prompt": ""}, *[{"prompt": "Ho"}] * 27])


def test_answers_that_are_not_good_are_no_demonstrations():
  model = presets.load("tiny")
  rows = [
    (f"row {i}", {"prompt": "a", "completion": "b", "label": label}) for i, label in enumerate((True, False, "x"))
  ]
  found = examples.encode_demonstrations(Reader(model.tokenizer, model.eos_tokens), rows, max_tokens=9)
  assert len(found.found) == 2 and found.problems == {"with the label false: left out": 1}
  with pytest.raises(ValueError, match="row 1: preferences, which DPO and reward models learn from"):
    sources.as_form(sources.Rows(["row 1"], [{"chosen": "a", "rejected": "b"}], "", ""), forms.DEMONSTRATIONS)


def test_a_prompt_that_nobody_says_is_named():
  with pytest.raises(ValueError, match="conversations in which the prompt is not said"):
    preferences.from_rows([("row 1", {"prompt": "other", "chosen": [USER, REPLY], "rejected": [USER, REPLY]})])


@pytest.mark.parametrize(
  "row",
  [
    {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
    {"conversations": [USER, REPLY]},
    {"instruction": "1 + 1?", "input": "", "output": "2"},
    {"question": "1 + 1?", "answer": "2"},
    {"problem": "1 + 1?", "solution": "2"},
  ],
  ids=["ShareGPT", "messages by another name", "Alpaca", "GSM8K", "MATH"],
)
def test_demonstrations_are_those_of_the_same_conversation(row):
  model = presets.load("tiny")
  reader = Reader(model.tokenizer, model.eos_tokens)
  wanted = examples.encode_demonstrations(reader, [("row 1", {"messages": [USER, REPLY]})], max_tokens=64)
  found = examples.encode_demonstrations(reader, [("row 1", row)], max_tokens=64)
  assert [each.example for each in found[0]] == [each.example for each in wanted[0]]


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"conversations": [{"from": "alien", "value": "?"}]}, "row 1: not read as ShareGPT's .* from 'alien', none of"),
    ({"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "a part of type 'image'; text alone"),
    ({"conversations": 3}, "row 1: not read as ShareGPT's"),
  ],
)
def test_what_cannot_be_read_is_named_by_its_row(row, message):
  with pytest.raises(ValueError, match=message):
    sources.as_form(sources.Rows(["row 1"], [row], "", ""), forms.PROMPTS)


ROWS = [{"q": f"{i} + 1?", "answer": str(i + 1)} for i in range(3)]


def content_of(suffix):
  if suffix.startswith(".jsonl"):
    return "".join(json.dumps(row) + "\n" for row in ROWS)
  if suffix.startswith(".json"):
    return json.dumps({"version": 1, "data": ROWS})
  return "q,answer\n" + "".join(f'"{row["q"]}",{row["answer"]}\n' for row in ROWS)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz"])
def test_files_of_every_kind_hold_the_same_rows(tmp_path, suffix):
  path = tmp_path / f"rows{suffix}"
  content = content_of(suffix).encode()
  path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
  found = sources.read(path)
  assert found.rows == ROWS and found.name == "rows" and len(found.fingerprint) == 64
  renamed = sources.read(path, rename="q:question")
  assert renamed.rows[0] == {"question": "0 + 1?", "answer": "1"} and renamed.fingerprint != found.fingerprint
  with pytest.raises(ValueError, match="no column 'x' to rename; it has q, answer"):
    sources.read(path, rename="x:prompt")
  if suffix.endswith(".gz"):
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="no whole gzip file"):
      sources.read(path)


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("pandas.csv", "," + content_of(".csv").replace("\n", "\n0,", 3)),
    ("lines.json", content_of(".jsonl")),
    ("columns.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]})),
    ("rows.json", json.dumps({"info": [{}], "rows": ROWS})),
  ],
)
def test_files_as_other_programs_write_them(tmp_path, name, content):
  (tmp_path / name).write_text(content)
  assert sources.read(tmp_path / name).rows == ROWS


def test_a_cell_may_be_as_long_as_it_likes(tmp_path):
  (tmp_path / "rows.csv").write_text(f"q,answer\n{'x' * 200_000},2\n")
  assert len(sources.read(tmp_path / "rows.csv").rows[0]["q"]) == 200_000


def test_a_damaged_archive_is_named(tmp_path):
  content = bytearray(gzip.compress(content_of(".jsonl").encode() * 9))
  content[30:50] = bytes(255 - each for each in content[30:50])
  (tmp_path / "rows.jsonl.gz").write_bytes(content)
  with pytest.raises(ValueError, match="no whole gzip file"):
    sources.read(tmp_path / "rows.jsonl.gz")


@pytest.mark.parametrize("rename", ["q:x,answer:x", "q:x,q:y"])
def test_no_column_is_renamed_twice(tmp_path, rename):
  (tmp_path / "rows.csv").write_text(content_of(".csv"))
  with pytest.raises(ValueError, match="rename names '[xq]' twice"):
    sources.read(tmp_path / "rows.csv", rename=rename)
  assert sources.read(tmp_path / "rows.csv", rename="q: prompt , answer:a").rows[0] == {"prompt": "0 + 1?", "a": "1"}


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.csv", "q,q\n1,2\n", "two columns have the name 'q'"),
    ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
    ("a.json", "[" * 100_000, "not JSON"),
    ("a.json", '{"a": [1], "b": [1, 2]}', r"lists by column must be of one length, got \[1, 2\]"),
    ("a.json", '{"messages": [{"role": "user", "content": "Hi"}]}', "must hold a list of rows, got dict"),
    ("a.csv", "q,answer\n1\n", "row 1: not as many columns"),
    ("a.csv", "q\n1,2\n", "row 1: not as many columns"),
    ("a.json", "[1", "not JSON"),
    ("a.json", '{"a": 1}', "must hold a list of rows, got dict"),
    ("a.jsonl", "", "has no rows"),
    ("a.txt", "x", "must end in .jsonl, .json, .csv"),
  ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=message):
    sources.read(tmp_path / name)
  with pytest.raises(ValueError, match="rename must read old:new"):
    sources.read(tmp_path / name, rename="a")
  (tmp_path / "folder.jsonl").mkdir()
  with pytest.raises(ValueError, match="folder"):
    sources.read(tmp_path / "folder.jsonl")
