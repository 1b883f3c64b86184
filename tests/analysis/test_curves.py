"""Which curves a run has, and what stands beside them; pictures and pages of runs with odd ends."""

import json
import math

import pytest

from rl_jax.analysis import curves, page, plots, report, run


def write(folder, metrics=(), evaluations=(), answers=(), samples=(), config=None):
  def lines(name, rows):
    if rows:
      (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

  (folder / "config.json").write_text(json.dumps(config or {}))
  lines("metrics.jsonl", metrics)
  lines("evaluation.jsonl", evaluations)
  lines("evaluation_samples.jsonl", answers)
  lines("samples.jsonl", samples)
  return run.read(folder)


def steps(**columns):
  return [{"step": i + 1, "seconds": 1.0} | {k: v[i] for k, v in columns.items()} for i in range(4)]


def result(step, solved, count=10, reward=0.5):
  return {"step": step, "reward": reward, "solved": solved, "count": count, "skipped": 0, "scores": {}, "samples": []}


def test_panels_have_points_with_intervals_and_constants_have_none(tmp_path):
  answers = [{"step": 4, "problem": i, "draw": 0, "completion": "a", "reward": float(i % 2)} for i in range(4)]
  data = write(
    tmp_path,
    steps(reward=[0.1, 0.2, 0.3, 0.4], solved=[0.1, None, 0.3, 0.2], ess=[1.0, 1.0 + 1e-7, 1.0, 1.0]),
    [result(0, 1), result(4, 10)],
    answers,
  )
  found = {panel.title: panel for panel in curves.panels(data)}
  assert "effective sample size" not in found and curves.constants(data)["ess"] == 1.0
  assert found["solved"].curves[0].steps == [1, 3, 4]
  first, last = found["solved"].points
  assert (first.step, first.value, last.value) == (0, 0.1, 1.0) and first.low < 0.1 < first.high
  assert last.low < 1.0 <= last.high  # rounding does not cut the value off
  mean, error = 0.5, 1.96 * math.sqrt(1 / 3) / 2
  assert found["reward"].points[1][1:] == pytest.approx((0.5, mean - error, mean + error))
  assert math.isnan(found["reward"].points[0].low)
  assert plots.draw_run(data).stat().st_size > 1000  # where everything is solved, too


def test_what_evaluations_measure_beside_answers_has_panels(tmp_path):
  values = [{"step": step, "values": {"perplexity": 9.0 - step, "tokens": 40}, "samples": []} for step in (0, 4)]
  data = write(tmp_path, steps(nll=[2.0, 1.9, 1.8, 1.7]), values)
  titles = {panel.title: panel for panel in curves.panels(data)}
  assert [point.value for point in titles["evaluation: perplexity"].points] == [9.0, 5.0]
  assert "evaluation: tokens" not in titles
  assert "perplexity" in page.render(data) and plots.draw_run(data).exists()


def test_terms_of_a_reward_have_their_evaluations(tmp_path):
  values = [{"step": step, "values": {"speed": float(step), "return": 1.0 + step}, "samples": []} for step in (0, 4)]
  rows = steps(**{"reward": [1, 2, 3, 4], "reward/speed": [0.1, 0.2, 0.3, 0.4], "reward/effort": [1, 2, 3, 4]})
  titles = {panel.title: panel for panel in curves.panels(write(tmp_path, rows, values))}
  assert [point.value for point in titles["reward: speed"].points] == [0.0, 4.0]
  assert [point.value for point in titles["reward"].points] == [1.0, 5.0]
  assert not titles["reward: effort"].points and "evaluation: speed" not in titles


def test_odd_ends_are_shown(tmp_path, capsys):
  """A cut line, chat prompts without words, rewards that do not apply, samples of late steps, problems that differ."""
  chat = [{"role": "user", "content": None}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
  answers = [
    {"step": step, "problem": problem, "draw": draw, "completion": "", "reward": None, "solved": None, "prompt": chat}
    for step, problem in ((0, 0), (4, 1))
    for draw in (0, 1)
  ]
  samples = [{"step": 4, "prompt": chat, "completion": "b", "reward": None, "tokens": 3.0}]
  data = write(tmp_path, steps(reward=[0.1, None, 0.3, 0.4]), [result(0, 0), result(4, 10)], answers, samples)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 5, "rew')
  data = run.read(tmp_path)
  assert len(data.metrics) == 4 and "metrics.jsonl: 1 damaged line was left out" in data.missing
  html = page.render(data)
  assert "user: " in html and "{&#34;name&#34;: &#34;f&#34;}" in html
  report.show(tmp_path)
  assert "curves: " in capsys.readouterr().out
