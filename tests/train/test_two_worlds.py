"""Host and device make the same updates: a task judged by Python functions, and the same one in a compiled program."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import devices, objectives
from rl_jax.models import heads, presets
from rl_jax.models.transformer import policy
from rl_jax.ops import kl
from rl_jax.ops.shaping import Shaping
from rl_jax.runs.checkpoint import open_checkpoints
from rl_jax.runs.directory import RunDirectory, read_lines
from rl_jax.tasks import on_device
from rl_jax.tasks.on_device.host import to_host
from rl_jax.train import loop
from rl_jax.train.compiled import Config, compiled
from rl_jax.train.control import adaptive_entropy, adaptive_kl, make_control
from rl_jax.train.forward import make_forward, make_values
from rl_jax.train.step import make_train_step
from tests.fakes import text_rollouts

TASK = on_device.load("sorting", length=2)
SHAPE = presets.small(TASK.vocab_size, layers=1, width=32)
MODEL = policy(SHAPE)
CRITIC = heads.with_value_head(MODEL, SHAPE.embed_dim)
MESH = devices.make_mesh(data=1, devices=jax.devices()[:1])
OF_THE_HOST = {"step", "seconds", "seconds/rollout", "tokens_per_second", "compiles", "peak_gib", "prompts_skipped"}
REUSED = dict(epochs=2, minibatches=2)


def reward_model(sequences):
  """A fixed function of the real tokens: differs within groups, whatever the padding."""
  tokens = jnp.where(sequences.completion_mask != 0, sequences.completions, 0)
  return 0.01 * jnp.sum(tokens, axis=-1) + 0.05 * jnp.sum(sequences.completion_mask, axis=-1)


class World(NamedTuple):
  """A run that both worlds can make."""

  algorithm: objectives.Algorithm
  model: object
  config: Config
  reward_model: object = None
  controllers: tuple = ()


def fit_on_the_host(folder, start, optimizer, world):
  """The run by `loop.fit`, from the same state: text prompts, rewards on the host."""
  algorithm, model, config = world.algorithm, world.model, world.config
  forward, put = make_forward(model), partial(devices.put, mesh=MESH)
  collect = text_rollouts(
    to_host(TASK, key=start.keys().problems, batch=config.num_prompts, evaluation_size=1),
    presets.character_tokenizer(TASK.characters),
    model,
    algorithm,
    num_prompts=config.num_prompts,
    group_size=config.group_size,
    max_new_tokens=TASK.max_new_tokens,
    max_prompt_tokens=16,
    on_policy=config.schedule.on_policy,
    shaping=Shaping(spread=config.spread or None, kl=kl.k1 if config.kl_coef else None),
    reward_model=None if world.reward_model is None else jax.jit(world.reward_model),
    values=None if model.value is None else jax.jit(make_values(model)),
    put=put,
  ).collect
  with RunDirectory(folder, {}, resume=False) as run, open_checkpoints(folder / "checkpoints") as checkpoints:
    fitted, _ = loop.fit(
      devices.replicate(start, MESH),
      steps=config.steps,
      collect=collect,
      update=devices.jit_step(make_train_step(forward, algorithm.objective, optimizer), MESH),
      run=run,
      checkpoints=checkpoints,
      schedule=config.schedule,
      put=put,
      control=jax.jit(make_control(forward, world.controllers)) if world.controllers else None,
    )
  return fitted, read_lines(folder, "metrics.jsonl")


WORLDS = {
  "grpo on-policy": World(objectives.load("grpo", kl_coef=0.1), MODEL, Config(steps=3, num_prompts=4, group_size=4)),
  "grpo off-policy": World(
    objectives.load("grpo", kl_coef=0.1), MODEL, Config(steps=3, num_prompts=4, group_size=4, **REUSED)
  ),
  "remax": World(objectives.load("remax"), MODEL, Config(steps=3, num_prompts=4, group_size=4)),
  "ppo with critic, KL and reward model": World(
    objectives.load("ppo", lam=0.9, value_coef=0.5),
    CRITIC,
    Config(steps=3, num_prompts=4, group_size=4, kl_coef=0.1, **REUSED),
    reward_model,
    (adaptive_kl(target=0.05, horizon=100.0, samples=16),),
  ),
  "rewards that are spread, and a bonus that rises": World(
    objectives.load("ppo", moving=("entropy_coef",)),
    CRITIC,
    Config(steps=3, num_prompts=4, group_size=4, spread=0.5, **REUSED),
    None,
    (adaptive_entropy(target=3.0, delta=0.01),),
  ),
}


@pytest.mark.parametrize(
  "world",
  [
    pytest.param(world, id=name, marks=() if name == "grpo off-policy" else pytest.mark.slow)
    for name, world in WORLDS.items()
  ],
)
def test_host_and_device_make_the_same_updates(tmp_path, world):
  config, optimizer = world.config, optax.adam(1e-2)
  run = compiled(
    TASK,
    world.model,
    world.algorithm,
    optimizer,
    config,
    controllers=world.controllers,
    reward_model=world.reward_model,
  )
  start, _ = jax.jit(run.start)(jax.random.key(3))
  fitted, rows = fit_on_the_host(tmp_path, start, optimizer, world)
  state, history = jax.jit(run.advance)(start)
  assert int(state.policy.step) == int(fitted.policy.step) == config.steps * config.epochs * config.minibatches
  assert int(state.running.position) == int(fitted.running.position) == config.steps * config.num_prompts
  chex.assert_trees_all_close(state.policy.params, jax.device_get(fitted.policy.params), rtol=1e-5, atol=1e-5)
  chex.assert_trees_all_close(state.policy.coefficients, fitted.policy.coefficients, rtol=1e-5)
  moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), state.policy.params, start.policy.params)
  assert max(jax.tree.leaves(moved)) > 1e-2
  assert len(rows) == config.steps and set(history.train) == set(rows[0]) - OF_THE_HOST
  for name, values in history.train.items():
    np.testing.assert_allclose(values, [row[name] for row in rows], rtol=1e-4, atol=1e-5, err_msg=name)
  for name, values in start.policy.coefficients.items():  # a controller moved each after every rollout
    assert len({float(values), *np.asarray(history.train[name]).tolist()}) == config.steps, name
  if world.reward_model is not None:
    assert {"reward/learned", f"reward/{TASK.name}", "explained_variance", "kl_reward"} <= set(history.train)
