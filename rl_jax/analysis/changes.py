"""What training changed in a run's model: both models read the answers of its evaluations, token by token."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track

from rl_jax.analysis import tokens
from rl_jax.analysis.run import Rows, RunData
from rl_jax.analysis.tokens import Comparison, Opinion
from rl_jax.models import presets
from rl_jax.models.presets import Model
from rl_jax.ops.statistics import Reliability, reliability
from rl_jax.state import Sequences
from rl_jax.tasks import text

SHOWN = 300  # tokens of an answer, in what is shown token by token
CONTEXT = 40  # characters before a token
SHORT = 16  # tokens of answers whose probability is compared with how often they are right


class Read(NamedTuple):
  """Answers as both models read them.

  Attributes:
    rows: The answers.
    mask: `[P, 1, T]`.
    comparison: Of all their tokens.
  """

  rows: Rows
  mask: np.ndarray
  comparison: Comparison


def measure(run: RunData, *, count: int = 64, shown: Sequence[int] = (), most: int = 20) -> dict[str, Any]:
  """Returns what a run's training changed, as JSON values.

  Args:
    run: A run whose evaluations have answers, and whose folder has the trained model.
    count: How many of the held-out prompts are read, the first ones.
    shown: Problems whose answers are told token by token, by their number; four at random by default.
    most: How many of the tokens that differ most are told.

  Returns:
    `numbers`, as `tokens.numbers` has them, of the trained model's greedy answers; `calibration` with `before` and
    `after`; `differ`, the tokens at which the two models differ most; `answers`, some of them token by token;
    `snapshots`, the KL to the first model and the evaluation's rewards at each step whose model was kept.

  Raises:
    ValueError: If the run has no answers with their tokens, one of the models is not there, or a problem is not.
  """
  if count < 1:
    raise ValueError(f"count must be at least 1, got {count}")
  last = run.evaluations[-1]["step"] if run.evaluations else 0
  first_answers, last_answers = (_some(run.answers_at(step), count, shown) for step in (0, last))
  if not last or not first_answers or not last_answers or "token_ids" not in last_answers[0]:
    raise ValueError("there are no answers with their tokens from before and after training")
  if not (run.folder / "model").is_dir():
    raise ValueError(f"{str(run.folder / 'model')!r} is missing: the run has saved no model")
  before, after = presets.load(first_model(run)), presets.load(str(run.folder / "model"))
  temperature = float(run.config.get("temperature", 1.0))
  reader = _make_reader(before, temperature)
  now, then = reader(after, last_answers), reader(after, first_answers)
  places = [place for place, row in enumerate(now.rows) if row["problem"] in set(shown)]
  places = places or sorted(np.random.default_rng(0).permutation(len(now.rows))[:4].tolist())
  kept = {int(path.name): path for path in sorted((run.folder / "snapshots").glob("[0-9]*"))}
  on_the_way = [
    (step, reader(presets.load(str(path)), answers))
    for step, path in kept.items()
    if (answers := run.answers_at(step)[:count])
  ]
  return {
    "models": {"before": first_model(run), "after": str(run.folder / "model")},
    "temperature": temperature,
    "answers_read": len(now.rows),
    "numbers": tokens.numbers(now.comparison, now.mask),
    "calibration": {
      name: told
      for name, read, opinion in (("before", then, then.comparison.before), ("after", now, now.comparison.after))
      if (told := _calibration(read, opinion)) is not None
    },
    "differ": _differ(after, now, most),
    "answers": [_told(after, now, place) for place in places],
    "snapshots": [_on_the_way(run, step, read) for step, read in [*on_the_way, (last, now)]],
  }


def first_model(run: RunData) -> str:
  """Returns what loads the model that training began with: at its commit, or where the run was started.

  Raises:
    ValueError: If it is there no longer; nothing is looked for on the hub that did not come from it.
  """
  name, commit = run.config.get("model", ""), run.config.get("model_commit")
  if commit:
    return f"{name.partition('@')[0]}@{commit}"
  if name in presets.NAMES:
    return name
  for folder in ("", *(start.get("folder", "") for start in reversed(run.provenance))):
    if name and (Path(folder) / name).exists():
      return str(Path(folder) / name)
  raise ValueError(f"the model that training began with, {name!r}, is there no longer")


def _some(answers: Rows, count: int, shown: Sequence[int]) -> Rows:
  """The first answers, and those of problems that are asked for."""
  if missing := sorted(set(shown) - {row["problem"] for row in answers}):
    raise ValueError(f"there is no held-out problem {missing[0]}; there are {len(answers)}, from 0 on")
  return [row for place, row in enumerate(answers) if place < count or row["problem"] in set(shown)]


def _make_reader(before: Model, temperature: float, batch_size: int = 16) -> Callable[[Model, Rows], Read]:
  """Returns `(model, answers) -> Read`: what the first model and another one say of answers."""

  def read(after: Model, rows: Rows) -> Read:
    pad = text.pad_token(before.tokenizer)
    prompts, completions = (
      text.pad([row[name] or [pad] for row in rows], pad) for name in ("prompt_token_ids", "token_ids")
    )
    completions[1][[place for place, row in enumerate(rows) if not row["token_ids"]]] = False
    fields: Any = (*prompts, completions[0][:, None], completions[1][:, None])
    every = Sequences(*fields)
    parts = []
    for start in track(range(0, len(rows), batch_size), description="comparing models", transient=True):
      # Batches of one shape: the last one is filled up with its last row.
      chosen = np.minimum(np.arange(start, start + batch_size), len(rows) - 1)
      part = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], every)
      parts.append(jax.device_get(tokens.compare(before, after, part, temperature=temperature)))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *parts)
    return Read(rows, np.asarray(every.completion_mask), joined)

  return read


def _calibration(read: Read, opinion: Opinion) -> dict[str, Any] | None:
  """A model's probability of its own answer against how often that is right.

  None where nobody can tell, and for long answers: the probability of a text says little of that of its result.
  """
  lengths = read.mask.sum(axis=(1, 2))
  if "solved" not in read.rows[0] or not lengths.any() or np.median(lengths) > SHORT:
    return None
  said = lengths > 0
  right = np.array([row["solved"] for row in read.rows], float)[said]
  claimed = np.exp(np.sum(np.where(read.mask, opinion.logp, 0), axis=(1, 2), dtype=np.float64))[said]
  found: Reliability = reliability(claimed, right)
  bins = {name: getattr(found, name).tolist() for name in found._fields}
  return {"claimed": float(claimed.mean()), "right": float(right.mean()), "error": found.error, "bins": bins}


def _differ(model: Model, read: Read, most: int) -> list[dict[str, Any]]:
  """The tokens whose distributions have the largest KL, with what each model would have chosen."""
  divergence = np.where(read.mask, read.comparison.kl, -math.inf)
  order = np.argsort(-divergence, axis=None)[: min(most, int(read.mask.sum()))]
  found = []
  for place in order:
    row, _, at = np.unravel_index(place, divergence.shape)
    before, after = _places(read.comparison, int(row), int(at))
    context = model.tokenizer.decode(read.rows[row]["prompt_token_ids"] + read.rows[row]["token_ids"][:at])
    found.append(
      {
        "problem": read.rows[row]["problem"],
        "place": int(at),
        "context": context[-CONTEXT:],
        "kl": float(divergence[row, 0, at]),
        "before": _likeliest(model, before)[0],
        "after": _likeliest(model, after)[0],
      }
    )
  return found


def _told(model: Model, read: Read, place: int) -> dict[str, Any]:
  """One answer, token by token."""
  row = read.rows[place]
  told = {name: row.get(name) for name in ("problem", "prompt", "completion", "reward", "solved")}
  said = []
  for at, token in enumerate(row["token_ids"][:SHOWN]):
    before, after = _places(read.comparison, place, at)
    said.append(
      {
        "text": tokens.text_of(model.tokenizer, token),
        "special": token in model.tokenizer.all_special_ids,
        "logp": [float(before.logp), float(after.logp)],
        "entropy": [float(before.entropy), float(after.entropy)],
        "kl": float(read.comparison.kl[place, 0, at]),
        "top": [_likeliest(model, before), _likeliest(model, after)],
      }
    )
  return told | {"tokens": said, "left_out": max(len(row["token_ids"]) - SHOWN, 0)}


def _places(comparison: Comparison, row: int, at: int) -> tuple[Opinion, Opinion]:
  before, after = (Opinion(*(leaf[row, 0, at] for leaf in side)) for side in (comparison.before, comparison.after))
  return before, after


def _likeliest(model: Model, opinion: Opinion) -> list[list[Any]]:
  pairs: Iterable[tuple[Any, Any]] = zip(opinion.tokens, opinion.probs, strict=True)
  return [[tokens.text_of(model.tokenizer, int(token)), float(prob)] for token, prob in pairs]


def _on_the_way(run: RunData, step: int, read: Read) -> dict[str, Any]:
  """The KL of a completion to the first model, in nats, beside what the evaluation measured."""
  result: Mapping[str, float] = dict(run.evaluated)[step].numbers()
  names = [name for name in result if not name.startswith(("pass@", "maj@"))]
  kl = np.sum(np.where(read.mask, read.comparison.kl, 0)) / len(read.rows)
  return {"step": step, "kl": float(kl)} | {name: result[name] for name in names}
