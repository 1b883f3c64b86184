"""Which tokens a model reads and which it answers, under templates that do what those of published models do."""

import datetime
from collections import Counter

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from rl_jax.models import presets
from rl_jax.tasks import examples, preferences, reading, text
from rl_jax.tasks.preferences import Preferences
from rl_jax.tasks.reading import Reader

# Turns are closed by an end of their own and a line break, as ChatML's are.
TURNS = (
  "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}|\n{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# The thoughts of all turns but the last are dropped, and the last one gets empty ones (Qwen3).
THOUGHTS_OF_THE_LAST = (
  "{% for m in messages %}<{{ m['role'] }}>"
  "{% if m['role'] == 'assistant' %}"
  "{% if loop.last %}{% if '</t>' not in m['content'] %}<t></t>{% endif %}{{ m['content'] }}"
  "{% else %}{{ m['content'].split('</t>')[-1] }}{% endif %}"
  "{% else %}{{ m['content'] }}{% endif %}|\n{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# The prompt opens the thoughts, and an answer that is rendered has lost its own (R1's distilled models).
OPENS_THOUGHTS = (
  "{% for m in messages %}<{{ m['role'] }}>"
  "{% if m['role'] == 'assistant' %}{{ m['content'].split('</t>')[-1] }}|{% else %}{{ m['content'] }}{% endif %}"
  "{% endfor %}{% if add_generation_prompt %}<assistant><t>\n{% endif %}"
)


def reader(template=TURNS, date=reading.DATE):
  """Characters, with the ends `<eos>` and `|`."""
  tokenizer = presets.load("tiny").tokenizer
  tokenizer.chat_template = template
  return Reader(tokenizer, (1, tokenizer.get_vocab()["|"]), date)


def chat(*words, first="user"):
  """Messages of user and assistant in turn."""
  roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
  return [{"role": roles[place % 2], "content": content} for place, content in enumerate(words)]


def said(read, tokens):
  return read.tokenizer.decode(tokens)


def learned(read, example):
  """The labels as text, with a dot where others speak."""
  return "".join(
    said(read, [token]) if label else "." for token, label in zip(example.tokens, example.labels, strict=True)
  )


def demonstrations(read, *rows):
  found, problems, _ = examples.encode_demonstrations(read, [("row 1", row) for row in rows], max_tokens=999)
  return [demonstration.example for demonstration in found], problems


def ranking(read, **row):
  data = preferences.from_rows([("row 1", row)])
  (found,), _ = examples.encode_rankings(read, data, max_tokens=999)
  return found


@pytest.mark.parametrize("template", [TURNS, TURNS.replace("|\n", "|"), TURNS.replace("|\n", "<eos>\n")])
def test_an_answer_ends_at_the_first_end_that_a_policy_would_stop_at(template):
  read = reader(template)
  end = "<eos>" if "<eos>" in template else "|"
  for answer in (
    reading.answered(read, chat("Hi"), chat("yes", first="assistant")).answer,
    ranking(read, prompt=chat("Hi"), chosen=chat("yes", first="assistant"), rejected=chat("n", first="assistant"))[1][
      0
    ],
  ):
    assert said(read, answer.tokens) == f"yes{end}" and all(answer.labels)
  for row in ({"messages": chat("Hi", "yes")}, {"prompt": chat("Hi"), "completion": chat("yes", first="assistant")}):
    ((example,), _) = demonstrations(read, row)
    assert learned(read, example).lstrip(".") == f"yes{end}"
  assert reading.until_end(example.tokens[-1:], read) == example.tokens[-1:]
  assert set(text.stop_tokens(read).tolist()) == set(read.eos_tokens)


def test_text_ends_with_the_tokenizers_own_end_and_what_lies_behind_an_end_is_cut():
  read = reader()
  assert said(read, reading.answered(read, "a", "b").answer.tokens) == "b<eos>"
  assert said(read, reading.answered(read, "a", "b|c").answer.tokens) == "b|"
  assert said(read, reading.answered(read._replace(eos_tokens=(5,)), "a", "b").answer.tokens) == "b2"
  assert said(read, reading.answered(read._replace(eos_tokens=()), "a", "b").answer.tokens) == "b"


def test_words_of_others_in_an_answer_are_no_labels():
  read = reader()
  answer = chat("b", "c", "d", first="assistant")
  expected = "b|." + "." * len("<user>c|\n<assistant>") + "d|"
  found = reading.answered(read, chat("a"), answer)
  assert said(read, found.prompt) == "<user>a|\n<assistant>" and learned(read, found.answer) == expected
  for row in ({"prompt": chat("a"), "completion": answer}, {"messages": chat("a", "b", "c", "d")}):
    ((example,), _) = demonstrations(read, row)
    assert learned(read, example) == "." * len(found.prompt) + expected
  ranked = ranking(read, chosen=chat("a", "b", "c", "d"), rejected=chat("a", "x", "y", "z"))
  assert said(read, ranked.prompt) == "<user>a|\n<assistant>"
  assert learned(read, ranked.answers[0]) == expected
  assert learned(read, ranked.answers[1]) == expected.replace("b", "x").replace("d", "z")
  sequences, labels = examples.ranking_sequences([ranked], 0)
  assert labels[0, 0].sum() == 4 and sequences.completion_mask[0, 0].sum() == len(expected)


def test_conversations_that_part_at_a_users_words_share_the_prompt_before_them():
  read = reader()
  ranked = ranking(read, chosen=chat("a", "b", "c", "d"), rejected=chat("a", "b", "y", "z"))
  assert said(read, ranked.prompt) == "<user>a|\n<assistant>b|\n"
  assert learned(read, ranked.answers[1]) == "." * len("<user>y|\n<assistant>") + "z|"


def test_what_a_user_says_last_is_not_part_of_an_answer():
  read = reader()
  found = reading.answered(read, chat("a"), chat("b", "thanks", first="assistant"))
  assert said(read, found.answer.tokens) == "b|"
  with pytest.raises(ValueError, match="the answer holds no message of the assistant"):
    reading.answered(read, chat("a"), chat("b"))


def test_a_message_of_weight_0_is_read_and_not_learned():
  read = reader()
  messages = chat("a", "b", "c", "d")
  messages[1]["weight"] = 0
  ((example,), _) = demonstrations(read, {"messages": messages})
  assert learned(read, example).strip(".") == "d|" and "b" in said(read, example.tokens)
  messages[1]["weight"], messages[3]["weight"] = 1, 0
  ((example,), _) = demonstrations(read, {"messages": messages})
  assert learned(read, example).strip(".") == "b|"
  messages[1]["weight"] = 0
  with pytest.raises(ValueError, match="1 whose messages all have the weight 0"):
    demonstrations(read, {"messages": messages})


def test_a_prompt_that_ends_with_the_assistants_words_is_continued():
  read = reader()
  prompt = chat("a", "The answer is ")
  assert said(read, reading.prompt_tokens(read, prompt)) == "<user>a|\n<assistant>The answer is "
  found = reading.answered(read, prompt, chat("4", first="assistant"))
  assert said(read, found.prompt) == "<user>a|\n<assistant>The answer is " and said(read, found.answer.tokens) == "4|"
  ((example,), _) = demonstrations(read, {"prompt": prompt, "completion": chat("4", first="assistant")})
  assert learned(read, example).lstrip(".") == "4|"
  ranked = ranking(read, prompt=prompt, chosen=chat("4", first="assistant"), rejected=chat("5", first="assistant"))
  assert [said(read, answer.tokens) for answer in ranked.answers] == ["4|", "5|"]
  trimming = reader(TURNS.replace("m['content']", "m['content'] | trim"))
  assert said(trimming, reading.prompt_tokens(trimming, prompt)).endswith("The answer is ")
  with pytest.raises(ValueError, match="drops the assistant's words"):
    reading.prompt_tokens(reader("{{ messages[0]['content'] }}"), prompt)


@pytest.mark.parametrize("template", [TURNS, THOUGHTS_OF_THE_LAST, OPENS_THOUGHTS])
def test_thoughts_that_are_not_closed_are_continued(template):
  read = reader(template)
  asked = said(read, reading.prompt_tokens(read, chat("a"))).removesuffix("<t>\n")
  for begun in ("<t>\nx", "<t>x"):
    prompt = said(read, reading.prompt_tokens(read, chat("a", begun)))
    assert prompt.replace("\n", "") == (asked + begun).replace("\n", "")
  assert said(read, reading.prompt_tokens(read, chat("a", "<t>x</t>b"))).endswith("x</t>b")


# The system's words stand before the last message if that is the user's, and a space before every reply (Mistral).
SYSTEM_LAST = (
  "{% for m in messages %}{% if m['role'] == 'user' %}[{% if loop.last and messages[0]['role'] == 'system' %}"
  "{{ messages[0]['content'] }} {% endif %}{{ m['content'] }}[/I]"
  "{% elif m['role'] == 'assistant' %} {{ m['content'] }}|{% endif %}{% endfor %}"
)


def test_what_a_template_writes_before_a_reply_is_learned_where_the_prompt_is_rewritten_too():
  read = reader(SYSTEM_LAST)
  system = [{"role": "system", "content": "s"}]
  for prompt, seen in ((chat("a"), "[a[/I]"), (system + chat("a"), "[s a[/I]")):
    found = reading.answered(read, prompt, chat("b", first="assistant"))
    assert said(read, found.prompt) == seen and said(read, found.answer.tokens) == " b|"


def test_a_tag_that_is_no_thought_of_the_template_is_continued_as_it_stands():
  for template in (THOUGHTS_OF_THE_LAST, OPENS_THOUGHTS):
    read = reader(template)
    words = [said(read, reading.prompt_tokens(read, chat("a", begun))) for begun in ("<answer>4", "answer 4")]
    assert words[0].replace("<answer>4", "answer 4") == words[1]


def test_a_call_that_a_template_does_not_render_is_left_out():
  called = {"role": "assistant", "content": "b", "tool_calls": [{"name": "add"}]}
  rows = {"messages": [*chat("a"), called]}, {"messages": chat("a", "b")}
  found, problems = demonstrations(reader(), *rows)
  assert len(found) == 1 and problems == {reading.CHANGED: 1}


def test_settings_that_a_table_fills_up_are_not_told():
  assert reading.row_options({"chat_template_kwargs": {"date": None, "loud": True}}) == {"loud": True}


def test_rows_that_the_assistant_opens_are_about_what_is_asked():
  rows = [{"messages": chat("Hi", asked, "x", first="assistant")} for asked in ("q", "r")]
  found, *_ = examples.encode_demonstrations(reader(), [("row", row) for row in rows], max_tokens=99)
  assert found[0].subject != found[1].subject
  weighed = [{**message, "weight": 1} for message in rows[0]["messages"]]
  again, *_ = examples.encode_demonstrations(reader(), [("row", {"messages": weighed})], max_tokens=99)
  assert again[0].subject == found[0].subject


def test_rows_of_one_prompt_are_about_the_same_whatever_their_answers_begin_with():
  read = reader()
  first = ranking(read, prompt=chat("a"), chosen=chat("b", first="assistant"), rejected=chat("c", first="assistant"))
  other = ranking(read, prompt=chat("a"), chosen=chat("b", "c"), rejected=chat("d", first="assistant"))
  assert first.prompt != other.prompt and first.subject == other.subject


def test_one_example_a_reply_where_a_template_rewrites_earlier_turns():
  read = reader(THOUGHTS_OF_THE_LAST)
  found, problems = demonstrations(read, {"messages": chat("a", "<t>x</t>b", "c", "d")})
  assert [learned(read, example).lstrip(".") for example in found] == ["<t>x</t>b|", "<t></t>d|"] and not problems
  assert said(read, found[1].tokens) == "<user>a|\n<assistant>b|\n<user>c|\n<assistant><t></t>d|"
  only = chat("a", "<t>x</t>b", "c", "d")
  only[1]["weight"] = 0
  found, _ = demonstrations(read, {"messages": only})
  assert [learned(read, example).lstrip(".") for example in found] == ["<t></t>d|"]


def test_several_replies_of_a_completion_are_examples_of_their_own_where_they_are_rewritten():
  read = reader(THOUGHTS_OF_THE_LAST)
  row = {"prompt": chat("p", "q", "a"), "completion": chat("<t>x</t>b", "c", "d", first="assistant")}
  found, problems = demonstrations(read, row)
  assert [learned(read, example).lstrip(".") for example in found] == ["<t>x</t>b|", "<t></t>d|"] and not problems
  assert said(read, found[0].tokens).startswith("<user>p|\n<assistant>q|\n<user>a|\n")


@pytest.mark.parametrize(
  ("template", "last"), [(THOUGHTS_OF_THE_LAST, "<t></t>d|"), (OPENS_THOUGHTS, "d|")], ids=["qwen", "r1"]
)
def test_of_a_preferred_conversation_that_is_rewritten_the_last_reply_is_learned(template, last):
  """Behind what the policy would see when it gives it, which is rendered anew; the other answer stays as it is."""
  read = reader(template)
  row = dict(prompt=chat("a"), rejected=chat("n", first="assistant"))
  row["chosen"] = chat("<t>x</t>b", "c", "d", first="assistant")
  data = preferences.from_rows([("row 1", row)])
  (found,), problems = examples.encode_rankings(read, data, max_tokens=999)
  assert problems == {reading.LAST: 1}
  seen = reading.prompt_tokens(read, row["prompt"] + chat("<t>x</t>b", "c", first="assistant"))
  chosen, rejected = found.answers
  assert learned(read, chosen).lstrip(".") == last
  assert said(read, found.prompt + chosen.tokens) == said(read, seen) + last
  assert said(read, found.prompt + rejected.tokens).startswith(said(read, reading.prompt_tokens(read, row["prompt"])))
  assert learned(read, rejected).lstrip(".").endswith("n|")


def test_an_answer_that_begins_with_a_users_words_does_not_stand_behind_a_header_of_the_assistant():
  read = reader()
  row = dict(prompt=chat("a"), chosen=chat("b", first="assistant"), rejected=chat("c", "d"))
  for one, other in (("chosen", "rejected"), ("rejected", "chosen")):
    found = ranking(read, prompt=row["prompt"], chosen=row[one], rejected=row[other])
    texts = [said(read, found.prompt + answer.tokens) for answer in found.answers]
    assert set(texts) == {"<user>a|\n<assistant>b|", "<user>a|\n<user>c|\n<assistant>d|"}
    assert {learned(read, answer).lstrip(".") for answer in found.answers} == {"b|", "d|"}


@pytest.mark.parametrize("answer", ["<t>\nx</t>b", "<t>x</t>b", "\n<t>\nx</t>b", "x</t>b"])
def test_an_answer_stands_behind_the_prompt_that_a_policy_sees(answer):
  read = reader(OPENS_THOUGHTS)
  prompt = "<user>a<assistant><t>\n"
  assert said(read, reading.prompt_tokens(read, chat("a"))) == prompt
  found = reading.answered(read, chat("a"), chat(answer, first="assistant"))
  assert said(read, found.prompt) == prompt and said(read, found.answer.tokens) == "x</t>b|"
  ((example,), problems) = demonstrations(read, {"messages": chat("a", answer)})
  assert learned(read, example) == "." * len(prompt) + "x</t>b|" and not problems
  ranked = ranking(
    read, prompt=chat("a"), chosen=chat(answer, first="assistant"), rejected=chat("n", first="assistant")
  )
  assert [said(read, each.tokens) for each in ranked.answers] == ["x</t>b|", "n|"]


def special(read, *, before="", behind=""):
  """The same tokenizer with special tokens put around plain text, as `add_bos_token` and `add_eos_token` do."""
  tokenizer = read.tokenizer
  tokenizer.add_special_tokens({"bos_token": AddedToken("<bos>", special=True)})
  pattern = f"{before} $A {behind}".strip()
  ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (before, behind) if token]
  tokenizer._tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=ids)
  return read


