"""Controllers in both loops: coefficients follow what is logged, and a resumed run has the same ones."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import devices, objectives
from rl_jax.models import heads, presets
from rl_jax.models.presets import character_tokenizer
from rl_jax.models.transformer import policy
from rl_jax.objectives.base import Inputs
from rl_jax.runs.checkpoint import open_checkpoints
from rl_jax.runs.directory import RunDirectory, read_lines
from rl_jax.state import Batch, ModelOutputs, RLState, TrainState
from rl_jax.tasks import Task, on_device
from rl_jax.tasks.reading import Reader
from rl_jax.tasks.rewards import Reward
from rl_jax.tasks.text import make_prompts
from rl_jax.train import loop
from rl_jax.train.actors import make_learner
from rl_jax.train.compiled import Config, compiled
from rl_jax.train.control import adaptive_beta, adaptive_entropy, adaptive_kl, initial, kl_band, make_control
from rl_jax.train.forward import make_forward, make_values
from rl_jax.train.schedule import Schedule
from rl_jax.train.step import make_train_step
from rl_jax.train.text_rollouts import make_text_rollouts
from tests.fakes import WIDTH, bigram, bigram_params, text_rollouts

TOKENIZER = character_tokenizer("0123456789")
MODEL = dataclasses.replace(bigram(), value=lambda params, hidden: hidden @ params["value"])
PARAMS = bigram_params() | {"value": jnp.zeros(WIDTH)}
FORWARD = make_forward(MODEL)
VALUES = jax.jit(make_values(MODEL))


def sevens(completions, **_):
  return [text.count("7") / max(len(text), 1) for text in completions]


TASK = Task("sevens", lambda i: {"prompt": str(i % 89 + 10)}, [{"prompt": "12"}], (Reward(sevens, 1.0, "sevens"),))


def fit(folder, algorithm, controllers, *, steps, schedule, learning_rate=0.03, resume=False):
  optimizer = optax.adam(learning_rate, eps=1e-4)
  collect = text_rollouts(
    TASK,
    TOKENIZER,
    MODEL,
    algorithm,
    num_prompts=4,
    group_size=4,
    max_new_tokens=5,
    on_policy=schedule.on_policy,
    values=VALUES,
  ).collect
  state = RLState.create(
    PARAMS, optimizer, jax.random.key(1), keep_reference=False, coefficients=algorithm.coefficients
  )
  with RunDirectory(folder, {}, resume=resume) as run, open_checkpoints(folder / "checkpoints") as checkpoints:
    resumed = checkpoints.latest()
    run.rewind(-1 if resumed is None else resumed)
    state, _ = loop.fit(
      checkpoints.resume(state),
      steps=steps,
      collect=collect,
      update=jax.jit(make_train_step(FORWARD, algorithm.objective, optimizer)),
      run=run,
      checkpoints=checkpoints,
      schedule=schedule,
      control=jax.jit(make_control(FORWARD, controllers)),
    )
  return state, read_lines(folder, "metrics.jsonl")


def followed(betas, kls, *, target):
  """What PPO's rule makes of the first coefficient: twice above 1.5 targets, half below 1 / 1.5."""
  expected = [betas[0]]
  for seen in kls:
    expected.append(expected[-1] * (2.0 if seen > 1.5 * target else 0.5 if seen < target / 1.5 else 1.0))
  return expected


def test_the_divergence_is_measured_after_the_last_update_by_hand():
  """k3 of old against new is r - 1 - log r with r = new / old: 1 - log 2 for r = 2, and 0 for r = 1."""
  old = jnp.log(jnp.array([[[0.25, 0.5, 0.1]]]))
  new = jnp.log(jnp.array([[[0.5, 0.5, 0.9]]]))
  mask = jnp.array([[[1, 1, 0]]])
  control = make_control(
    lambda params, sequences: ModelOutputs(params + sequences, sequences), (adaptive_beta(target=0.2),)
  )
  state = TrainState.create(jnp.zeros(()), optax.sgd(0.1), coefficients={"beta": 3.0, "other": 7.0})
  moved, measured = control(state, Batch(new, Inputs(mask, old_logp=old)), {"loss": 1.0})
  seen = (1 - np.log(2)) / 2
  assert float(measured["kl_update"]) == pytest.approx(seen, rel=1e-5)  # 0.153, between 0.2 / 1.5 and 0.2 * 1.5
  assert moved.coefficients == {"beta": 3.0, "other": 7.0}
  for target, beta in ((0.1, 6.0), (0.5, 1.5)):
    control = make_control(
      lambda params, sequences: ModelOutputs(params + sequences, sequences), (adaptive_beta(target=target),)
    )
    assert control(state, Batch(new, Inputs(mask, old_logp=old)), {})[0].coefficients == {"beta": beta, "other": 7.0}


