"""Where a prompt ends and an answer begins, in tokens."""

from collections import Counter

import numpy as np
import pytest

from rl_jax.models import presets
from rl_jax.tasks import examples, reading
from rl_jax.tasks.preferences import Preferences, Ranking
from rl_jax.tasks.reading import Example, Reader

TINY = Reader(presets.load("tiny").tokenizer, (1,))


def encode(rows, max_tokens=99, reader=TINY):
  """Examples and problems of rows."""
  places = [(f"row {number}", row) for number, row in enumerate(rows, start=1)]
  found, problems, _ = examples.encode_demonstrations(reader, places, max_tokens=max_tokens)
  return [demonstration.example for demonstration in found], problems


def test_a_template_that_drops_the_answer_is_counted_and_left_out():
  dropping = presets.load("tiny").tokenizer
  dropping.chat_template = (
    "{{ messages | length }}{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
  )
  user = [{"role": "user", "content": "Hi"}]
  rows = [{"prompt": user, "completion": [{"role": "assistant", "content": "a"}]}, {"prompt": "1", "completion": "2"}]
  found, problems = encode(rows, reader=Reader(dropping, (1,)))
  assert len(found) == 1 and problems == {reading.CHANGED: 1}


def test_long_rows_are_counted():
  rows = [{"text": "123456"}, {"text": "12"}]
  found, problems = encode(rows, max_tokens=4)
  assert len(found) == 1 and found[0].labels == [False, True, True] and problems == {examples.LONG: 1}
  with pytest.raises(ValueError, match="no demonstrations are left: 2 over the limit"):
    encode(rows, max_tokens=2)


def test_answers_that_become_the_same_tokens_and_empty_ones_are_counted():
  rankings = [Ranking("a", ("é", "ü")), Ranking("a", ("b", "c"))]  # the tokenizer knows neither é nor ü
  found, problems = examples.encode_rankings(TINY, Preferences(rankings, Counter()), max_tokens=8)
  assert len(found) == 1 and problems == {examples.SAME: 1}
  rows = [{"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "b"}]
  assert encode(rows)[1] == {examples.EMPTY: 1}


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"answer": "2"}, "no column messages, prompt and completion, .* or text; it has answer"),
    (["a"], "a row must be a mapping"),
    ({"prompt": "1", "completion": None}, "no column messages, .* it has prompt, completion [(]null[)]"),
    ({"prompt": "1", "completion": 2}, "prompt and completion must both be text"),
    ({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, "or both lists of messages"),
    ({"messages": [{"content": "a"}]}, "messages must be a list of messages with role and content"),
    ({"messages": [{"role": "user", "content": "a"}]}, "messages holds none of the assistant"),
  ],
)
def test_a_broken_row_is_named_by_its_place(row, message):
  with pytest.raises(ValueError, match=f"row 7: .*{message}"):
    examples.encode_demonstrations(TINY, [("row 7", row)], max_tokens=9)


def test_an_end_inside_a_text_stays():
  found, _ = encode([{"text": "ab<eos>cd"}])
  assert TINY.tokenizer.decode(found[0].tokens) == "ab<eos>cd<eos>"


def test_a_batch_of_rankings_is_padded_on_the_right():
  first = Example([7, 1], [True, True]), Example([8, 9, 1], [True, False, True])
  second = Example([7], [True]), Example([1], [True])
  rows = [
    examples.EncodedRanking([5, 6], list(first), (2.0, 1.0)),
    examples.EncodedRanking([5], list(second), (0.5, 0.0)),
  ]
  sequences, labels = examples.ranking_sequences(rows, 0)
  np.testing.assert_array_equal(sequences.completions[:, :, :3], [[[7, 1, 0], [8, 9, 1]], [[7, 0, 0], [1, 0, 0]]])
  np.testing.assert_array_equal(np.asarray(sequences.completion_mask).sum(-1), [[2, 3], [1, 1]])
  np.testing.assert_array_equal(labels[0, 1, :3], [True, False, True])
  np.testing.assert_array_equal(labels[1].sum(-1), [1, 1])
  np.testing.assert_array_equal(examples.ratings_of(rows), [[2, 1], [0.5, 0]])


@pytest.mark.parametrize(
  ("row", "learned"),
  [
    ({"messages": "CHAT", "prompt": "1", "completion": "2", "text": "3"}, "yes\n<eos>"),
    ({"messages": None, "prompt": "1", "completion": "2", "text": "3"}, "2<eos>"),
    ({"prompt": None, "text": "34"}, "4<eos>"),
  ],
)
def test_a_row_of_several_forms_is_the_first_of_them(row, learned):
  chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "yes"}]
  (example,), _ = encode([{name: chat if value == "CHAT" else value for name, value in row.items()}])
  labelled = [token for token, label in zip(*example, strict=True) if label]
  assert TINY.tokenizer.decode(labelled) == learned


def test_rows_of_one_prompt_are_about_the_same():
  rows = [("row 1", {"prompt": "1", "completion": "2"}), ("row 2", {"prompt": "1", "completion": "3"})]
  found, *_ = examples.encode_demonstrations(TINY, rows, max_tokens=9)
  assert len({demonstration.subject for demonstration in found}) == 1


@pytest.mark.parametrize("prompts", [[3, 3, 7], [3, 7, 3, 7], [3, 3, 3, 8], [1, 2]])
def test_a_mismatched_answer_is_of_another_prompt(prompts):
  rows = [examples.EncodedRanking([p], [Example([10 * p + i], [True])]) for i, p in enumerate(prompts)]
  mismatched, labels = examples.mismatched_pairs(
    *examples.ranking_sequences(rows, 0), [str(row.prompt) for row in rows]
  )
  answers = np.asarray(mismatched.completions)[:, 0, 0]
  assert (answers // 10 != prompts).all() and labels[:, 0, 0].all()
  np.testing.assert_array_equal(mismatched.prompts[:, 0], prompts)


def test_without_another_prompt_nothing_is_mismatched():
  rows = [examples.EncodedRanking([3], [Example([i], [True])]) for i in (4, 5)]
  mismatched, labels = examples.mismatched_pairs(
    *examples.ranking_sequences(rows, 0), [str(row.prompt) for row in rows]
  )
  assert not labels.any() and mismatched.completions[:, 0, 0].tolist() == [4, 5]