@pytest.mark.parametrize("before", ["", "<bos>"])
@pytest.mark.parametrize("behind", ["", "<eos>"])
def test_a_prompt_has_one_beginning_and_no_end(before, behind):
  read = special(reader("<bos>" + TURNS), before=before, behind=behind)
  assert said(read, read.tokenizer("42")["input_ids"]) == f"{before}42{behind}"
  assert said(read, reading.prompt_tokens(read, "4 2 =")) == f"{before}4 2 ="
  found = reading.answered(read, "4 2 =", " 6")
  assert said(read, found.prompt + found.answer.tokens) == f"{before}4 2 = 6<eos>" and not found.problem
  rendered = read.tokenizer.apply_chat_template(chat("a"), add_generation_prompt=True, tokenize=False)
  assert said(read, reading.prompt_tokens(read, rendered)) == "<bos><user>a|\n<assistant>"
  assert reading.prompt_tokens(read, chat("a")) == reading.prompt_tokens(read, rendered)
  ((example,), _) = demonstrations(read, {"text": "ab"})
  assert said(read, example.tokens) == f"{before}ab<eos>"


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


def test_a_beginning_of_several_tokens_or_without_a_name_is_not_doubled():
  """Whatever the tokenizer puts before a text, and whatever part of it the text has already."""
  read = reader()
  letters = {letter: read.tokenizer.get_vocab()[letter] for letter in "xyab"}
  processor = TemplateProcessing(single="x y $A", special_tokens=[("x", letters["x"]), ("y", letters["y"])])
  read.tokenizer.backend_tokenizer.post_processor = processor
  for words in ("ab", "yab", "xyab"):
    assert said(read, reading.prompt_tokens(read, words)) == "xyab"