def test_no_pass_runs_that_no_controller_reads():
  def never(params, sequences):
    raise AssertionError("a pass")

  state = TrainState.create(jnp.zeros(()), optax.sgd(0.1), coefficients={"kl_coef": 0.1})
  batch = Batch(jnp.zeros((1, 1, 1)), Inputs(jnp.ones((1, 1, 1))))
  moved, measured = make_control(never, (kl_band(low=1.0, high=2.0),))(state, batch, {"kl_completion": 3.0})
  assert not measured and float(moved.coefficients["kl_coef"]) == pytest.approx(0.2)
  same, measured = make_control(never, ())(state, batch, {})
  assert not measured and same.coefficients == state.coefficients


@pytest.mark.parametrize("target", [1e-6, 0.02, 10.0])
def test_beta_follows_the_divergence_in_the_loop(tmp_path, target):
  algorithm = objectives.load("ppo_kl", moving=("beta",), beta=0.25, value_coef=0.5)
  assert algorithm.coefficients == {"beta": 0.25}
  state, rows = fit(tmp_path, algorithm, (adaptive_beta(target=target),), steps=4, schedule=Schedule(2, 2))
  betas, kls = [row["beta"] for row in rows], [row["kl_update"] for row in rows]
  expected = followed(betas, kls, target=target)
  assert betas == expected[:4] and float(state.policy.coefficients["beta"]) == expected[4]
  assert all(seen > 0 for seen in kls) and betas[0] == 0.25
  if target != 0.02:
    assert expected[4] == 0.25 * (2 if target < 0.02 else 0.5) ** 4


def test_a_resumed_run_has_the_same_coefficients(tmp_path):
  algorithm = objectives.load("ppo_kl", moving=("beta",), value_coef=0.5)
  options = dict(schedule=Schedule(2, 2))
  controllers = (adaptive_beta(target=0.02),)
  whole, rows = fit(tmp_path / "whole", algorithm, controllers, steps=4, **options)
  fit(tmp_path / "parts", algorithm, controllers, steps=2, **options)
  parts, resumed = fit(tmp_path / "parts", algorithm, controllers, steps=4, resume=True, **options)
  for one, other in zip(jax.tree.leaves(whole.policy), jax.tree.leaves(parts.policy), strict=True):
    np.testing.assert_array_equal(one, other)
  assert [row["beta"] for row in rows] == [row["beta"] for row in resumed]
  assert [row["kl_update"] for row in rows] == [row["kl_update"] for row in resumed]
  assert float(whole.policy.coefficients["beta"]) != 1.0


DEVICE_TASK = on_device.load("sorting", length=2)
SHAPE = presets.small(DEVICE_TASK.vocab_size, layers=1, width=32)
CRITIC = heads.with_value_head(policy(SHAPE), SHAPE.embed_dim)


@pytest.mark.slow
def test_beta_follows_the_divergence_in_a_compiled_run():
  algorithm = objectives.load("ppo_kl", moving=("beta",), beta=0.25)
  config = Config(steps=6, num_prompts=4, group_size=4, epochs=2, minibatches=2)

  @jax.jit
  def train(target):
    controllers = (adaptive_beta(target=target),)
    return compiled(DEVICE_TASK, CRITIC, algorithm, optax.adam(3e-3), config, controllers=controllers)(
      jax.random.key(0)
    )

  for target in (1e-6, 0.002, 10.0):
    state, history = train(target)
    betas, kls = (np.asarray(history.train[name]).tolist() for name in ("beta", "kl_update"))
    expected = followed(betas, kls, target=target)
    assert betas == expected[:6] and float(state.policy.coefficients["beta"]) == expected[6]
    assert betas[0] == 0.25 and all(seen > 0 for seen in kls)
    if target == 10.0:
      assert expected[6] == 0.25 * 0.5**6


@pytest.mark.parametrize("measured", [np.nan, np.inf])
@pytest.mark.parametrize(
  "controller",
  [adaptive_kl(target=6.0, horizon=100.0, samples=8), kl_band(low=1.0, high=2.0), adaptive_entropy(target=0.2)],
)
def test_what_is_not_finite_moves_nothing(controller, measured):
  start = {name: 0.1 for name in (*controller.moves, *controller.kept)}
  state = TrainState.create({}, optax.sgd(0.1), coefficients=start)
  control = make_control(FORWARD, (controller,))
  batch = Batch(None, Inputs(mask=jnp.ones((1, 1))))
  held, _ = control(state, batch, {controller.reads: measured})
  assert {name: float(value) for name, value in held.coefficients.items()} == pytest.approx(start)
  moved, _ = control(state, batch, {controller.reads: 0.05})
  assert {name: float(value) for name, value in moved.coefficients.items()} != pytest.approx(start)


