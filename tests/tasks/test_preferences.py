"""Preference rows in all their forms, and what is wrong with some."""

import json

import pytest

from rl_jax.tasks import preferences


def load(tmp_path, *rows):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return preferences.load(path)


def message(content, role="assistant"):
  return {"role": role, "content": content}


def test_text_chat_and_implicit_prompts_are_read(tmp_path):
  user = [message("Hi", "user")]
  text = load(tmp_path, {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}).rankings[0]
  assert text[:2] == ("1 + 1 =", (" 2", " 3")) and text.place.endswith("line 1")
  explicit = load(tmp_path, {"prompt": user, "chosen": [message("a")], "rejected": [message("b")]}).rankings[0]
  implicit = load(tmp_path, {"chosen": [*user, message("a")], "rejected": [*user, message("b")]}).rankings[0]
  assert explicit == implicit and explicit[:2] == (user, ([message("a")], [message("b")]))


def test_rankings_carry_ratings(tmp_path):
  ranking = load(tmp_path, {"prompt": "a", "answers": ["x", "y", "z"], "ratings": [3, 1, 1.0]}).rankings[0]
  assert ranking.answers == ("x", "y", "z") and ranking.ratings == (3.0, 1.0, 1.0)


def test_useless_rows_are_counted(tmp_path):
  good = {"prompt": "a", "chosen": "b", "rejected": "c"}
  found = load(tmp_path, good, good | {"rejected": "b"}, good | {"chosen": ""}, good | {"rejected": ""}, good)
  assert len(found.rankings) == 2
  user = [message("Hi", "user")]
  chats = [{"prompt": user, "chosen": [message(one)], "rejected": [message("b")]} for one in ("", "a")]
  assert load(tmp_path, *chats).left_out == {"with an empty answer": 1}
  whole = {"chosen": [*user, message("a")], "rejected": [*user, message("a")]}
  assert load(tmp_path, *chats, whole).left_out == {"with an empty answer": 1, "with equal answers": 1}
  rated = {"prompt": "a", "answers": ["b", "c"]}
  assert load(tmp_path, rated | {"ratings": [2, 1]}, rated | {"ratings": [1, 1]}).left_out == {"with equal ratings": 1}
  assert load(tmp_path, good, good | {"rejected": " \n"}).left_out == {"with an empty answer": 1}
  read = "5 rows read as prompts with a chosen and a rejected answer"
  assert found.describe() == f"{read}; 2 rankings of 2 answers; left out: 1 with equal answers, 2 with an empty answer"


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    (
      {"prompt": "a", "chosen": "b"},
      "no column prompt and chosen and rejected, chosen and rejected, answers or prompt and completion and label; it",
    ),
    ({"chosen": "a", "rejected": "b"}, "no column 'prompt', which only lists of chat messages can do without"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": 3}, "answer 1 must be text, as the prompt is"),
    ({"prompt": "a", "chosen": "b", "rejected": [message("c")]}, "answer 1 must be text"),
    ({"prompt": "a", "answers": ["b"]}, "answers must be a list of at least two"),
    ({"prompt": "a", "answers": ["b", "c"], "ratings": [1]}, "ratings must be 2 finite numbers"),
    ({"prompt": "a", "answers": ["b", "c"], "ratings": [1, 2]}, "ratings must not rise"),
    ({"prompt": "a", "answers": ["b", "c", "d"]}, "3 answers, but .*line 1 has 2"),
    ({"prompt": "a", "answers": ["b", "c"], "ratings": [2, 1]}, "ratings are given for some rows and not for others"),
    ({"chosen": [message("a", "user")], "rejected": [message("b", "user")]}, "do not begin with the same message"),
    ({"prompt": "a", "completion": "b", "label": True}, "1 answer, but .*line 1 has 2"),
    ({"prompt": "a", "completion": "b", "label": "good"}, "label must be true or false, got 'good'"),
  ],
)
def test_a_broken_row_is_named_by_its_place(tmp_path, row, reason):
  with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2: .*{reason}|rows\.jsonl, line 2: {reason}"):
    load(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"}, row)


def test_nothing_usable_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="no usable preferences; 1 row read as .*; 0 rankings .*1 with equal answers"):
    load(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "b"})
  with pytest.raises(ValueError, match="does not exist"):
    preferences.load(tmp_path / "nowhere.jsonl")