def test_text_is_tokenized_as_one_where_the_prompt_stays_what_it_was():
  read = Reader(Merging(), (1,))
  whole = reading.answered(read, "ca", "ca")
  assert (whole.prompt, whole.answer.tokens, whole.problem) == ([12, 10], [12, 10, 1], "")
  apart = reading.answered(read, "ca", "b")
  assert (apart.prompt, apart.answer.tokens, apart.problem) == ([12, 10], [11, 1], reading.SPLIT)


class Spaced:
  """As SentencePiece: a space is put before every text, so that a line's end alone is two tokens."""

  eos_token_id, pad_token_id, chat_template = 1, 0, None

  def __call__(self, text, add_special_tokens=True):
    return {"input_ids": [3, *(10 + ord(letter) for letter in text)]}


def test_a_stop_text_may_be_one_token_in_context_alone():
  read = Reader(Spaced(), (1,))
  assert text.stop_tokens(read, ["\n"]).tolist() == [1, 20]
  with pytest.raises(ValueError, match="stop text 'ab' is 3 tokens"):
    text.stop_tokens(read, ["ab"])


TOOLS = "{% if tools %}[{{ tools | map(attribute='name') | join(',') }}]{% endif %}{% if loud %}!{% endif %}" + TURNS


def test_templates_are_told_of_a_rows_tools_and_its_own_settings():
  read = reader(TOOLS)
  told = {"tools": [{"name": "add"}, {"name": "sub"}], "chat_template_kwargs": {"loud": True}}
  as_text = {"tools": '[{"name": "add"}, {"name": "sub"}]', "chat_template_kwargs": '{"loud": true}'}
  for columns in (told, as_text):
    options = reading.row_options(columns)
    assert said(read, reading.prompt_tokens(read, chat("a"), options)) == "[add,sub]!<user>a|\n<assistant>"
    ((example,), _) = demonstrations(read, {"messages": chat("a", "b"), **columns})
    assert said(read, example.tokens).startswith("[add,sub]!<user>a")
    ranked = ranking(
      read, prompt=chat("a"), chosen=chat("b", first="assistant"), rejected=chat("c", first="assistant"), **columns
    )
    assert said(read, ranked.prompt) == "[add,sub]!<user>a|\n<assistant>"
  assert reading.row_options({"tools": None, "chat_template_kwargs": None}) == {}
  for wrong in ({"tools": "add"}, {"tools": {"name": "add"}}, {"chat_template_kwargs": [1]}):
    with pytest.raises(ValueError, match="must be a (list|mapping), or JSON of one"):
      reading.row_options(wrong)