def test_one_update_a_rollout_is_refused():
  algorithm = objectives.load("ppo_kl", moving=("beta",))
  config = Config(steps=1, num_prompts=4, group_size=4)
  with pytest.raises(ValueError, match="'ppo_kl' needs more than one update a rollout: raise epochs or minibatches"):
    compiled(DEVICE_TASK, CRITIC, algorithm, optax.sgd(0.1), config)
  model = presets.load("tiny")
  prompts = make_prompts(TASK, Reader(model.tokenizer, model.eos_tokens))
  with pytest.raises(ValueError, match="'ppo_kl' needs more than one update a rollout: raise epochs or minibatches"):
    make_text_rollouts(
      prompts,
      make_learner(model),
      algorithm,
      devices.Devices(),
      num_prompts=4,
      group_size=4,
      max_new_tokens=4,
      values=VALUES,
    )


def test_what_a_run_begins_with():
  """The objective's and the reward's coefficients, and those that a controller keeps for itself."""
  algorithm = objectives.load("reinforce", moving=("entropy_coef",), entropy_coef=0.5)
  controllers = (adaptive_entropy(target=0.2), adaptive_kl(target=6.0, horizon=1000.0, samples=16))
  found = initial(controllers, {**algorithm.coefficients, "kl_coef": 0.1}, Schedule())
  assert found == {"entropy_coef": 0.5, "kl_coef": 0.1, "entropy_kept": 0.0}
  with pytest.raises(
    ValueError, match="a controller moves kl_coef, which is no coefficient of this run; it has entropy_"
  ):
    initial(controllers, algorithm.coefficients, Schedule())
  with pytest.raises(ValueError, match="controller of beta follows kl_update: it needs several updates a rollout"):
    initial((adaptive_beta(target=0.1),), {"beta": 1.0}, Schedule())
  assert initial((adaptive_beta(target=0.1),), {"beta": 1.0}, Schedule(1, 2)) == {"beta": 1.0}


@pytest.mark.parametrize(
  ("target", "kept", "applied"),
  [
    # The entropy over 13 tokens is below log 13 = 2.56 and above 0: the weight rises by 0.005, and is applied at once.
    (3.0, [0.01, 0.015, 0.02, 0.025], [0, 0.015, 0.02, 0.025]),
    # Or it falls to 0, and is off meanwhile.
    (0.0, [0.01, 0.005, 0, 0], [0, 0, 0, 0]),
  ],
)
def test_the_entropy_bonus_follows_the_entropy(tmp_path, target, kept, applied):
  algorithm = objectives.load("reinforce", moving=("entropy_coef",))
  algorithm = algorithm._replace(coefficients={"entropy_coef": 0.0, "entropy_kept": 0.01})
  controllers = (adaptive_entropy(target=target),)
  state, rows = fit(tmp_path, algorithm, controllers, steps=3, schedule=Schedule())
  assert all(0 < row["entropy"] < np.log(13) for row in rows)
  last = {name: float(value) for name, value in state.policy.coefficients.items()}
  assert [row["entropy_kept"] for row in rows] + [last["entropy_kept"]] == pytest.approx(kept, abs=1e-7)
  assert [row["entropy_coef"] for row in rows] + [last["entropy_coef"]] == pytest.approx(applied, abs=1e-7)
  assert "kl_update" not in rows[0]


def test_a_bonus_that_was_raised_raises_the_entropy(tmp_path):
  """The same run with the bonus held at 0 ends with a lower entropy."""
  algorithm = objectives.load("reinforce", moving=("entropy_coef",))
  algorithm = algorithm._replace(coefficients={"entropy_coef": 0.0, "entropy_kept": 0.0})
  found = SimpleNamespace()
  for name, target in (("held", -1.0), ("raised", 3.0)):
    controllers = (adaptive_entropy(target=target, delta=2.0, high=5.0),)
    _, rows = fit(tmp_path / name, algorithm, controllers, steps=8, schedule=Schedule())
    setattr(found, name, [row["entropy"] for row in rows])
  assert found.held[0] == found.raised[0] and found.raised[-1] > found.held[-1] + 0.1
