"""A run as one HTML file that needs nothing else: what the template `page.html` shows, out of what a run left."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from rl_jax.analysis import charts, curves
from rl_jax.analysis.curves import Curve, Panel
from rl_jax.analysis.run import Rows, RunData, column, prompt_text
from rl_jax.ops.statistics import wilson_interval
from rl_jax.runs.checks import CHECKS
from rl_jax.runs.results import EvaluationResult, Result

HERE = Path(__file__).parent
STRONGEST = 4.0  # nats by which a token's log-prob changes, from which on its color is full
PROBLEMS = 6  # of the table over training
ASIDE = 3  # problems whose sampled answers are shown side by side


def render(run: RunData, changes: Mapping[str, Any] | None = None, missing: Sequence[str] = ()) -> str:
  """Returns the page.

  Args:
    run: What is shown.
    changes: What `changes.measure` returns; None leaves the part on tokens out.
    missing: What else there is not, a line each.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  found: dict[str, Any] = {
    "evaluations": _evaluations(run),
    "charts": [charts.curves(panel) for panel in curves.panels(run)],
    "against": _against(run, changes),
    "over_time": _over_time(run),
    "lengths": _lengths(run),
    "parts": _parts(run),
    "changes": None if changes is None else _changes(changes),
    "side_by_side": _side_by_side(run),
  }
  titles = {
    "evaluations": "Evaluations",
    "charts": "Curves",
    "against": "KL against reward",
    "over_time": "Over training",
    "lengths": "Lengths",
    "changes": "Token by token",
    "side_by_side": "Sampled answers",
  }
  anchors = {"charts": "curves", "over_time": "samples", "changes": "tokens", "side_by_side": "exploration"}
  sections = [(anchors.get(name, name), title) for name, title in titles.items() if found[name]]
  drawn, prompts, each = _drawn(run)
  return environment.get_template("page.html").render(
    **found,
    name=run.folder.resolve().name,
    verdict=_verdict(run),
    sections=[("run", "What was run"), ("doctor", "What looks wrong"), *sections],
    missing=[*run.missing, *missing],
    facts=_facts(run),
    settings=[(name, json.dumps(value)) for name, value in run.config.items()],
    findings=run.findings,
    checks=len(CHECKS),
    steps=len(run.metrics),
    drawn=drawn,
    prompts_drawn=prompts,
    answers_each=each,
    constants=", ".join(f"{name} {charts.label(value)}" for name, value in curves.constants(run).items()),
    style=_own("page.css"),
    script=_own("page.js"),
  )


def _own(name: str) -> Markup:
  return Markup((HERE / name).read_text(encoding="utf-8"))


def _verdict(run: RunData) -> list[str]:
  evaluated = run.evaluated
  if not evaluated:
    return []
  lines = [f"Before: {evaluated[0][1].describe()}."]
  return lines + ([f"After {evaluated[-1][0]} steps: {evaluated[-1][1].describe()}."] if len(evaluated) > 1 else [])


def _facts(run: RunData) -> list[tuple[str, str]]:
  start = run.provenance[-1] if run.provenance else {}
  packages = ", ".join(f"{name} {version}" for name, version in start.get("packages", {}).items() if version)
  facts = [(name, run.config.get(name)) for name in ("model", "task", "data", "environment", "objective", "seed")]
  facts += [
    (name, start.get(name)) for name in ("command", "folder", "commit", "started", "devices", "python", "system")
  ]
  facts += [("packages", packages), ("starts", len(run.provenance) if len(run.provenance) > 1 else None)]
  if run.metrics:
    minutes = sum(row.get("seconds") or 0 for row in run.metrics) / 60
    facts += [("steps", len(run.metrics)), ("time", f"{minutes:.1f} minutes in steps")]
    peaks = column(run.metrics, "peak_gib")[1]
    facts += [("peak memory", f"{max(peaks):.1f} GiB" if peaks else None)]
  return [(name, str(value)) for name, value in facts if value not in (None, "", {})]


