"""Objectives with their advantages, by name and by the path of one's own: what they need, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax import objectives
from rl_jax.objectives.base import Inputs
from rl_jax.ops.estimates import Advantage, Experience

NO_REWARDS = {"cpo", "dpo", "kto", "orpo", "reward_model", "sft", "simpo"}  # they learn from examples or preferences
OWN = '''
"""As GRPO, with one setting of its own, and rewards as they are for advantages."""

from rl_jax.objectives.base import policy_gradient
from rl_jax.ops import aggregation, estimates, ratios, surrogates

several_updates = True
no_objective = 3


def advantage(*, factor=1.0):
  return estimates.per_completion(lambda rewards, mask: factor * rewards)


def objective(*, clip, floor=0.2):
  return policy_gradient(ratios.token(), surrogates.clip(low=floor, high=clip), aggregation.token_mean())


def bare():
  return objective(clip=0.2)
'''


def example(name):
  return getattr(objectives.find(name)[0], "example", {})


def value(algorithm, coefficients=None, *, ratio=2.0, advantage=1.0):
  """The loss of one token, which at ratio 2 and advantage 1 is `-(1 + clip_high)`."""
  inputs = Inputs(
    jnp.ones(1), advantages=jnp.full(1, advantage), logp=jnp.log(jnp.full(1, ratio)), old_logp=jnp.zeros(1)
  )
  objective = algorithm.objective(algorithm.coefficients if coefficients is None else coefficients)
  return objective.loss(inputs, objective.weight(inputs))[0]


@pytest.mark.parametrize("name", objectives.names())
def test_those_that_learn_from_rewards_have_an_advantage(name):
  algorithm = objectives.load(name, **example(name))
  assert algorithm.name == name and algorithm.needs
  if name not in NO_REWARDS:
    assert isinstance(algorithm.from_rewards(), Advantage)
    assert algorithm.from_rewards().needs <= set(Experience._fields)
    return
  assert algorithm.advantage is None
  with pytest.raises(
    ValueError, match=f"objective {name!r} does not learn from rewards: its module has no `advantage`"
  ):
    algorithm.from_rewards()


def test_those_that_do_not_are_among_the_names():
  assert set(objectives.names()) >= NO_REWARDS
  assert not set(objectives.names()) & {"base", "loading", "pairs", "__main__"}


@pytest.mark.parametrize("name", objectives.names())
def test_settings_that_nobody_reads_are_refused(name):
  with pytest.raises(ValueError, match=f"objective {name!r} makes no use of color; it has "):
    objectives.load(name, **example(name), color=1)


@pytest.mark.parametrize("name", [name for name in objectives.names() if example(name)])
def test_settings_without_a_default_are_required(name):
  required = next(iter(example(name)))
  with pytest.raises(ValueError, match=f"objective {name!r} needs the setting {required}"):
    objectives.load(name)


def test_refusals_name_what_is_known():
  with pytest.raises(ValueError, match="makes no use of clip_hihg, kl; it has clip_low, clip_high, kl_coef"):
    objectives.load("grpo", clip_hihg=0.3, kl=0.1)
  with pytest.raises(ValueError, match="unknown objective 'gpro'; there are cispo, .* and paths such as my_module:obj"):
    objectives.load("gpro")
  for part in ("base", "pairs", "loading", "__main__", ""):
    with pytest.raises(ValueError, match="unknown objective"):
      objectives.load(part)


def test_settings_reach_the_objective_and_its_advantage():
  np.testing.assert_allclose(value(objectives.load("dapo", clip_high=0.5)), -1.5, rtol=1e-6)
  rewards, ones = jnp.array([[[0.0, 1.0]]]), jnp.ones((1, 1, 2))
  experience = Experience(ones, rewards, ones[..., 0], ones[..., 0], values=jnp.array([[[0.5, 0.25]]]))
  algorithm = objectives.load("ppo", gamma=0.5, lam=0.0, whiten=False)
  # TD errors by hand: 0 + 0.5 * 0.25 - 0.5, and 1 - 0.25.
  np.testing.assert_allclose(algorithm.from_rewards().estimate(experience)["advantages"], [[[-0.375, 0.75]]])
  assert "old_values" not in objectives.load("ppo", value_coef=0).needs


def test_a_fallback_counts_where_there_is_such_a_setting_and_nothing_else_is_given():
  assert objectives.load("grpo", fallback={"length": 7}).needs == objectives.load("grpo").needs
  fallback = {"clip_high": 0.5}
  np.testing.assert_allclose(value(objectives.load("dapo", fallback=fallback)), -1.5, rtol=1e-6)
  np.testing.assert_allclose(value(objectives.load("dapo", fallback=fallback, clip_high=0.3)), -1.3, rtol=1e-6)
  objectives.load("dr_grpo", fallback={"length": 7})  # which requires it


def test_moving_settings_are_coefficients():
  algorithm = objectives.load("dapo", moving=["clip_high"])
  assert algorithm.coefficients == {"clip_high": 0.28}
  np.testing.assert_allclose(value(algorithm), -1.28, rtol=1e-6)
  np.testing.assert_allclose(value(algorithm, {"clip_high": 0.5}), -1.5, rtol=1e-6)
  started = objectives.load("dapo", moving=["clip_high"], clip_high=0.4)
  assert started.coefficients == {"clip_high": 0.4}
  moved = jax.jit(lambda high: value(algorithm, {"clip_high": high}))
  np.testing.assert_allclose([moved(0.25), moved(0.75)], [-1.25, -1.75], rtol=1e-6)
  with pytest.raises(ValueError, match="objective 'dapo' makes no use of kl_coef"):
    objectives.load("dapo", moving=["kl_coef"])
  with pytest.raises(ValueError, match="objective 'ppo' makes no use of lam"):  # the advantage's
    objectives.load("ppo", moving=["lam"])


@pytest.mark.parametrize(
  "name, setting, need", [("grpo", "kl_coef", "ref_logp"), ("reinforce", "entropy_coef", "entropy")]
)
def test_a_moving_coefficient_of_0_keeps_its_term(name, setting, need):
  assert need not in objectives.load(name, **{setting: 0.0}).needs
  assert need in objectives.load(name, moving=[setting], **{setting: 0.0}).needs


def test_settings_may_be_traced():
  swept = jax.jit(jax.vmap(lambda high: value(objectives.load("dapo", clip_high=high))))
  np.testing.assert_allclose(swept(jnp.array([0.25, 0.5])), [-1.25, -1.5], rtol=1e-6)
  ones = jnp.ones((1, 1, 2))
  experience = Experience(ones, jnp.array([[[0.0, 1.0]]]), ones[..., 0], ones[..., 0], values=0 * ones)

  def first(lam):
    advantage = objectives.load("ppo", lam=lam, whiten=False).from_rewards()
    return advantage.estimate(experience)["advantages"][0, 0, 0]

  np.testing.assert_allclose(jax.jit(jax.vmap(first))(jnp.array([0.0, 0.5, 1.0])), [0, 0.5, 1])


def test_a_module_of_one_s_own_is_found_by_its_path(tmp_path, monkeypatch):
  (tmp_path / "own_loading.py").write_text(OWN)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
  algorithm = objectives.load("own_loading:objective", clip=0.5, factor=3.0)
  assert algorithm.name == "own_loading:objective" and algorithm.several_updates
  assert objectives.settings_of("own_loading:objective") == ("clip", "floor", "factor")
  np.testing.assert_allclose(value(algorithm), -1.5, rtol=1e-6)
  ones = jnp.ones((1, 2, 1))
  experience = Experience(ones, jnp.array([[[1.0], [2.0]]]), ones[..., 0], ones[..., 0])
  np.testing.assert_array_equal(algorithm.from_rewards().estimate(experience)["advantages"].ravel(), [3, 6])
  np.testing.assert_allclose(value(objectives.load("own_loading:bare")), -1.2, rtol=1e-6)
  for path, message in (
    ("own_loading:objective", "objective 'own_loading:objective' needs the setting clip"),
    ("own_loading:other", "objective 'own_loading:other' cannot be imported: AttributeError"),
    ("own_loading:no_objective", "objective 'own_loading:no_objective' is not callable"),
    ("no_such_module:objective", "cannot be imported: ModuleNotFoundError"),
    ("own_loading:", "must read 'module:function'"),
  ):
    with pytest.raises(ValueError, match=message):
      objectives.load(path)


def test_an_algorithm_of_parts():
  module, factory = objectives.find("dapo")
  algorithm = objectives.algorithm(factory(clip_high=0.5), module.advantage(), name="mine")
  assert algorithm.name == "mine" and not algorithm.several_updates and algorithm.coefficients == {}
  np.testing.assert_allclose(value(algorithm), -1.5, rtol=1e-6)
  assert algorithm.needs == {"advantages", "logp", "old_logp"}


def test_every_module_is_an_attribute_of_the_package():
  for name in objectives.names():
    assert getattr(objectives, name).objective is objectives.find(name)[1]
  with pytest.raises(AttributeError, match="has no attribute 'gpro'"):
    _ = objectives.gpro


@pytest.mark.parametrize(
  ("advantage", "message"),
  [
    ("def advantage(*, length):\n  return made", "needs the setting length"),
    ("advantage = made", "must be a function that returns one"),
  ],
)
def test_an_advantage_that_cannot_be_made_is_named(advantage, message, tmp_path, monkeypatch):
  name = f"own_advantage_{len(message)}"
  made = "made = estimates.per_completion(lambda rewards, mask: rewards)"
  (tmp_path / f"{name}.py").write_text(OWN.replace("no_objective = 3", f"{made}\n{advantage}").split("\n\ndef adv")[0])
  with (tmp_path / f"{name}.py").open("a") as file:
    file.write("\n\n\ndef objective(**unused):\n  return None\n")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=message):
    objectives.load(f"{name}:objective")


@pytest.mark.parametrize(
  ("advantage", "objective", "message"),
  [
    ("lambda rewards, mask: rewards", "OBJECTIVE", "advantage must return an ops.estimates.Advantage, got function"),
    ("ADVANTAGE", "lambda inputs: 0.0", "must return an objectives.base.Objective, got function"),
  ],
)
def test_a_module_that_gives_something_else_is_named(tmp_path, monkeypatch, advantage, objective, message):
  code = f"""
from rl_jax.objectives import grpo
ADVANTAGE, OBJECTIVE = grpo.advantage(), grpo.objective(kl_coef=0)
def advantage(): return {advantage}
def objective(): return {objective}
"""
  name = f"gives_{abs(hash(message))}"
  (tmp_path / f"{name}.py").write_text(code)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=f"objective '{name}:objective'.* {message}"):
    objectives.load(f"{name}:objective")
