"""What a comparison of variants says, shows and leaves on disk."""

import json

import matplotlib.axes
import numpy as np
import pytest

from rl_jax.analysis import comparison
from rl_jax.ops.statistics import bootstrap_interval, interquartile_mean


def results():
  rng = np.random.default_rng(0)

  def runs(shift):
    return {
      "evaluation/reward": rng.normal(shift, 0.1, size=(8, 5)),
      "train/reward": rng.normal(shift, 0.1, size=(8, 40)),
      "train/clip_low": rng.random((8, 40)),
      "evaluation/kl_ref": rng.random((8, 5)),
    }

  return {"a": runs(0.0), "b": runs(1.0)}


def test_tables_hold_the_numbers_of_the_runs():
  found = results()
  text = comparison.table(found)
  last = found["b"]["evaluation/reward"][:, -1]
  low, high = bootstrap_interval(last)
  assert f"| b | {interquartile_mean(last):.3f} ({low:.3f} to {high:.3f}) |" in text
  assert text.splitlines()[0] == "| variant | reward | KL to the start [nats] | clipped low |"
  assert "| b | 1.00 (1.00 to 1.00) | |" in comparison.improvements(found)


def test_a_metric_that_an_objective_lacks_leaves_its_cell_empty():
  """REINFORCE clips nothing: its row has no number there, and a metric that no variant has gets no column."""
  found = {
    "grpo": {"train/clip_low": np.full((2, 10), 0.25), "train/reward": np.ones((2, 10))},
    "reinforce": {"train/reward": np.ones((2, 10))},
    "nested": {"train/rl/policy/clip_low": np.full((2, 10), 0.25)},  # names are looked up as they are
  }
  assert comparison.table(found).splitlines() == [
    "| variant | clipped low |",
    "|---|---|",
    "| grpo | 0.250 (0.250 to 0.250) |",
    "| reinforce |  |",
    "| nested |  |",
  ]


def test_a_metric_that_no_objective_has_gets_no_panel(tmp_path, monkeypatch):
  titles, plain = [], matplotlib.axes.Axes.set_title
  monkeypatch.setattr(
    matplotlib.axes.Axes, "set_title", lambda self, text, **kwargs: titles.append(text) or plain(self, text, **kwargs)
  )
  found = {name: {k: v for k, v in runs.items() if k != "evaluation/kl_ref"} for name, runs in results().items()}
  del found["a"]["train/clip_low"]
  comparison.draw(found, tmp_path / "curves.png", steps=40)
  assert titles == ["reward", "clipped low"]


def test_a_comparison_says_what_it_compares(tmp_path, capsys):
  config = {"task": "copying", "task_options": ["length=3", "letters=2"]}
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "results").mkdir()
  for name, metrics in results().items():
    np.savez(tmp_path / "results" / f"{name}.npz", **metrics)
  comparison.show(tmp_path)
  sizes = "copying length=3 letters=2, 8 seeds, 40 rollouts"
  assert comparison.describe(config, 8, 40).startswith(f"{sizes}: interquartile means over seeds")
  assert (tmp_path / "comparison.md").read_text().startswith(comparison.describe(config, 8, 40))
  assert capsys.readouterr().out.startswith(sizes)
  assert comparison.describe({}, 2, 5).startswith("2 seeds, 5 rollouts: ")


def test_curves_are_drawn_over_time(tmp_path):
  comparison.draw(results(), tmp_path / "curves.png", steps=40)
  assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_nothing_to_show_is_said(tmp_path):
  with pytest.raises(ValueError, match="holds no results"):
    comparison.show(tmp_path)
