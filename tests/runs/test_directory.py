"""What a run leaves on disk: its directory, checkpoints that fit or do not, and results for readers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import devices
from rl_jax.ops.moments import Moments
from rl_jax.runs.checkpoint import open_checkpoints
from rl_jax.runs.directory import RunDirectory, read_lines
from rl_jax.runs.results import EvaluationResult, Measurements, from_row
from rl_jax.state import RLState

PARAMS = {"table": jnp.arange(12.0).reshape(4, 3), "unembedding": jnp.ones((3, 4))}


def make_state(mesh=None):
  """Of everything that a state may hold."""
  state = RLState.create(
    PARAMS,
    optax.adam(0.05),
    jax.random.key(1),
    keep_reference=True,
    coefficients={"kl_coef": 0.1, "beta": 2.0},
    reward_moments=Moments.zero(),
    reward_baseline=0.5,
  )
  mesh = devices.make_mesh(data=1, devices=jax.devices()[:1]) if mesh is None else mesh
  return devices.replicate(state, mesh)


def leaves(state):
  plain = state._replace(key=jax.random.key_data(state.key))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


class TestRunDirectory:
  def test_holds_one_run(self, tmp_path):
    folder = tmp_path / "run"
    with RunDirectory(folder, {"seed": 1, "steps": 3}, resume=False) as run:
      run.write_metrics(1, {"reward": 1.0})
    before = {path.name: path.read_bytes() for path in folder.rglob("*.json*")}
    with pytest.raises(ValueError, match="holds another run"):
      RunDirectory(folder, {"seed": 1}, resume=False)
    with pytest.raises(ValueError, match="seed was 1, is 2"):
      RunDirectory(folder, {"seed": 2, "steps": 3}, resume=True)
    assert before == {path.name: path.read_bytes() for path in folder.rglob("*.json*")}
    RunDirectory(folder, {"seed": 1, "steps": 9}, resume=True)

  def test_does_not_forget_steps_that_were_made(self, tmp_path):
    folder = tmp_path / "run"
    with RunDirectory(folder, {"steps": 3}, resume=False) as run:
      for step in (1, 2, 3):
        run.write_metrics(step, {"reward": 1.0})
    with (folder / "metrics.jsonl").open("a") as file:
      file.write('{"step": 4, "rew')  # a kill cut it
    with pytest.raises(ValueError, match="steps must be at least 3, which the run in .* has made; got 2"):
      RunDirectory(folder, {"steps": 2}, resume=True)
    assert json.loads((folder / "config.json").read_text()) == {"steps": 3}
    RunDirectory(folder, {"steps": 3}, resume=True)

  def test_a_run_that_never_began_is_replaced(self, tmp_path):
    for seed in (1, 2):
      with RunDirectory(tmp_path / "run", {"seed": seed}, resume=False):
        pass
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"seed": 2}

  def test_belongs_to_one_process_at_a_time(self, tmp_path):
    with RunDirectory(tmp_path / "run", {}, resume=True):
      with pytest.raises(ValueError, match="in use by another process"):
        RunDirectory(tmp_path / "run", {}, resume=True).__enter__()
    with RunDirectory(tmp_path / "run", {}, resume=True):
      pass

  def test_logs_of_a_run_that_starts_again_are_kept(self, tmp_path):
    with RunDirectory(tmp_path / "run", {}, resume=False) as run:
      run.write_metrics(1, {"reward": 1.0})
      assert run.set_aside() and not run.set_aside()
    assert (tmp_path / "run" / "metrics.jsonl.old").exists() and not read_lines(run.folder, "metrics.jsonl")

  def test_does_not_touch_other_folders(self, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
      with pytest.raises(ValueError, match="not empty and holds no run"):
        RunDirectory(tmp_path, {}, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

  def test_rewinds_to_a_step_and_drops_a_torn_line(self, tmp_path):
    with RunDirectory(tmp_path / "run", {}, resume=False) as run:
      for step in (1, 2, 3):
        run.write_metrics(step, {"reward": float(step), "bad": float("nan")})
    with (run.folder / "metrics.jsonl").open("ab") as file:
      file.write('{"step": 2, "text": "é'.encode()[:-1])  # killed in the middle of a character
    run.rewind(2)
    assert [row["step"] for row in read_lines(run.folder, "metrics.jsonl")] == [1, 2]
    assert read_lines(run.folder, "metrics.jsonl")[0]["bad"] is None


def test_odd_characters_in_completions_survive(tmp_path):
  rows = [{"completion": "a\u2028b\u0085c\nd [/b] é", "reward": float("nan")}] * 2
  with RunDirectory(tmp_path / "run", {}, resume=False) as run:
    run.write_samples(1, rows)
    run.rewind(1)
  assert [row["completion"] for row in read_lines(run.folder, "samples.jsonl")] == [rows[0]["completion"]] * 2
  assert read_lines(run.folder, "samples.jsonl")[0]["reward"] is None


def test_config_is_readable_json(tmp_path):
  with RunDirectory(tmp_path / "run", {"steps": 1, "stop": ("a",)}, resume=False):
    pass
  assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"steps": 1, "stop": ["a"]}


def test_checkpoint_holds_the_whole_state(tmp_path):
  state = make_state()
  moved = state._replace(
    policy=state.policy._replace(coefficients={"kl_coef": jnp.float32(0.3), "beta": jnp.float32(4)}),
    running=state.running._replace(reward_baseline=jnp.float32(0.75), position=jnp.int32(8)),
  )
  with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(1, moved)
    resumed = checkpoints.resume(state)
  for one, other in zip(leaves(resumed), leaves(moved), strict=True):
    np.testing.assert_array_equal(one, other)
  assert float(resumed.policy.coefficients["beta"]) == 4 and int(resumed.running.position) == 8


def test_checkpoint_of_another_model_is_refused(tmp_path):
  state = make_state()
  with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(1, state)
  other = state._replace(policy=state.policy._replace(params={"table": jnp.zeros((3, 3))}))
  with open_checkpoints(tmp_path / "checkpoints") as checkpoints, pytest.raises(ValueError, match="of another model"):
    checkpoints.restore(1, other)


def test_checkpoint_moves_to_another_number_of_devices(tmp_path):
  state = make_state()
  with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(1, state)
  wide = make_state(devices.make_mesh())
  with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
    restored = checkpoints.restore(1, wide)
  for one, other in zip(leaves(restored), leaves(state), strict=True):
    np.testing.assert_array_equal(one, other)
  assert len(restored.policy.params["table"].sharding.device_set) == 4


def test_evaluation_without_any_reward_says_so():
  assert EvaluationResult(None, None, 3, 0).describe() == "no reward applied to any of 3 held-out problems"
  assert EvaluationResult(float("nan"), None, 3, 0).describe() == "no reward applied to any of 3 held-out problems"
  alone = EvaluationResult(1.5, None, 3, 0)
  assert alone.describe() == "mean reward 1.500 on 3 held-out problems"
  both = EvaluationResult(2.0, None, 3, 1, {"two": 0.5, "learned": 1.5, "other": None})
  assert both.describe() == "mean reward 2.000 (two 0.500, learned 1.500) on 3 held-out problems (1 too long)"
  solved = EvaluationResult(2.0, 3, 4, 0, {"two": 0.5, "learned": 1.5}).describe()
  assert solved.startswith("0.750 solved, 95 % interval ")
  assert solved.endswith(", 3 of 4 held-out problems; rewards: two 0.500, learned 1.500")


@pytest.mark.parametrize(
  "result",
  [EvaluationResult(None, 1, 2, 0, {"two": None, "learned": 1.5}, [{"reward": 1.0}]), Measurements({"loss": None})],
)
def test_a_result_is_read_back_as_what_it_was(tmp_path, result):
  with RunDirectory(tmp_path / "run", {}, resume=False) as run:
    run.write_evaluation(3, result)
    assert run.has_evaluation(3) and not run.has_evaluation(2)
  assert from_row(read_lines(run.folder, "evaluation.jsonl")[0]) == result._replace(samples=())
  assert len(read_lines(run.folder, "evaluation_samples.jsonl")) == len(result.samples)


def adapted_state(base, adapters):
  params = {
    "base": {"w": base * jax.random.normal(jax.random.key(1), (1 << 16,))},
    "adapters": {"a": jnp.full(3, adapters)},
  }
  return RLState.create(params, optax.adam(1e-3), jax.random.key(0), keep_reference=False, frozen=("base",))


def test_a_checkpoint_of_adapters_does_without_the_base(tmp_path):
  with open_checkpoints(tmp_path / "checkpoints", frozen=("base",)) as checkpoints:
    checkpoints.save(1, adapted_state(2.0, 5.0))
  size = sum(path.stat().st_size for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
  assert size < 4 * (1 << 16) / 5
  with open_checkpoints(tmp_path / "checkpoints", frozen=("base",)) as checkpoints:
    resumed = checkpoints.resume(adapted_state(2.0, 0.0))
    for one, other in zip(leaves(resumed), leaves(adapted_state(2.0, 5.0)), strict=True):
      np.testing.assert_array_equal(one, other)
    changed = adapted_state(2.0, 0.0)
    base = changed.policy.params["base"]
    for other in (-base["w"], base["w"].at[7].add(1e-6), base["w"][::-1], 1.0000001 * base["w"]):
      policy = changed.policy._replace(params={**changed.policy.params, "base": {"w": other}})
      with pytest.raises(ValueError, match="is of adapters on another model"):
        checkpoints.resume(changed._replace(policy=policy))


def test_a_run_may_go_on_when_its_data_has_moved_but_not_when_it_has_changed(tmp_path):
  def begin(**settings):
    return RunDirectory(tmp_path / "run", {"data": "a.jsonl", "data_fingerprint": "1", **settings}, resume=True)

  with begin() as run:
    run.write_metrics(1, {"loss": 1.0})
  begin(data="b.jsonl", task="c.jsonl")
  with pytest.raises(ValueError, match="task was None, is 'sums'"):
    begin(task="sums", data_fingerprint="")
  (tmp_path / "run" / "model").mkdir()
  (tmp_path / "run" / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
  with pytest.raises(ValueError, match="data_fingerprint was '1', is '2'; a new run may start from its model: --model"):
    begin(data_fingerprint="2")
  (tmp_path / "run" / "model" / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
  with pytest.raises(ValueError, match="is '2'$"):  # a reward model is no start
    begin(data_fingerprint="2")
