"""Command lines: what a resumed run takes from its folder, and what is refused."""

import dataclasses
import json
import math

import pytest

from rl_jax.runs.settings import check_names, command_line, of_run, parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  run_dir: str = "runs/x"  # where
  resume: bool = False  # a run's folder
  data: str  # needed
  steps: int = 8  # how many
  rate: float = 1e-3  # how fast
  above: float = -math.inf  # least
  stop: tuple[str, ...] = ()  # texts
  sizes: tuple[float, ...] = ()  # numbers
  clip: float | None = None  # where it is clipped
  packed: bool = True  # together


OWN = dict(data="rows.jsonl", steps=3, rate=1.0, stop=("a", "b c"), sizes=(1.0, 2.5), packed=False)


@pytest.fixture
def folder(tmp_path):
  settings = dataclasses.asdict(Config(**OWN, run_dir=str(tmp_path))) | {"above": "-inf", "rate": 1, "further": "x"}
  (tmp_path / "config.json").write_text(json.dumps(settings))
  return str(tmp_path)


def test_a_resumed_run_needs_no_other_flag(folder):
  wanted = Config(**OWN, run_dir=folder, resume=True)
  for arguments in (["--resume", folder], [f"--resume={folder}"]):
    assert parse(Config, args=arguments) == wanted
  assert type(parse(Config, args=["--resume", folder]).rate) is float
  assert command_line("my.module", wanted).endswith(f" -m my.module --resume {folder}")


def test_flags_that_are_given_take_the_place_of_the_runs_own(folder):
  found = parse(Config, args=["--steps", "9", "--resume", folder, "--packed", "--stop", "c"])
  assert found == Config(**OWN | dict(steps=9, packed=True, stop=("c",)), run_dir=folder, resume=True)


def test_flags_of_other_systems_are_named():
  for words, known, here in (
    (["--num-generations", "8"], ["group_size"], "--group-size"),
    (["--actor_rollout_ref.rollout.n=8"], ["group_size"], "--group-size"),
    (["--dataset-name", "x"], ["data"], "--data"),
    (["--dataset-name", "x"], ["task", "model"], "--task"),
  ):
    with pytest.raises(ValueError, match=f"is called {here} here"):
      check_names(words, known)
  check_names(["--beta", "1", "--lr", "x"], ["beta", "group_size"])  # nothing here is called as lr is


def test_without_a_run_to_resume_nothing_changes(folder):
  assert parse(Config, args=["--data", "x"]) == Config(data="x")
  with pytest.raises(SystemExit):
    parse(Config, args=[])  # --data is needed


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--resume"], "--resume takes the folder of the run"),
    (["--steps", "3", "--resume"], "--resume takes the folder of the run"),
    (["--resume", "nowhere"], "no run to go on with in 'nowhere': it has no config.json"),
    (["--resume", ""], "--resume takes the folder of the run to go on with, got ''"),
  ],
)
def test_what_cannot_be_resumed_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    parse(Config, args=arguments)


def test_a_run_goes_on_where_it_is_and_in_its_own_script(folder, tmp_path):
  with pytest.raises(ValueError, match="run_dir is that of the run which goes on"):
    parse(Config, args=["--resume", folder, "--run-dir", "elsewhere"])
  (tmp_path / "config.json").write_text('{"steps": 3}')
  with pytest.raises(ValueError, match="holds no run of this script"):
    of_run(Config, folder)
  for content in ("[1]", '{"data": "x", "rate": null}'):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="no run to go on with|holds no run of this script"):
      of_run(Config, folder)
