"""experiments.biped and compiled_control: two steps in every kind of environment, an exact resume, what is refused."""

import importlib

import numpy as np
import pytest

from experiments import biped, compiled_control
from rl_jax.environments import agents
from rl_jax.runs.directory import read_lines

SMALL = dict(steps=2, num_starts=8, evaluation_episodes=2, epochs=1, minibatches=2, widths=(8,), checkpoint_every=1)


def can_draw():
  try:
    importlib.import_module("mujoco.egl").GLContext(8, 8).free()
  except Exception:
    return False
  return True


@pytest.mark.parametrize(
  "settings",
  [
    dict(environment_options=("seconds=0.6",)),
    pytest.param(
      dict(environment="cartpole", objective="grpo", group_size=3, environment_options=("max_steps=20",)),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      dict(environment="pendulum", objective="reinforce", minibatches=1, environment_options=("max_steps=20",)),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      dict(environment="gym", environment_options=("env_id=Pendulum-v1", "max_steps=20"), objective="ppo_kl"),
      marks=pytest.mark.slow,
    ),
  ],
  ids=["biped", "cartpole", "pendulum", "gym"],
)
def test_two_steps_and_everything_that_is_written(tmp_path, settings, capsys):
  saved = biped.main(biped.Config(run_dir=str(tmp_path / "run"), **SMALL | settings))
  params, moments = agents.load(saved.parent)
  assert "policy" in params and np.all(np.asarray(moments.std) >= 0) and moments.count > 0
  rows, evaluations = read_lines(tmp_path / "run", "metrics.jsonl"), read_lines(tmp_path / "run", "evaluation.jsonl")
  assert len(rows) == 2 and len(evaluations) == 3 and {"return", "length"} <= set(evaluations[0]["values"])
  assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
  output = capsys.readouterr().out
  if "environment" not in settings:
    assert {"reward/speed", "reward/effort", "simulations_failed", "actions_clipped"} <= set(rows[0])
    assert (tmp_path / "run" / "gait.png").stat().st_size > 1000
    assert (tmp_path / "run" / "walk.gif").exists() == can_draw() == (tmp_path / "run" / "film.png").exists()
    assert "animation: " in output or "no pictures of the robot: " in output


@pytest.mark.slow
def test_a_run_that_stopped_and_was_resumed_is_bit_identical(tmp_path):
  settings = SMALL | dict(environment_options=("seconds=0.6",), objective="ppo_kl", beta_target=0.01, epochs=2)
  whole = biped.main(biped.Config(run_dir=str(tmp_path / "whole"), **settings | dict(steps=3)))
  biped.main(biped.Config(run_dir=str(tmp_path / "parts"), **settings))
  parts = biped.main(biped.Config(run_dir=str(tmp_path / "parts"), resume=True, **settings | dict(steps=3)))
  assert whole.read_bytes() == parts.read_bytes()
  assert len({row["beta"] for row in read_lines(tmp_path / "parts", "metrics.jsonl")}) > 1


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(environment="ant"), "unknown environment 'ant'"),
    (dict(environment_options=("legs=3",)), "environment 'biped' has no option 'legs'; it has backend, planar"),
    (dict(objective="dpo"), "objective 'dpo' does not learn from rewards"),
    (dict(objective="grpo"), "group_size must be at least 2 for objective 'grpo'"),
    (dict(objective="reinforce"), "reinforce"),
    (dict(objective="rloo", lam=0.9, group_size=2, epochs=1, minibatches=1), "makes no use of lam"),
    (dict(num_starts=6), "num_starts must be a multiple of minibatches"),
    (dict(widths=()), "widths must be one or more numbers"),
    (dict(std=0.0), "std must be positive"),
    (dict(beta_target=0.1), "beta"),
  ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, settings, message):
  with pytest.raises(ValueError, match=message):
    biped.main(biped.Config(run_dir=str(tmp_path / "run"), **SMALL | settings))
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [dict(), dict(environment="pendulum", objective="ppo_kl", beta_target=0.01)])
def test_seeds_are_compiled_side_by_side(settings, capsys):
  small = dict(steps=2, evaluations=2, seeds=2, num_starts=4, epochs=2, minibatches=2, widths=(8,))
  options = dict(environment_options=("max_steps=10",), evaluation_episodes=2)
  compiled_control.main(compiled_control.Config(**small, **options, **settings))
  output = capsys.readouterr().out
  assert "2 runs of 2 rollouts in" in output and "return" in output


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(environment="biped"), "environment 'biped' runs on the host"),
    (dict(steps=5), "steps must be a multiple of evaluations = 4, got 5"),
    (dict(num_starts=6), "num_starts must be a multiple of minibatches = 4, got 6"),
    (dict(microbatches=2), "a compiled run makes no use of microbatches"),
  ],
)
def test_what_cannot_be_compiled_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    compiled_control.main(compiled_control.Config(**settings))