def test_a_call_of_a_tool_needs_no_words_and_columns_without_a_value_are_not_there():
  template = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['tool_calls'] is defined %}({{ m['tool_calls'][0] }}){% endif %}"
    "{{ m['content'] }}|{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
  )
  read = reader(template)
  messages = [
    {"role": "user", "content": "a", "tool_calls": None},
    {"role": "assistant", "content": None, "tool_calls": ["add"]},
    {"role": "tool", "content": "4", "tool_calls": None},
    {"role": "assistant", "content": "b", "tool_calls": None},
  ]
  ((example,), _) = demonstrations(read, {"messages": messages})
  assert said(read, example.tokens) == "<user>a|<assistant>(add)|<tool>4|<assistant>b|"
  assert learned(read, example) == "." * 19 + "(add)|" + "." * 19 + "b|"


@pytest.mark.parametrize("ask", ["strftime_now('%d %b %Y')", "strftime_now('%d ' + '%b %Y')"])
def test_a_template_is_told_a_fixed_date(ask):
  template = "{{ " + ask + " }}" + TURNS
  assert said(reader(template), reading.prompt_tokens(reader(template), chat("a"))).startswith("26 Jul 2024<user>")
  later = reader(template, datetime.date(2031, 1, 2))
  assert said(later, reading.prompt_tokens(later, chat("a"))).startswith("02 Jan 2031<user>")


