"""Where a prompt ends and an answer begins, in tokens."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from rl_jax.models import presets
from rl_jax.tasks import examples
from rl_jax.tasks.preferences import Preferences, Ranking

TINY = presets.load("tiny").tokenizer


class Merging:
  """Letters, but `ab` is one token where it stands together."""

  eos_token_id, pad_token_id, chat_template = 1, 0, None

  def __call__(self, text, add_special_tokens=True):
    tokens, place = [], 0
    while place < len(text):
      merged = text[place : place + 2] == "ab"
      tokens.append(2 if merged else 10 + ord(text[place]) - ord("a"))
      place += 1 + merged
    return {"input_ids": tokens}


def test_text_is_tokenized_as_one_where_the_prompt_stays_what_it_was():
  assert examples.encode_answer(Merging(), "ca", "ca") == ([12, 10], [12, 10, 1], "")
  prompt, answer, wrong = examples.encode_answer(Merging(), "ca", "b")
  assert (prompt, answer, wrong) == ([12, 10], [11, 1], examples.SPLIT)


def test_chat_answers_end_where_a_model_would_stop():
  user = [{"role": "user", "content": "Hi"}]
  prompt, answer, wrong = examples.encode_answer(TINY, user, [{"role": "assistant", "content": "Yes"}])
  assert TINY.decode(prompt) == "user: Hi\nassistant: " and TINY.decode(answer) == "Yes\n<eos>" and not wrong


def test_what_a_template_puts_behind_the_end_is_cut():
  assert examples._ended(SimpleNamespace(eos_token_id=1), [5, 1, 7]) == [5, 1]
  assert examples._ended(SimpleNamespace(eos_token_id=None), [5, 7]) == [5, 7]


def test_a_template_that_rewrites_the_prompt_is_counted_and_left_out():
  changing = presets.load("tiny").tokenizer
  changing.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
  user = [{"role": "user", "content": "Hi"}]
  rows = [("row 1", {"prompt": user, "completion": [{"role": "assistant", "content": "a"}]})]
  rows.append(("row 2", {"prompt": "1", "completion": "2"}))
  found, problems = examples.encode_demonstrations(changing, rows, max_tokens=9)
  assert len(found) == 1 and problems == {examples.CHANGED: 1}


def test_every_message_of_the_assistant_is_a_label():
  turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
  messages = [{"role": role, "content": content} for role, content in turns]
  found, _ = examples.encode_demonstrations(TINY, [("row 1", {"messages": messages})], max_tokens=99)
  tokens, labels = found[0]
  assert len(tokens) == len(labels)
  learned = "".join(TINY.decode([token]) for token, label in zip(tokens, labels, strict=True) if label)
  assert learned == "b\nd\n<eos>"


def test_long_rows_are_counted():
  rows = [("row 1", {"text": "123456"}), ("row 2", {"text": "12"})]
  found, problems = examples.encode_demonstrations(TINY, rows, max_tokens=4)
  assert len(found) == 1 and found[0].labels == [False, True, True] and problems == {examples.LONG: 1}
  with pytest.raises(ValueError, match="no demonstrations are left: 2 over the limit"):
    examples.encode_demonstrations(TINY, rows, max_tokens=2)


def test_answers_that_become_the_same_tokens_and_empty_ones_are_counted():
  rankings = [Ranking("a", ("é", "ü")), Ranking("a", ("b", "c"))]  # the tokenizer knows neither é nor ü
  found, problems = examples.encode_rankings(TINY, Preferences(rankings, Counter()), max_tokens=8)
  assert len(found) == 1 and problems == {examples.SAME: 1}
  rows = [("row 1", {"prompt": "a", "completion": ""}), ("row 2", {"prompt": "a", "completion": "b"})]
  assert examples.encode_demonstrations(TINY, rows, max_tokens=8)[1] == {examples.EMPTY: 1}


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"answer": "2"}, "no columns prompt and completion"),
    (["a"], "not a mapping"),
    ({"prompt": "1", "completion": None}, "prompt and completion must both be text"),
    ({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, "or both lists of messages"),
    ({"messages": [{"content": "a"}]}, "messages must be a list of messages with role and content"),
    ({"messages": [{"role": "user", "content": "a"}]}, "messages holds none of the assistant"),
  ],
)
def test_a_broken_row_is_named_by_its_place(row, message):
  with pytest.raises(ValueError, match=f"row 7: .*{message}"):
    examples.encode_demonstrations(TINY, [("row 7", row)], max_tokens=9)


def test_an_end_inside_a_text_stays():
  found, _ = examples.encode_demonstrations(TINY, [("row 1", {"text": "ab<eos>cd"})], max_tokens=99)
  assert TINY.decode(found[0].tokens) == "ab<eos>cd<eos>"


def test_a_batch_of_rankings_is_padded_on_the_right():
  rows = [
    examples.EncodedRanking([5, 6], [[7, 1], [8, 9, 1]], (2.0, 1.0)),
    examples.EncodedRanking([5], [[7], [1]], (0.5, 0.0)),
  ]
  sequences = examples.ranking_sequences(rows, 0)
  np.testing.assert_array_equal(sequences.completions[:, :, :3], [[[7, 1, 0], [8, 9, 1]], [[7, 0, 0], [1, 0, 0]]])
  np.testing.assert_array_equal(np.asarray(sequences.completion_mask).sum(-1), [[2, 3], [1, 1]])
  np.testing.assert_array_equal(examples.ratings_of(rows), [[2, 1], [0.5, 0]])