def _evaluations(run: RunData) -> dict[str, Any] | None:
  evaluated = run.evaluated
  if not evaluated:
    return None
  every = list(dict.fromkeys(name for _, result in evaluated for name in result.numbers()))
  of_k = {name: int(found[2]) for name in every if (found := re.fullmatch(r"(pass|maj)@(\d+)", name))}
  most = max(of_k.values(), default=0)
  names = [name for name in every if name not in of_k or name in ("pass@1", f"pass@{most}", f"maj@{most}")]
  rows = [[step, *(_number(result, name) for name in names)] for step, result in evaluated]
  return {"headings": names, "rows": rows}


def _number(result: Result, name: str) -> str:
  value = result.numbers().get(name)
  if value is None:
    return "-"
  if isinstance(result, EvaluationResult) and name == "solved" and result.solved is not None:
    low, high = wilson_interval(result.solved, result.count)
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
  return f"{value:.4g}"


def _drawn(run: RunData) -> tuple[list[Markup], int, int]:
  """pass@k and maj@k of the first and the last evaluation that have them; how many prompts, and answers to each."""
  having = [
    (step, result.drawn) for step, result in run.evaluated if isinstance(result, EvaluationResult) and result.drawn
  ]
  if not having:
    return [], 0, 0
  both = {"before": having[0][1], f"step {having[-1][0]}": having[-1][1]}
  ks = [name.partition("@")[2] for name in having[0][1] if name.startswith("pass@")]
  drawn = []
  for kind in ("pass", "maj"):
    lines = [Curve(name, range(len(ks)), [numbers[f"{kind}@{k}"] for k in ks]) for name, numbers in both.items()]
    drawn.append(charts.curves(Panel(f"{kind}@k", tuple(lines)), x_name="k", names=ks))
  prompts = len({row["problem"] for row in run.answers_at(having[0][0], greedy=False)})
  return drawn, prompts, int(ks[-1])


def _against(run: RunData, changes: Mapping[str, Any] | None) -> list[Markup]:
  """Reward over the KL to where training began: of the steps, and of the models that were kept."""
  drawn = []
  name = next((name for name in ("kl_ref", "kl_reward") if len(column(run.metrics, name)[1]) > 2), None)
  if name is not None:
    rewards = sorted({key for row in run.metrics for key in row if key in ("reward", "solved") or key[:7] == "reward/"})
    means = {reward: _means(run, name, reward) for reward in rewards}
    for reward, points in means.items():
      title = f"{reward} over {name}, moving means, a point a step"
      drawn += [charts.scatter(title, "nats a token", {"": points}, diagonal=False)] if points else []
    parts = {reward: points for reward, points in means.items() if reward != "reward"}
    if len(parts) > 1:  # what is learned from beside what is wanted: over-optimization shows where they part
      drawn += _together(name, parts)
  if changes is not None and run.evaluated:
    kept = [{"kl": 0.0, **run.evaluated[0][1].numbers()}, *changes["snapshots"]]
    names = [name for name in kept[-1] if name not in ("step", "kl") and all(name in each for each in kept)]
    drawn += [
      charts.scatter(
        f"{name} over KL(trained || first model)",
        "nats a completion, held-out",
        {"": [(each["kl"], each[name]) for each in kept]},
        diagonal=False,
      )
      for name in names
    ]
  return drawn


def _means(run: RunData, kl: str, reward: str) -> list[tuple[float, float]]:
  """A KL and a reward, moving means of both, of the steps that have both."""
  rows = [row for row in run.metrics if row.get(kl) is not None and row.get(reward) is not None]
  xs, ys = (curves.smoothed([row[key] for row in rows]) for key in (kl, reward))
  return list(zip(xs, ys, strict=True))


def _together(kl: str, means: Mapping[str, Sequence[tuple[float, float]]]) -> list[Markup]:
  """All rewards over the KL in one chart, each from its least to its largest; none where none changes."""
  groups = {}
  for reward, points in means.items():
    low, high = (f((y for _, y in points), default=0.0) for f in (min, max))
    if high > low:
      groups[reward] = [(x, (y - low) / (high - low)) for x, y in points]
  title = f"each from 0 to 1, over {kl}"
  return [charts.scatter(title, "nats a token", groups, diagonal=False)] if groups else []