STRICT = "{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}{{ raise_exception('no') }}{% endif %}"


def test_a_row_that_cannot_be_read_is_named_before_anything_is_trained():
  read = reader(STRICT + "{{ m['content'] }}{% endfor %}")
  rows = [{"prompt": chat(f"row {number}")} for number in range(9)]
  rows[6] = {"prompt": [{"role": "critic", "content": "x"}]}
  from rl_jax import tasks

  task = tasks.from_rows("rows", rows, [lambda completions, **_: [0.0]], evaluation_size=2)
  with pytest.raises(ValueError, match="row 7: the model's chat template refuses .*critic"):
    text.make_prompts(task, read)
  strange = Preferences(
    [
      preferences.Ranking(
        rows[6]["prompt"], (chat("a", first="assistant"), chat("b", first="assistant")), place="line 4"
      )
    ],
    Counter(),
  )
  with pytest.raises(ValueError, match="line 4: the model's chat template refuses"):
    examples.encode_rankings(read, strange, max_tokens=9)


# As the first of R1's distilled models: thoughts are dropped from answers, and nothing opens them.
DROPS_THOUGHTS = OPENS_THOUGHTS.replace("<assistant><t>\n", "<assistant>")


@pytest.mark.parametrize("template", [DROPS_THOUGHTS, OPENS_THOUGHTS])
def test_thoughts_that_a_template_would_drop_are_learned_and_continued(template):
  read = reader(template)
  opened = template == OPENS_THOUGHTS
  prompt, own = "<user>a<assistant>" + "<t>\n" * opened, "<t>" * (not opened) + "x</t>b|"
  found = reading.answered(read, chat("a"), chat("<t>x</t>b", first="assistant"))
  assert said(read, found.prompt) == prompt and said(read, found.answer.tokens) == own
  pair = [chat(f"<t>{thought}</t>b", first="assistant") for thought in "xy"]
  ranked = ranking(read, prompt=chat("a"), chosen=pair[0], rejected=pair[1])
  assert [said(read, each.tokens) for each in ranked.answers] == [own, own.replace("x", "y")]
  begun = reading.prompt_tokens(read, chat("a", "<t>x</t>So "))
  assert said(read, begun) == prompt + own.removesuffix("b|") + "So "


