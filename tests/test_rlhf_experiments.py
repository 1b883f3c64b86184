"""SFT, reward model, DPO, PPO and rejection sampling on a tiny model: two steps of each, and what they refuse."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compiled_rlhf, dpo, ppo, rejection_sampling, reward_model, rlhf, sft
from rl_jax.analysis import report
from rl_jax.models import presets, scorers
from rl_jax.objectives import kl_cov
from rl_jax.objectives.base import Inputs
from rl_jax.ops.metrics import results
from rl_jax.runs.directory import read_lines
from rl_jax.runs.settings import of_run

SMALL = dict(model="tiny", steps=2)
ROLLOUTS = dict(num_prompts=8, group_size=2, task_options=("evaluation_size=4",), checkpoint_every=0)


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture
def demonstrations(tmp_path):
  rows = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(40)]
  return write(tmp_path / "demonstrations.jsonl", rows)


@pytest.fixture
def pairs(tmp_path):
  rows = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": f"{i} and one"} for i in range(40)]
  return write(tmp_path / "pairs.jsonl", rows)


def measured(folder):
  rows = read_lines(folder, "evaluation.jsonl")
  return rows[0]["values"], rows[-1]["values"]


@pytest.mark.parametrize("lora_rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_sft_lowers_the_perplexity_and_writes_a_model(tmp_path, demonstrations, lora_rank, capsys):
  settings = dict(num_rows=4, max_tokens=16, learning_rate=1e-2, lora_rank=lora_rank, run_dir=str(tmp_path / "run"))
  model = sft.main(sft.Config(data=demonstrations, **SMALL, **settings))
  before, after = measured(tmp_path / "run")
  assert after["perplexity"] < before["perplexity"]
  assert presets.load(str(model)).num_params == presets.load("tiny").num_params
  report.show(tmp_path / "run")
  assert "perplexity" in capsys.readouterr().out
  with pytest.raises(ValueError, match="holds another run"):
    sft.main(sft.Config(data=demonstrations, **SMALL, **settings))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.slow
def test_a_reward_model_is_trained_and_ppo_learns_from_it(tmp_path, pairs, adapted):
  settings = dict(num_rankings=8, learning_rate=1e-2, lora_rank=2 * adapted, run_dir=str(tmp_path / "rm"))
  judge = reward_model.main(reward_model.Config(data=pairs, **SMALL, **settings))
  before, after = measured(tmp_path / "rm")
  assert before["margin"] == 0 and before["accuracy"] == 0.5 and after["margin"] > 0 and after["pairs"] == 4
  prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"{i}+1="} for i in range(40)])
  options = dict(standardize_rewards=True, kl_control="adaptive", bootstrap=True, target_kl=1.0)
  if adapted:
    options = dict(process=" ", reward_clip=1.0)
  options |= dict(task=prompts, reward_model=str(judge), critic="reward", run_dir=str(tmp_path / "ppo"))
  config = ppo.Config(**SMALL, **ROLLOUTS, **options)
  ppo.main(config)
  row = read_lines(tmp_path / "ppo", "metrics.jsonl")[-1]
  assert {"kl_coef", "kl_completion", "explained_variance", "value_error"} <= set(row)
  assert ("updates" in row) == (not adapted) and row["reward_std"] > 0
  evaluation = read_lines(tmp_path / "ppo", "evaluation.jsonl")[-1]
  assert np.isfinite(evaluation["reward"]) and evaluation["solved"] is None
  backbone, _ = scorers.load(str(judge))
  scorers.save(judge, backbone, backbone.params, {"out": {"kernel": np.ones((64, 1), np.float32)}})
  with pytest.raises(ValueError, match="reward_fingerprints was"):  # it is another one by now
    ppo.main(dataclasses.replace(config, resume=True, steps=3))
  with pytest.raises(ValueError, match="steps was 2, is 3"):  # the learning rates would be others
    reward_model.main(reward_model.Config(data=pairs, **(SMALL | {"steps": 3}), **settings, resume=True))


@pytest.mark.parametrize(
  "settings",
  [
    dict(critic="own", spread=0.9, kl_control="band"),
    dict(
      critic="shared",
      lora_rank=2,
      kl_estimator="k3",
      learning_rate=1e-2,
      rewards=("tests.test_rlhf_experiments:digits",),
    ),
    dict(critic="fresh", kl_place="loss", kl_estimator="k2"),
    dict(
      objective="vapo",
      critic="own",
      lora_rank=2,
      learning_rate=1e-2,
      max_new_tokens=8,
      rewards=("tests.test_rlhf_experiments:digits",),
    ),
    dict(objective="remax", epochs=1, minibatches=1, kl_coef=0.0),
    dict(objective="reinforce_plus_plus"),
    dict(objective="rloo", epochs=1, minibatches=1),
  ],
)
@pytest.mark.slow
def test_ppo_and_its_relatives_run(tmp_path, settings):
  ppo.main(ppo.Config(**SMALL, **ROLLOUTS, **settings, run_dir=str(tmp_path / "run")))
  rows = read_lines(tmp_path / "run", "metrics.jsonl")
  assert len(rows) == 2 and all(row["skipped"] == 0 and np.isfinite(row["loss"]) for row in rows)
  assert ("value_error" in rows[0]) == ("critic" in settings)
  assert ("kl_coef" in rows[0]) == (settings.get("kl_place") != "loss" and settings.get("kl_coef") != 0)
  assert ("kl_ref" in rows[0]) == (settings.get("kl_place") == "loss")
  if "lora_rank" in settings:  # the base is the reference: the policy leaves it with the first updates
    assert abs(rows[0]["kl_reward"]) < 1e-5 < abs(rows[1]["kl_reward"])
  if "lora_rank" in settings:
    merged = presets.load(str(tmp_path / "run" / "adapters")).params  # onto the base that they name
    saved = presets.load(str(tmp_path / "run" / "model")).params
    np.testing.assert_allclose(merged["layers"]["query"]["kernel"], saved["layers"]["query"]["kernel"], atol=1e-6)


@pytest.mark.slow
def test_the_weight_of_ppos_penalty_follows_the_kl_of_the_updates(tmp_path):
  settings = dict(objective="ppo_kl", beta_target=1e-9, learning_rate=1e-2, run_dir=str(tmp_path / "run"))
  settings |= dict(rewards=("tests.test_rlhf_experiments:digits",), kl_coef=0.0)
  ppo.main(ppo.Config(**(SMALL | {"steps": 3}), **ROLLOUTS, **settings))
  rows = read_lines(tmp_path / "run", "metrics.jsonl")
  assert all(row["kl_update"] > 1.5e-9 for row in rows)  # any update is far more than the target
  assert [row["beta"] for row in rows] == [1, 2, 4] and all("kl_old" in row for row in rows)


@pytest.mark.slow
def test_an_objective_of_ones_own_is_trained_with(tmp_path, monkeypatch):
  code = "from rl_jax.objectives.dapo import advantage, objective  # noqa: F401\n"
  (tmp_path / "my_module.py").write_text(code)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  settings = dict(objective="my_module:objective", rewards=("tests.test_rlhf_experiments:digits",), run_dir="run")
  ppo.main(ppo.Config(**SMALL, **ROLLOUTS, clip_high=0.3, kl_coef=0.0, **settings))
  assert "clip_high" in read_lines(tmp_path / "run", "metrics.jsonl")[0]


@pytest.mark.slow
def test_pretraining_text_is_mixed_in(tmp_path):
  texts = write(tmp_path / "texts.jsonl", [{"text": f"{i} comes before {i + 1}."} for i in range(20)])
  settings = dict(objective="instruct_gpt", ptx_data=texts, ptx_prompts=8, run_dir=str(tmp_path / "run"))
  ppo.main(ppo.Config(**SMALL, **ROLLOUTS, **settings))
  assert read_lines(tmp_path / "run", "metrics.jsonl")[-1]["nll"] > 1


@pytest.mark.parametrize(
  "settings",
  [
    dict(lora_rank=2, loss="ipo"),
    pytest.param(dict(), marks=pytest.mark.slow),
    pytest.param(dict(loss="aot"), marks=pytest.mark.slow),
    pytest.param(dict(loss="cpo"), marks=pytest.mark.slow),
  ],
)
def test_dpo_widens_the_margin(tmp_path, pairs, settings):
  config = dpo.Config(data=pairs, **SMALL, num_pairs=8, learning_rate=1e-2, run_dir=str(tmp_path / "run"), **settings)
  dpo.main(config)
  before, after = measured(tmp_path / "run")
  assert after["margin"] > before["margin"] + 0.01 and after["loss"] < before["loss"]
  if settings.get("loss") != "cpo":  # the others compare with the initial model
    assert before["margin"] == pytest.approx(0, abs=1e-3)


def test_few_rows_fill_a_batch_and_epochs_are_steps(tmp_path, capsys):
  rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(30)]
  settings = dict(data=write(tmp_path / "rows.jsonl", rows), model="tiny", max_tokens=32, run_dir=str(tmp_path / "run"))
  sft.main(sft.Config(**settings, epochs=2.5))
  told = capsys.readouterr().out
  # 27 rows of ten to fourteen tokens are trained on, two or three of them in one; there are four devices here.
  assert "num_rows is 12 in place of 16: there are 12 rows to train on" in told
  steps = [row["epoch"] for row in read_lines(tmp_path / "run", "metrics.jsonl")]
  assert len(steps) == 3 and steps[-1] == 3  # the third pass is a whole one
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert (saved["num_rows"], saved["steps"], saved["epochs"]) == (12, 3, 2.5)
  again = of_run(sft.Config, str(tmp_path / "run"))
  assert sft.main(again).is_dir()  # goes on, and is done
  with pytest.raises(ValueError, match="steps is given beside epochs, which make 3"):
    sft.main(dataclasses.replace(again, steps=9))
  with pytest.raises(ValueError, match="epochs was 2.5, is 5"):
    sft.main(dataclasses.replace(again, epochs=5.0))
  with pytest.raises(ValueError, match="holds no run of this script: its config.json has no 'loss'|has no 'num_pairs'"):
    of_run(dpo.Config, str(tmp_path / "run"))


def test_kto_learns_from_single_answers_with_labels(tmp_path):
  rows = [{"prompt": f"{i}:", "completion": "ab"[bad] * 4, "label": not bad} for i in range(24) for bad in (0, 1)]
  data, settings = write(tmp_path / "answers.jsonl", rows), dict(learning_rate=1e-2, num_pairs=8)
  dpo.main(dpo.Config(data=data, **(SMALL | {"steps": 8}), **settings, loss="kto", run_dir=str(tmp_path / "run")))
  before, after = measured(tmp_path / "run")
  assert before["loss"] == pytest.approx(0.5, abs=1e-3) and after["loss"] < before["loss"]
  assert not (tmp_path / "run" / "samples.jsonl").exists()  # nothing was sampled
  with pytest.raises(
    ValueError, match="data must be pairs; .* has single answers with a label, which loss 'kto' learns"
  ):
    dpo.main(dpo.Config(data=data, **SMALL, **settings, run_dir=str(tmp_path / "other")))
  with pytest.raises(ValueError, match="data must be preferences; .* has single answers"):
    reward_model.main(reward_model.Config(data=data, **SMALL, run_dir=str(tmp_path / "other")))


@pytest.mark.parametrize("settings", [dict(loss="simpo"), dict(loss="orpo", beta=0.5), dict(loss="kto", lora_rank=2)])
@pytest.mark.slow
def test_relatives_of_dpo_learn(tmp_path, pairs, settings):
  dpo.main(dpo.Config(data=pairs, **SMALL, num_pairs=8, learning_rate=1e-2, run_dir=str(tmp_path / "run"), **settings))
  before, after = measured(tmp_path / "run")
  assert after["loss"] < before["loss"]
  if settings["loss"] == "kto":  # both log-ratios are 0, and 1 - sigmoid(0) = 1/2
    assert before["loss"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("method", "lora_rank"), [("prefer", 2), ("imitate", 0)])
@pytest.mark.slow
def test_learning_from_ones_own_samples(tmp_path, method, lora_rank):
  settings = dict(
    rewards=("tests.test_rlhf_experiments:digits",), method=method, run_dir=str(tmp_path / "run"), lora_rank=lora_rank
  )
  rejection_sampling.main(rejection_sampling.Config(**SMALL, **ROLLOUTS, **settings))
  rows = read_lines(tmp_path / "run", "metrics.jsonl")
  assert len(rows) == 2 and all(0 < row["kept"] <= 1 for row in rows)
  assert rows[0]["nll" if method == "imitate" else "accuracy"] is not None


def digits(completions, **_):
  return [float(sum(ord(character) for character in text) % 7) for text in completions]


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(objective="foo"), "unknown objective 'foo'"),
    (dict(objective="dpo"), "objective 'dpo' does not learn from rewards"),
    (dict(objective="instruct_gpt", ptx_prompts=8), "needs ptx_data"),
    (dict(critic="both"), "critic must be one of own, reward, fresh, shared, got 'both'"),
    (dict(critic="reward"), "critic 'reward' needs a reward_model"),
    (dict(kl_estimator="k4"), "kl_estimator must be one of k1, k2, k3"),
    (dict(clip_low=0.0), "clip_low must be positive and finite"),
    (dict(kl_control="band", kl_coef=0.0), "kl_control 'band' needs .* a kl_coef above 0"),
    (dict(objective="grpo", lam=0.9), "objective 'grpo' makes no use of lam; it has clip_low, clip_high, kl_coef"),
    (dict(objective="grpo", critic="shared"), "objective 'grpo' makes no use of critic"),
    (
      dict(objective="grpo", objective_options=("kl_coef=0.1",)),
      "'grpo' has a KL to the reference in its loss: kl_coef",
    ),
    (dict(objective="ppo", beta_target=0.01), "objective 'ppo' makes no use of beta"),
    (dict(objective="ppo_kl", epochs=1, minibatches=1), "'ppo_kl' needs more than one update a rollout"),
    (dict(objective="grpo", kl_place="loss", kl_control="band"), "kl_control 'band' needs a KL in the reward"),
    (dict(process=" "), "process needs a reward_model"),
    (dict(objective="rloo"), "objective 'rloo' has no ratio .* epochs and minibatches must be 1"),
    (dict(objective="grpo", spread=0.9), "objective 'grpo' makes no use of spread"),
    (dict(kl_place="loss"), "kl_estimator 'k1' has no gradient in the mean"),
    (dict(kl_target=3.0), "kl_control 'fixed' makes no use of kl_target"),
    (dict(ptx_tokens=8), "a run without ptx_data makes no use of ptx_tokens"),
    (dict(lora_alpha=8.0), "lora_rank 0 makes no use of lora_alpha"),
    (dict(temperature=float("nan")), "temperature must be positive and finite, got nan"),
    (dict(rewards=("tests.test_rlhf_experiments:digits",), reward_weights=(0.0,)), "there is nothing to learn from"),
    (dict(objective="ppo", ptx_data="texts.jsonl"), "needs ptx_data, .* and no other one takes it"),
    (dict(objective="instruct_gpt", ptx_data="texts.jsonl", temperature=0.9), "ptx_data needs temperature 1"),
    (dict(objective="instruct_gpt", ptx_data="texts.jsonl", ptx_prompts=3), "ptx_prompts must each be a multiple of"),
    (dict(gamma=1.5), "gamma and lam must be at most 1"),
    (dict(spread=1.5), "spread must be at most 1"),
    (dict(kl_low=3.0, kl_high=2.0), "kl_low must be below kl_high"),
    (dict(reward_model="nowhere"), "unknown reward model 'nowhere'"),
    (dict(minibatches=3), "num_prompts .* must each be a multiple"),
  ],
)
def test_mistakes_in_ppo_are_named_and_leave_no_run_behind(tmp_path, settings, message):
  with pytest.raises(ValueError, match=message):
    ppo.main(ppo.Config(**SMALL, **(ROLLOUTS | settings), run_dir=str(tmp_path / "run")))
  assert not (tmp_path / "run").exists()


def objective_of(**settings):
  algorithm = ppo.load_algorithm(ppo.Config(**settings))
  return algorithm.objective(algorithm.coefficients)


def test_an_objective_keeps_its_own_clip_and_pays_no_kl_twice():
  one = jnp.ones((1, 1))
  inputs = Inputs(one, one, logp=0.1 * one, old_logp=0 * one, ref_logp=one)
  for clip, clipped in ((None, 1.0), (0.2, 0.0)):  # the ratio is 1.1; GSPO stops at 1.0004
    objective = objective_of(objective="gspo", clip_high=clip)
    assert results(objective.loss(inputs, objective.weight(inputs))[1])["clip_high"] == clipped
  assert "ref_logp" not in objective_of(objective="grpo").needs
  assert "ref_logp" in objective_of(objective="grpo", kl_place="loss", kl_estimator="k2").needs
  value = dict(values=0.5 * one, old_values=0 * one, returns=one)
  for options, expected in ((dict(), 0.125), (dict(value_coef=0.2, value_clip=0.1), 0.2 * 0.5 * 0.9**2)):
    objective = objective_of(objective="vapo", **options)  # its own: half the square, no clip
    inputs = Inputs(one, 0 * one, logp=0 * one, old_logp=0 * one, target_mask=0 * one, **value)
    np.testing.assert_allclose(objective.loss(inputs, objective.weight(inputs))[0], expected, rtol=1e-5)


def test_the_critic_has_a_rate_of_its_own():
  params = {"policy": {"x": jnp.ones(1)}, "critic": {"x": jnp.ones(1)}, "value_head": {"x": jnp.ones(1)}}
  config = ppo.Config(learning_rate=1e-3, critic_rate=1e-2, max_grad_norm=1e9)
  optimizer = config.make_optimizer(part_rates={"critic": config.critic_rate, "value_head": config.critic_rate})
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  steps = {name: float(-update["x"][0]) for name, update in updates.items()}
  assert steps == pytest.approx({"policy": 1e-3, "critic": 1e-2, "value_head": 1e-2}, rel=1e-3)


def test_an_objective_of_the_old_policy_keeps_its_kl():
  assert objective_of(objective="kl_cov").parts == kl_cov.objective().parts  # its KL is to the old policy


def test_a_folder_without_a_head_is_no_reward_model(tmp_path, demonstrations):
  model = sft.main(sft.Config(data=demonstrations, **SMALL, num_rows=4, max_tokens=16, run_dir=str(tmp_path / "sft")))
  with pytest.raises(ValueError, match="no reward model's: they have no score.weight"):
    ppo.main(ppo.Config(**SMALL, **ROLLOUTS, reward_model=str(model), run_dir=str(tmp_path / "run")))


def test_mistakes_in_data_are_named(tmp_path, pairs):
  with pytest.raises(ValueError, match="does not exist"):
    sft.main(sft.Config(data="nowhere.jsonl", **SMALL, run_dir=str(tmp_path / "run")))
  with pytest.raises(ValueError, match=r"pairs.jsonl, line 1: preferences, which DPO and reward models learn"):
    sft.main(sft.Config(data=pairs, **SMALL, run_dir=str(tmp_path / "run")))
  with pytest.raises(ValueError, match="margins need a column 'ratings'"):
    reward_model.main(reward_model.Config(data=pairs, **SMALL, margins=True, run_dir=str(tmp_path / "run")))
  with pytest.raises(ValueError, match=r"num_pairs must be a multiple of microbatches \* devices = 4, got 6"):
    dpo.main(dpo.Config(data=pairs, **SMALL, num_pairs=6, run_dir=str(tmp_path / "run")))
  with pytest.raises(ValueError, match="loss 'ipo' makes no use of label_smoothing"):
    dpo.main(dpo.Config(data=pairs, **SMALL, loss="ipo", label_smoothing=0.1, run_dir=str(tmp_path / "run")))
  with pytest.raises(ValueError, match="method 'prefer' makes no use of above, best"):
    rejection_sampling.main(rejection_sampling.Config(**SMALL, method="prefer", best=2, above=1.0))
  with pytest.raises(ValueError, match="beta must be positive"):
    dpo.main(dpo.Config(data=pairs, **SMALL, beta=0.0, run_dir=str(tmp_path / "run")))
  with pytest.raises(ValueError, match="loss must be one of .*, simpo, sppo, got 'foo'"):
    dpo.main(dpo.Config(data=pairs, **SMALL, loss="foo", run_dir=str(tmp_path / "run")))
  with pytest.raises(ValueError, match="loss 'kto' makes no use of label_smoothing"):
    dpo.main(dpo.Config(data=pairs, **SMALL, loss="kto", label_smoothing=0.1, run_dir=str(tmp_path / "run")))
  with pytest.raises(ValueError, match="the data has 36 rows for training, fewer than microbatches . devices = 64"):
    dpo.main(dpo.Config(data=pairs, **SMALL, num_pairs=64, microbatches=16, run_dir=str(tmp_path / "run")))
  with pytest.raises(ValueError, match="held_out must be between 0 and 1, got 1"):
    dpo.main(dpo.Config(data=pairs, **SMALL, held_out=1.0, run_dir=str(tmp_path / "run")))
  ranked = write(tmp_path / "ranked.jsonl", [{"prompt": "a", "answers": ["b", "c", "d"]}] * 4)
  with pytest.raises(ValueError, match="data must be pairs; .* has rankings of 3 answers"):
    dpo.main(dpo.Config(data=ranked, **SMALL, run_dir=str(tmp_path / "run")))
  prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"{n}+1="} for n in range(20)])
  options = dict(objective="vapo", task=prompts, rewards=("tests.test_rlhf_experiments:digits",))
  with pytest.raises(ValueError, match="'vapo' imitates solved completions; task .* knows of none"):
    ppo.main(ppo.Config(**SMALL, **ROLLOUTS, **options, run_dir=str(tmp_path / "run")))
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_stages_of_rlhf_in_one_program(tmp_path, capsys):
  sizes = dict(width=32, warmup_steps=2, reward_steps=2, pairs=8, rollouts=10, num_prompts=2, group_size=2)
  compiled_rlhf.main(compiled_rlhf.Config(run_dir=str(tmp_path / "run"), seeds=2, **sizes))
  assert "accuracy of the reward model" in capsys.readouterr().out
  with np.load(tmp_path / "run" / "results.npz") as results:
    assert results["train/reward/learned"].shape == (2, 10) and np.isfinite(results["train/reward/learned"]).all()
    np.testing.assert_array_equal(results["train/reward/learned"], results["train/reward"])  # the task's has no weight
    assert not np.array_equal(results["train/reward/addition-1"], results["train/reward"])
  with pytest.raises(ValueError, match="rollouts must be a multiple of 10"):
    compiled_rlhf.main(compiled_rlhf.Config(run_dir=str(tmp_path / "other"), rollouts=15))


def test_prompts_of_rlhf_differ_and_every_stage_has_as_many_of_each_answer():
  rows = rlhf.ask(np.random.default_rng(0), 22_000)
  assert len({row["prompt"] for row in rows}) == 22_000
  for row in rows[:100]:
    numbers = row["prompt"].removeprefix("max(").removesuffix(")=").split(",")
    assert row["answer"] == max(numbers) and row["wrong"] in numbers and row["wrong"] != row["answer"]
  for part in (rows[:10_000], rows[10_000:20_000], rows[20_000:]):
    answers = [row["answer"] for row in part]
    assert all(0.13 < answers.count(number) / len(answers) < 0.2 for number in "456789")


@pytest.mark.slow
def test_all_stages_of_rlhf_in_one_command(tmp_path):
  config = rlhf.Config(
    model="tiny",
    run_dir=str(tmp_path / "run"),
    demonstrations=1000,
    sft_steps=2,
    pairs=100,
    reward_steps=2,
    ppo_steps=2,
    ppo_prompts=8,
  )
  rlhf.main(config)
  assert {"demonstrations.jsonl", "preferences.jsonl", "sft", "reward_model", "ppo", "rlhf.png"} <= {
    path.name for path in (tmp_path / "run").iterdir()
  }
  of_sft, of_pairs, of_ppo = (
    {json.loads(line)["prompt"] for line in (tmp_path / "run" / f"{name}.jsonl").read_text().splitlines()}
    for name in ("demonstrations", "preferences", "prompts")
  )
  assert len(of_sft) == 1000 and of_pairs and len(of_ppo) == 2000  # every stage has prompts of its own
  assert not (of_sft & of_pairs or of_sft & of_ppo or of_pairs & of_ppo)
  with pytest.raises(ValueError, match="kl_coef must be positive"):
    rlhf.main(dataclasses.replace(config, kl_coef=0.0))
  with pytest.raises(ValueError, match="must be at most 50000 together"):
    rlhf.main(dataclasses.replace(config, pairs=50_000))
  with pytest.raises(ValueError, match="num_prompts .* must each be a multiple"):  # before any stage has run
    rlhf.main(dataclasses.replace(config, ppo_prompts=7, run_dir=str(tmp_path / "other")))
  assert not (tmp_path / "other").exists()
  with pytest.raises(ValueError, match="is not empty; choose a new --run-dir, or go on: --resume "):
    rlhf.main(config)
  with pytest.raises(ValueError, match="holds a run with other settings: seed"):
    rlhf.main(dataclasses.replace(config, seed=1, resume=True))
  rlhf.main(dataclasses.replace(config, resume=True))
