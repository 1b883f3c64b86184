"""The experiments as a user runs them: in a process of their own."""

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import compare_objectives, grpo, ppo
from rl_jax.runs.directory import read_lines

ROOT = Path(__file__).parents[1]
SMALL = ["--model", "tiny", "--num-prompts", "4", "--group-size", "2", "--task-options", "evaluation_size=8"]
ENVIRONMENT = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "PYTHONPATH": str(ROOT)}
ENVIRONMENT["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device, as users have


def start(folder, *arguments):
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.grpo", *arguments],
    cwd=folder,
    env=ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def run(folder, *arguments):
  process = start(folder, *arguments)
  return process, process.communicate()[0]


@pytest.mark.parametrize(("module", "groups"), [(grpo, 5), (ppo, 9)])
def test_help_explains_every_field_in_groups(tmp_path, module, groups):
  command = [sys.executable, "-m", module.__name__, "--help"]
  output = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
  words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", output).split())
  files = ("configs", "ppo_configs", module.__name__.rpartition(".")[2])
  source = "\n".join((ROOT / "experiments" / f"{file}.py").read_text() for file in files)
  for field in dataclasses.fields(module.Config):
    assert "--" + field.name.replace("_", "-") in words
    comments = re.findall(rf"^  {field.name}: .*  # (.*)$", source, re.MULTILINE)
    assert any(" ".join(comment.split()[:3]) in words for comment in comments), field.name
  assert output.count(" options ─") == groups + 1  # one of them holds --help alone
  assert "(default: 1.0)" in words and "(default: )" not in words


@pytest.mark.parametrize(
  "settings,message",
  [
    (dict(task="sums"), "unknown task 'sums'"),
    (dict(model="nothing"), "unknown model 'nothing'"),
    (dict(group_size=1), "group_size must be at least 2"),
    (dict(temperature=0.0), "temperature must be positive"),
    (dict(num_prompts=3), "num_prompts must be a multiple of minibatches"),
    (dict(objective="foo"), "unknown objective 'foo'"),
    (dict(objective="nowhere:objective"), "objective 'nowhere:objective' cannot be imported"),
    (dict(objective="ppo"), "'ppo' needs a critic: python -m experiments.ppo"),
    (dict(objective="dpo"), "'dpo' does not learn from rewards"),
    (dict(objective="rloo", clip_low=0.1), "'rloo' makes no use of clip_low; it has no settings"),
    (dict(objective_options=("foo=1",)), "'grpo' makes no use of foo"),
    (dict(clip_low=0.1, objective_options=("clip_low=0.3",)), "clip_low is given twice"),
    (dict(recompute_old_logp=True, minibatches=1), "one update a rollout makes no use of recompute_old_logp"),
    (dict(clip_high=-1.0), "clip_high must be positive and finite, got -1.0"),
    (dict(clip_low=float("nan")), "clip_low must be positive and finite, got nan"),
    (dict(model="x", base="tiny", lora_rank=2), "lora_rank with base"),
    (dict(microbatches=0), "microbatches must be at least 1 and finite, got 0"),
    (dict(learning_rate=float("nan")), "learning_rate must be at least 0 and finite, got nan"),
    (dict(checkpoint_every=-1), "checkpoint_every must be at least 0"),
    (dict(rewards=("nowhere:reward",)), "cannot be imported"),
    (dict(stop=("ab",)), "stop text 'ab' is 2 tokens"),
    (dict(max_prompt_tokens=2), "no held-out prompt"),
    (dict(max_new_tokens=2000), "more than the model's max_position_embeddings=2048"),
  ],
)
def test_mistakes_are_named_and_leave_no_run_behind(tmp_path, settings, message):
  config = grpo.Config(**{"model": "tiny", "steps": 1, "run_dir": str(tmp_path / "run"), **settings})
  with pytest.raises(ValueError, match=message):
    grpo.main(config)
  assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ('{"prompt": "\\ud83d"}', "line 9: text with half of a character"),
    ('{"prompt": [{"role": "user", "content": "a", "tools": 1}], "tools": 7}', "line 9: column 'tools' must be a list"),
    ('{"prompt": ""}', "line 9: the prompt must be text"),
  ],
)
def test_a_bad_row_is_named_before_there_is_a_run(tmp_path, row, message):
  rows, folder = tmp_path / "rows.jsonl", tmp_path / "run"
  good = [f'{{"prompt": "{a} + 1 =", "answer": "{a + 1}"}}' for a in range(12)]
  rows.write_text("\n".join([*good[:8], row, *good[8:]]))
  settings = dict(model="tiny", task=str(rows), task_options=("evaluation_size=2",), num_prompts=8, steps=1)
  with pytest.raises(ValueError, match=message):
    grpo.main(grpo.Config(**settings, rewards=("rl_jax.tasks.arithmetic:graded",), run_dir=str(folder)))
  assert not folder.exists()