def test_keys_that_a_table_fills_up_are_not_rendered():
  template = "{% for m in messages %}{{ m | tojson }}|{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
  read = reader(template)
  call = {"name": "add", "arguments": {"x": 1, "y": None}, "id": None}
  messages = [*chat("a"), {"role": "assistant", "content": None, "tool_calls": [call]}]
  text = reading._render(read, messages, False, {"tools": [{"name": "add", "unit": None}]})
  assert "null" not in text and '"arguments": {"x": 1}' in text and '[{"name": "add"}]' in text


def test_words_that_open_a_conversation_are_read_and_not_learned():
  read = reader()
  ((example,), _) = demonstrations(read, {"messages": chat("Hello", "a", "b", first="assistant")})
  assert (
    said(read, example.tokens).startswith("<assistant>Hello|\n<user>a|") and learned(read, example).strip(".") == "b|"
  )
  with pytest.raises(ValueError, match="row 1: messages holds none of the assistant that answers"):
    demonstrations(read, {"messages": chat("Hello", "a", first="assistant")})


def test_stop_texts_are_those_in_context():
  class Prefixing(Spaced):
    """A space joins the letter behind it in one token, as in SentencePiece's vocabularies."""

    def __call__(self, text, add_special_tokens=True):
      return {"input_ids": [200 + ord(text[0]), *(10 + ord(letter) for letter in text[1:])]}

  assert text.stop_tokens(Reader(Prefixing(), (1,)), ["."]).tolist() == [1, 10 + ord(".")]


def test_words_apart_have_no_space_before_them():
  read = Reader(Spaced(), (1,))
  assert reading._inner(read, "b") == [10 + ord("b")]
