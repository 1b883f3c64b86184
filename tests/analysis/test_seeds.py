"""Runs that differ in their seed are one row; the numbers by hand."""

import json

import pytest

from rl_jax.analysis import seeds


def make_run(folder, seed, returned, **settings):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps({"seed": seed, "run_dir": str(folder), "steps": 9, **settings}))
  rows = [{"step": step, "values": {"return": value, "length": 5.0}} for step, value in ((0, 0.0), (9, returned))]
  (folder / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


def test_seeds_are_a_row_and_what_differs_is_its_name(tmp_path):
  folders = [make_run(tmp_path / f"ppo-{seed}", seed, 4.0, objective="ppo", std=0.5) for seed in range(4)]
  folders += [make_run(tmp_path / f"grpo-{seed}", seed, 2.0, objective="grpo", std=0.5) for seed in range(3)]
  assert seeds.table(folders).splitlines() == [
    "| runs | seeds | length | return |",
    "|---|---|---|---|",
    "| objective=ppo | 4 | 5.00 (5.00 to 5.00) | 4.00 (4.00 to 4.00) |",
    "| objective=grpo | 3 | 5.00 (5.00 to 5.00) | 2.00 (2.00 to 2.00) |",
  ]
  assert seeds.table(folders[:4], metrics=["return"]).splitlines()[2] == "| all | 4 | 4.00 (4.00 to 4.00) |"


def test_a_run_that_was_not_finished_is_refused_and_one_seed_has_no_interval(tmp_path):
  folder = make_run(tmp_path / "run", 0, 1.0)
  assert seeds.table([folder], metrics=["return"]).splitlines()[2] == "| all | 1 | 1.00 |"
  with pytest.raises(ValueError, match="has the seed 0, as another run with the same settings"):
    seeds.table([folder, folder])
  lines = (folder / "evaluation.jsonl").read_text().splitlines()
  (folder / "evaluation.jsonl").write_text(lines[0] + "\n")
  with pytest.raises(ValueError, match="was not finished: its last evaluation is that of step 0"):
    seeds.table([folder])


def test_a_run_of_answers_to_prompts_is_refused(tmp_path):
  folder = make_run(tmp_path / "run", 0, 1.0)
  (folder / "evaluation.jsonl").write_text('{"step": 0, "reward": 1.0, "solved": 1, "count": 2, "skipped": 0}\n')
  with pytest.raises(ValueError, match="holds no evaluation with numbers of its own"):
    seeds.table([folder])