@pytest.mark.slow
def test_a_run_is_not_resumed_on_changed_data(tmp_path):
  rows, module = tmp_path / "rows.jsonl", "rl_jax.tasks.arithmetic:graded"
  rows.write_text("".join(f'{{"prompt": "{a} + 1 =", "answer": "{a + 1}"}}\n' for a in range(4)))
  settings = dict(model="tiny", task=str(rows), task_options=("evaluation_size=2",), rewards=(module,))
  settings |= dict(run_dir=str(tmp_path / "run"), num_prompts=4, minibatches=1, group_size=2, steps=1, resume=True)
  grpo.main(grpo.Config(**settings))
  rows.write_text("".join(f'{{"prompt": "{a} + 1 =", "answer": "{a + 2}"}}\n' for a in range(4)))
  with pytest.raises(ValueError, match="other settings: data_fingerprint was '"):
    grpo.main(grpo.Config(**settings))


def test_a_mistake_ends_in_one_line(tmp_path):
  process, output = run(tmp_path, "--task", "sums")
  assert process.returncode == 1
  assert output.startswith("error: unknown task 'sums'") and len(output.strip().splitlines()) == 1


def test_a_run_leaves_everything_and_no_other_takes_its_place(tmp_path):
  more = ["--kl-coef", "0.01", "--minibatches", "2"]
  process, output = run(tmp_path, *SMALL, "--steps", "2", "--run-dir", "first", *more)
  assert process.returncode == 0, output
  assert "before:" in output and "after 2 steps:" in output and "step 2" in output
  names = {path.name for path in (tmp_path / "first").iterdir()}
  assert {"config.json", "metrics.jsonl", "samples.jsonl", "evaluation.jsonl", "checkpoints", "model"} <= names
  assert read_lines(tmp_path / "first", "metrics.jsonl")[0]["kl_ref"] >= 0
  process, output = run(tmp_path, *SMALL, "--steps", "1", "--run-dir", "first")
  assert process.returncode == 1 and "holds another run" in output


@pytest.mark.slow
def test_a_trained_model_can_be_trained_on_with_rows_and_a_reward_of_ones_own(tmp_path):
  process, output = run(tmp_path, *SMALL, "--steps", "1", "--run-dir", "first")
  assert process.returncode == 0, output
  (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{n} 2", "target": 3}}\n' for n in range(20)))
  code = "async def reward(completions, target, **_):\n  return [len(c) / t for c, t in zip(completions, target)]\n"
  (tmp_path / "mine.py").write_text(code)
  process, output = run(
    tmp_path,
    "--model",
    "first/model",
    "--task",
    "rows.jsonl",
    "--task-options",
    "evaluation_size=4",
    "--rewards",
    "mine:reward",
    "--steps",
    "1",
    "--num-prompts",
    "4",
    "--run-dir",
    "second",
  )
  assert process.returncode == 0, output
  assert "mean reward" in output


def wait_for_steps(folder, count, process):
  path = folder / "metrics.jsonl"
  while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
    time.sleep(0.02)


@pytest.mark.slow
def test_killed_at_a_random_moment_and_resumed_the_result_is_bit_identical(tmp_path):
  arguments = [*SMALL, "--steps", "12", "--checkpoint-every", "1", "--kl-coef", "0.01", "--minibatches", "2"]
  process, output = run(tmp_path, *arguments, "--run-dir", "whole")
  assert process.returncode == 0, output
  seed = time.time_ns()
  print("seed", seed)
  rng = random.Random(seed)
  for kill_after in (rng.randint(1, 4), rng.randint(5, 9)):
    begun = (tmp_path / "killed" / "evaluation.jsonl").exists()
    goes_on = ("--resume", "killed") if begun else (*arguments, "--run-dir", "killed")
    process = start(tmp_path, *goes_on)
    wait_for_steps(tmp_path / "killed", kill_after, process)
    time.sleep(rng.random() * 0.3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  process, output = run(tmp_path, "--resume", "killed")
  assert process.returncode == 0, output
  weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
  assert weights[0] == weights[1]
  steps = [[row["step"] for row in read_lines(tmp_path / n, "metrics.jsonl")] for n in ("whole", "killed")]
  assert steps[0] == steps[1] == list(range(1, 13))


@pytest.mark.slow
def test_ctrl_c_saves_and_tells_how_to_go_on(tmp_path):
  process = start(tmp_path, *SMALL, "--steps", "100000", "--run-dir", "run")
  wait_for_steps(tmp_path / "run", 2, process)
  process.send_signal(signal.SIGINT)
  output = process.communicate(timeout=60)[0]
  assert process.returncode == 1 and "-m experiments.grpo --resume run\n" in output and "Traceback" not in output
  done = len(read_lines(tmp_path / "run", "metrics.jsonl"))
  process, output = run(tmp_path, "--resume", "run", "--steps", str(done + 1), "--learning-rate", "1.0")
  assert process.returncode == 1 and "other settings: learning_rate was 8e-06, is 1.0" in output
  process, output = run(tmp_path, "--resume", "run", "--steps", str(done + 1))
  assert process.returncode == 0, output
  assert len(read_lines(tmp_path / "run", "metrics.jsonl")) == done + 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.5, 4.0])