def _over_time(run: RunData) -> dict[str, Any] | None:
  steps = sorted({row["step"] for row in run.answers if row.get("draw", 0) == 0})
  if not steps:
    return None
  steps = sorted({steps[round(place)] for place in np.linspace(0, len(steps) - 1, 5)})
  answers = [run.answers_at(step) for step in steps]
  count = min(len(rows) for rows in answers)
  chosen = sorted({round(place) for place in np.linspace(0, count - 1, PROBLEMS)})
  problems = [
    {
      "prompt": prompt_text(answers[0][place]),
      "answers": [{"completion": rows[place]["completion"], "said": _said(rows[place])} for rows in answers],
    }
    for place in chosen
  ]
  return {"steps": steps, "problems": problems}


def _said(row: Mapping[str, Any]) -> str:
  reward = "no reward" if row.get("reward") is None else f"reward {row['reward']:.3g}"
  solved = row.get("solved")
  return reward if solved is None else f"{reward}, {'solved' if solved else 'not solved'}"


def _lengths(run: RunData) -> list[Markup]:
  """The distribution of lengths in the first and the last fifth of the steps."""
  lengths = [(row["step"], row.get("tokens", row.get("length"))) for row in run.samples]
  lengths = [(step, int(length)) for step, length in lengths if length is not None]
  if not lengths:
    return []
  first, last = min(step for step, _ in lengths), max(step for step, _ in lengths)
  fifth = max((last - first + 1) // 5, 1)
  groups = {
    f"steps {first} to {first + fifth - 1}": [length for step, length in lengths if step < first + fifth],
    f"steps {last - fifth + 1} to {last}": [length for step, length in lengths if step > last - fifth],
  }
  longest = max(length for _, length in lengths)
  wide = max(math.ceil((longest + 1) / 20), 1)
  edges = list(range(0, longest + 1, wide))
  counts = {
    name: [sum(edge <= length < edge + wide for length in each) / len(each) for edge in edges]
    for name, each in groups.items()
  }
  return [charts.bars("share of completions or episodes by length", [str(edge) for edge in edges], counts)]


def _parts(run: RunData) -> list[tuple[str, str, str]]:
  evaluated = [result for _, result in run.evaluated if isinstance(result, EvaluationResult)]
  if not evaluated:
    return []
  first, last = evaluated[0].scores, evaluated[-1].scores
  cell = lambda value: "-" if value is None else f"{value:.4g}"  # noqa: E731
  return [(name, cell(first.get(name)), cell(last.get(name))) for name in last]


def _changes(changes: Mapping[str, Any]) -> dict[str, Any]:
  numbers = changes["numbers"]
  ranks = numbers["rank"]
  places = [str(place + 1) for place in range(len(ranks) - 1)] + [f"over {len(ranks) - 1}"]
  drawn = [
    charts.bars("the trained model's first choice was the first model's ...", places, {"share of tokens": ranks})
  ]
  for name in ("entropy", "confidence"):
    bins = numbers[name]["bins"]
    total = numbers["tokens"]
    groups = {side: [count / total for count in bins[side]] for side in ("before", "after")}
    drawn.append(
      charts.bars(f"share of tokens by {name}", [charts.label(round(x, 2)) for x in bins["edges"][:-1]], groups)
    )
  if calibration := changes["calibration"]:
    groups = {
      name: list(zip(told["bins"]["claimed"], told["bins"]["right"], strict=True)) for name, told in calibration.items()
    }
    drawn.append(
      charts.scatter("how often answers are right over what is claimed", "probability", groups, diagonal=True)
    )
  return {
    "summary": " ".join(_sentences(changes)),
    "tokens": numbers["tokens"],
    "charts": drawn,
    "answers": [_answer(answer) for answer in changes["answers"]],
    "differ": [
      row
      | {"kl": f"{row['kl']:.2f}"}
      | {side: [_visible(row[side][0]), f"{row[side][1]:.3f}"] for side in ("before", "after")}
      for row in changes["differ"]
    ],
  }


def _sentences(changes: Mapping[str, Any]) -> Iterable[str]:
  numbers = changes["numbers"]
  ranks, entropy, confidence = numbers["rank"], numbers["entropy"], numbers["confidence"]
  yield (
    f"On its own greedy answers to {changes['answers_read']} held-out prompts ({numbers['tokens']} tokens), the trained"
    f" model's first choice was already the first one of the model it began with at {ranks[0]:.1%} of the tokens, its"
    f" second one at {ranks[1]:.1%}, and none of its first {len(ranks) - 1} at {ranks[-1]:.1%}."
  )
  yield (
    f"The mean entropy of a choice went from {entropy['before']:.3f} to {entropy['after']:.3f} nats, the probability of"
    f" the first choice from {confidence['before']:.3f} to {confidence['after']:.3f}; KL(after || before) is"
    f" {numbers['kl']:.3f} nats a token."
  )
  if {"before", "after"} <= changes["calibration"].keys():
    before, after = (changes["calibration"][side] for side in ("before", "after"))
    yield (
      f"Before, answers were claimed with a probability of {before['claimed']:.3f} in the mean, and"
      f" {before['right']:.3f} of them were right (calibration error {before['error']:.3f}); after, with"
      f" {after['claimed']:.3f}, and {after['right']:.3f} were right ({after['error']:.3f})."
    )


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
  shown = []
  for token in answer["tokens"]:
    change = token["logp"][1] - token["logp"][0]
    shown.append(
      {
        "shown": _visible(token["text"]),
        "after": "\n" if "\n" in token["text"] else "",
        "special": token["special"],
        "side": "more" if change > 0 else "less",
        "strength": f"{0.7 * math.sqrt(min(abs(change) / STRONGEST, 1)):.2f}",
        "data": json.dumps({name: token[name] for name in ("logp", "entropy", "kl", "top")}),
      }
    )
  return {**answer, "prompt": prompt_text(answer), "tokens": shown, "said": _said(answer)}


def _visible(text: str) -> str:
  """White space that would not be seen is given a sign."""
  return (text.replace(" ", "␣") if text.isspace() else text).replace("\n", "⏎").replace("\t", "⇥") or "∅"


def _side_by_side(run: RunData) -> dict[str, Any] | None:
  """Sampled answers of the first and the last evaluation to the same prompts."""
  steps = sorted({row["step"] for row in run.answers if row.get("draw", 0) > 0})
  if len(steps) < 2:
    return None
  both = [_by_problem(run.answers_at(step, greedy=False)) for step in (steps[0], steps[-1])]
  prompts = {row["problem"]: prompt_text(row) for row in run.answers_at(steps[0])}
  shared = sorted(both[0].keys() & both[1].keys())
  if not shared:
    return None
  distinct = [float(np.mean([len({row["completion"] for row in side[p]}) for p in shared])) for side in both]
  each = len(both[0][shared[0]])
  problems = []
  for problem in sorted({shared[round(place)] for place in np.linspace(0, len(shared) - 1, ASIDE)}):
    sides = [_side(title, side[problem]) for title, side in zip(("before", f"step {steps[-1]}"), both, strict=True)]
    problems.append({"prompt": prompts.get(problem, f"problem {problem}"), "sides": sides})
  summary = (
    f"Of {each} answers sampled to each of {len(shared)} held-out prompts, {distinct[0]:.1f} were different ones before"
    f" training, and {distinct[1]:.1f} after it."
  )
  return {"summary": summary, "problems": problems}


def _by_problem(rows: Rows) -> dict[int, Rows]:
  found: dict[int, Rows] = {}
  for row in rows:
    found.setdefault(row["problem"], []).append(row)
  return found


def _side(title: str, rows: Rows) -> dict[str, Any]:
  distinct = len({row["completion"] for row in rows})
  right = [row.get("solved") for row in rows]
  said = f"{distinct} of {len(rows)} different" + (f", {sum(map(bool, right))} right" if right[0] is not None else "")
  return {
    "title": title,
    "said": said,
    "answers": [{"text": _visible(row["completion"]), "right": bool(row.get("solved"))} for row in rows],
  }
