"""Where runs are seen besides their own files: what TensorBoard and Weights & Biases are given."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_jax.runs.directory import RunDirectory, read_provenance
from rl_jax.runs.results import EvaluationResult

ROOT = Path(__file__).parents[2]
ROWS = [
  {"prompt": "1 + 1 =", "completion": f" {i} <b>&", "reward": i / 4, "rewards": {}, "tokens": i} for i in range(4)
]
RESULT = EvaluationResult(0.5, 1, 2, 0, drawn={"pass@2": 0.75}, samples=[ROWS[1] | {"problem": 0, "draw": 0}])


def write(folder, *, resume=False, steps=(1, 2), **settings):
  with RunDirectory(folder, {"seed": 3}, resume=resume, **settings) as run:
    for step in steps:
      run.write_metrics(step, {"loss": float(step), "reward": float("nan")})
      run.write_samples(step, ROWS)
    run.write_evaluation(steps[-1], RESULT)


def test_tensorboard_has_numbers_texts_and_distributions(tmp_path):
  write(tmp_path / "run")
  found = {}
  for path in (tmp_path / "run" / "tensorboard").iterdir():
    for event in events(path):
      for value in event.summary.value:
        found.setdefault(value.tag, []).append((event.step, value))
  losses = [(step, value.simple_value) for step, value in found["loss"]]
  assert losses == [(1, 1.0), (2, 2.0)] and "reward" not in found
  assert [value.simple_value for _, value in found["evaluation/pass_2"]] == [0.75]
  lengths = found["distribution/length"][0][1].histo
  assert (lengths.num, lengths.min, lengths.max, lengths.sum) == (4, 0, 3, 6)
  text = found["samples/text_summary"][0][1].tensor.string_val[0].decode()
  assert "1 + 1 =" in text and " 3 <b>&" in text and "reward 0.75" in text


def events(path):
  """The records of a file, whose lengths and checksums are those of TFRecord."""
  from tensorboardX.proto import event_pb2

  content, place = path.read_bytes(), 0
  while place < len(content):
    length = int.from_bytes(content[place : place + 8], "little")
    yield event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
    place += 12 + length + 4


@pytest.mark.slow
def test_weights_and_biases_offline_is_given_the_same_and_a_resumed_run_goes_on_in_it(tmp_path, monkeypatch):
  if importlib.util.find_spec("wandb") is None:
    pytest.skip("wandb is not installed")
  monkeypatch.setenv("WANDB_MODE", "offline")
  write(tmp_path / "run", wandb="tries")
  identity = (tmp_path / "run" / "wandb_id").read_text()
  time.sleep(1.1)  # its folders are named by the second
  write(tmp_path / "run", wandb="tries", resume=True, steps=(2, 3))
  assert (tmp_path / "run" / "wandb_id").read_text() == identity
  files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
  told = [list(history(path)) for path in files]
  losses = [[(row["step"], row["loss"]) for row in rows if "loss" in row] for rows in told]
  assert losses == [[(1, 1.0), (2, 2.0)], [(2, 2.0), (3, 3.0)]]
  for rows, path in zip(told, files, strict=True):
    assert [row["evaluation/pass@2"] for row in rows if "evaluation/pass@2" in row] == [0.75]
    assert [sum(row["distribution/length/values"]) for row in rows if "distribution/length/values" in row] == [4, 4]
    table = next(row["samples/path"] for row in rows if "samples/path" in row)
    shown = json.loads((path.parent / "files" / table).read_text())
    assert shown["columns"] == ["prompt", "completion", "reward"]
    assert shown["data"] == [[row["prompt"], row["completion"], row["reward"]] for row in ROWS]


def history(path):
  """The logged rows of an offline run: a log of LevelDB's, in blocks of 32 KiB, after a header of 7 bytes."""
  from wandb.proto import wandb_internal_pb2

  content, place, record = path.read_bytes(), 7, b""
  while place < len(content):
    left = 32768 - place % 32768
    if left < 7:
      place += left
      continue
    length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
    record += content[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # whole, or the last part of one
      found, record = wandb_internal_pb2.Record.FromString(record), b""
      if found.WhichOneof("record_type") == "history":
        yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found.history.item}


def test_weights_and_biases_is_asked_for_by_name(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "wandb", None)
  with pytest.raises(ValueError, match=r"wandb needs the package wandb: pip install 'rl-jax\[wandb\]'"):
    write(tmp_path / "run", wandb="tries")


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_weights_and_biases_without_a_key_is_refused_before_a_run_begins(tmp_path, monkeypatch, mode):
  if importlib.util.find_spec("wandb") is None:
    pytest.skip("wandb is not installed")
  (tmp_path / "wandb").mkdir()
  (tmp_path / "wandb" / "settings").write_text(f"[default]\nmode = {mode}\n")  # as `wandb offline` writes it
  code = "from rl_jax.runs import tracking; tracking.check_wandb()"
  environment = {"PATH": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
  done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert (done.returncode == 0) == (mode != "online"), done.stderr
  assert ("wandb has no API key: run wandb login, or set WANDB_API_KEY" in done.stderr) == (mode == "online")


def test_every_start_of_a_run_leaves_what_it_was_started_with(tmp_path):
  write(tmp_path / "run")
  write(tmp_path / "run", resume=True, steps=(3,))
  starts = read_provenance(tmp_path / "run")
  assert len(starts) == 2 and all(start["packages"]["jax"] and start["command"] and start["folder"] for start in starts)
  (tmp_path / "run" / "provenance.json").write_text("[{")
  assert read_provenance(tmp_path / "run") == []
  write(tmp_path / "run", resume=True, steps=(4,))
  assert len(read_provenance(tmp_path / "run")) == 1