def test_ctrl_c_in_the_first_seconds_shows_no_traceback_and_promises_no_checkpoint(tmp_path, seconds):
  process = start(tmp_path, *SMALL, "--evaluation-samples", "0", "--steps", "100000", "--run-dir", "run")
  time.sleep(seconds)
  while process.poll() is None:  # an interrupt within a library's callback is lost: one presses again
    process.send_signal(signal.SIGINT)
    time.sleep(10)
  output = process.communicate()[0]
  assert process.returncode != 0 and "Traceback" not in output
  if not (tmp_path / "run" / "metrics.jsonl").exists():
    assert "--resume" not in output


TOY = ["--width", "32", "--seeds", "2", "--warmup-steps", "2", "--seed", "1"]


@pytest.mark.slow
def test_objectives_are_compared_resumed_and_shown_again(tmp_path):
  sizes = "--rollouts 4 --evaluate-every 2 --num-prompts 4 --group-size 4 --evaluation-problems 8 --warmup-examples 4"
  toy = ["--task", "sorting", "--task-options", "length=2", *sizes.split(), "--run-dir", "cmp", *TOY]

  def compare(*arguments):
    command = [sys.executable, "-m", "experiments.compare_objectives", *arguments]
    return subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)

  first = compare(*toy, "--objectives", "ppo")
  assert first.returncode == 0, first.stderr
  again = compare(*toy, "--objectives", "ppo")
  assert (
    again.returncode == 1
    and "holds another run; choose a new --run-dir, or go on with it: --resume cmp" in again.stderr
  )
  written = (tmp_path / "cmp" / "results" / "ppo.npz").stat().st_mtime_ns
  resumed = compare("--resume", "cmp")
  assert resumed.returncode == 0 and (tmp_path / "cmp" / "results" / "ppo.npz").stat().st_mtime_ns == written
  shown = subprocess.run(
    [sys.executable, "-m", "rl_jax.analysis.comparison", "cmp"],
    cwd=tmp_path,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
  )
  assert shown.returncode == 0 and "| ppo | " in shown.stdout
  assert (tmp_path / "cmp" / "curves.png").exists() and (tmp_path / "cmp" / "comparison.md").exists()


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(objectives="foo"), "unknown objective 'foo'"),
    (dict(objectives="dpo"), "'dpo' does not learn from rewards"),
    (dict(grid=("clip=1",)), "no objective that is compared has a setting 'clip' to sweep"),
    (dict(grid=("clip_high",)), "grid must look like"),
    (dict(task_options=("digits=x",)), "option digits of task 'addition' must be like 2"),
    (dict(seeds=1), "seeds must be at least 2"),
    (dict(group_size=1), "group_size must be at least 2"),
    (dict(temperature=0.0), "temperature must be positive"),
    (dict(max_grad_norm=0.0), "max_grad_norm must be positive"),
    (dict(evaluate_every=0), "evaluate_every must be at least 1"),
    (dict(rollouts=50), "rollouts must be a multiple of evaluate_every=40, got 50"),
    (dict(objectives="grpo,grpo"), "objectives must differ"),
    (dict(objectives="instruct_gpt"), "needs rows of pretraining text"),
    (dict(objectives="dr_grpo", grid=("length=4,8",)), "length is not an argument to sweep"),
    (dict(grid=("clip_high=0.2", "clip_high=0.3")), "names 'clip_high' twice"),
    (dict(grid=("clip_high=nan,0.2",)), "must be finite and differ"),
    (dict(grid=("clip_high=0.2,0.20000001",)), "must be finite and differ"),
    (dict(num_prompts=3), "num_prompts must be a multiple of minibatches = 2"),
  ],
)
def test_mistakes_in_a_comparison_are_named(tmp_path, settings, message):
  config = compare_objectives.Config(run_dir=str(tmp_path / "cmp"), **settings)
  with pytest.raises(ValueError, match=message):
    compare_objectives.main(config)
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl_placement", "stale_batches"])
def test_findings_run_and_say_what_they_found(tmp_path, name):
  command = [sys.executable, "-m", f"experiments.findings.{name}", "--rollouts", "10", *TOY]
  process = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  assert re.search(r"^(NOT )?REPRODUCED( IN PART)?$", process.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("task", [(), ("--task", "parity", "--task-options", "bits=2", "--longer", "bits=4")])
def test_supervised_and_reinforcement_learning_side_by_side(tmp_path, task):
  command = [sys.executable, "-m", "experiments.sft_vs_rl", "--updates", "2", "--num-prompts", "4", *TOY, *task]
  process = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  assert float(re.search(r"difference of the two gradients: (\S+)", process.stdout)[1]) < 1e-6
  assert "supervised" in process.stdout and "reinforcement" in process.stdout
