"""Models and data sets by their names on the hub, against a small one on this machine, and without any."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rl_jax import hub
from rl_jax.models import heads, presets, scorers
from tests.hub_server import COMMIT, serve

ROOT = Path(__file__).parents[1]
CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train-*}
---
# Sums
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
  folder = tmp_path_factory.mktemp("hub")
  model = presets.load("tiny")
  presets.save(folder / "tiny", model, model.params)
  scorers.save(folder / "judge", model, model.params, heads.init_head(jax.random.key(0), 64, bias=False))
  rows = [{"question": f"{i} + 1?", "answer": f"It is one more.\n#### {i + 1}"} for i in range(24)]
  for name in ("main/train-00000-of-00001", "main/test-00000-of-00001", "socratic/train-00000-of-00001"):
    path = folder / "sums" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row | {"of": name.partition("-")[0]}) + "\n" for row in rows))
  (folder / "sums" / "README.md").write_text(CARD)
  (folder / "plain" / "data").mkdir(parents=True)
  (folder / "plain" / "data" / "train.csv").write_text("prompt,answer\n1 + 1 =,2\n")
  (folder / "script").mkdir()
  (folder / "script" / "script.py").write_text("raise SystemExit\n")
  names = {"tiny": "models", "judge": "models", "sums": "datasets", "plain": "datasets", "script": "datasets"}
  return {f"{kind}/org/{name}": folder / name for name, kind in names.items()} | {"models/org/closed": folder / "tiny"}


def run(code, url, home, **environment):
  env = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), **environment}
  return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=home)


CODE = """
from rl_jax import hub
from rl_jax.models import presets
from rl_jax.tasks import sources

def tell(function, *args, **options):
  try:
    print(function(*args, **options))
  except ValueError as error:
    print(error)

tell(lambda: presets.load("org/tiny").num_params)
tell(lambda: hub.model_folder("org/tiny@main").name)
tell(lambda: sorted({row["of"] for row in sources.read("org/sums", config="main").rows}))
tell(lambda: sorted({row["of"] for row in sources.read("org/sums", config="main", split="test").rows}))
tell(lambda: sources.read("org/plain").rows)
tell(lambda: sources.read("org/plain").fingerprint)
"""
WRONG = """
tell(presets.load, "org/none")
tell(presets.load, "org/tiny@v9")
tell(presets.load, "org/closed")
tell(sources.read, "org/sums")
tell(sources.read, "org/sums", config="other")
tell(sources.read, "org/sums", config="main", split="validation")
tell(sources.read, "org/script")
tell(sources.read, "org/none")
"""


@pytest.mark.slow
def test_names_are_found_cached_and_refused_in_one_line(repositories, tmp_path):
  found = [
    "80384",
    COMMIT,
    "['main/train']",
    "['main/test']",
    "[{'prompt': '1 + 1 =', 'answer': '2'}]",
    f"{COMMIT} train",
  ]
  with serve(repositories, gated=["models/org/closed"]) as (url, asked):
    done = run(CODE + WRONG, url, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == found
    for line, message in zip(
      lines[6:],
      (
        "unknown model 'org/none': nothing of that name is here or on the hub",
        "model 'org/tiny' has no revision 'v9'",
        "model 'org/closed' is gated: accept its terms on the hub, and set HF_TOKEN",
        "has several configurations: choose one with config=, of main, socratic",
        "has no configuration 'other'; it has main, socratic",
        "has no split 'validation'; it has train, test",
        "has no files of rows",
        "unknown data set 'org/none'",
      ),
      strict=True,
    ):
      assert message in line
    assert not any("socratic" in request and "resolve" in request for request in asked)  # what is needed alone
  for environment in ({"HF_HUB_OFFLINE": "1"}, {}):  # told to be offline, and with a hub that is gone
    done = run(CODE + 'tell(presets.load, "org/other")', url, tmp_path, **environment)
    assert done.stdout.splitlines()[:6] == found, done.stderr
    assert "model 'org/other' is not cached here, and the hub cannot be reached" in done.stdout


def test_what_is_here_goes_before_the_hub(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert hub.is_name("org/tiny")
  (tmp_path / "org" / "tiny").mkdir(parents=True)
  assert not hub.is_name("org/tiny")
  with pytest.raises(ValueError, match="no readable config.json"):
    presets.load("org/tiny")


@pytest.mark.slow
def test_a_run_by_names_alone_keeps_the_commits(repositories, tmp_path):
  arguments = (
    "--model org/tiny --task org/sums --task-options config=main evaluation_size=8 --rewards math format org/judge"
    " --reward-weights 1 0 0 --steps 1 --num-prompts 2 --group-size 2 --minibatches 1 --max-new-tokens 4"
    " --evaluation-samples 2 --run-dir run"
  )
  env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

  def train(url, *arguments):
    return subprocess.run(
      [sys.executable, "-m", "experiments.grpo", *arguments],
      env=env | {"HF_ENDPOINT": url}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip

  with serve(repositories) as (url, _):
    done = train(url, *arguments.split())
  assert done.returncode == 0, done.stdout + done.stderr
  assert "24 rows read as questions, as chat" in done.stdout and "the first prompt reads 'user: " in done.stdout
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["reward_commits"] == {"org/judge": COMMIT} and len(config["reward_fingerprints"]) == 1
  assert config["model_commit"] == COMMIT and config["data_fingerprint"] == f"{COMMIT} train"
  assert json.loads((tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()[0])["solved"] == 0
  with serve(repositories, commit="d" * 40) as (url, _):  # the hub has moved on; the run stays with what it began with
    done = train(url, "--resume", "run", "--steps", "2")
  assert done.returncode == 0, done.stdout + done.stderr
  assert json.loads((tmp_path / "run" / "config.json").read_text())["model_commit"] == COMMIT
