"""Host and device make the same updates: a task judged by Python functions, and the same one in a compiled program."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.devices import Devices, make_mesh, replicate
from rl_jax.models import heads, presets
from rl_jax.models.transformer import policy
from rl_jax.ops import kl
from rl_jax.ops.shaping import Shaping
from rl_jax.runs.checkpoint import open_checkpoints
from rl_jax.runs.directory import RunDirectory, read_lines
from rl_jax.tasks import on_device
from rl_jax.tasks.on_device.host import to_host
from rl_jax.tasks.reading import Reader
from rl_jax.tasks.text import make_prompts
from rl_jax.train import loop
from rl_jax.train.actors import make_actors, make_learner
from rl_jax.train.compiled import Config, compiled
from rl_jax.train.control import adaptive_entropy, adaptive_kl, make_control
from rl_jax.train.step import make_train_step
from rl_jax.train.text_rollouts import make_text_rollouts

TASK = on_device.load("sorting", length=2)
SHAPE = presets.small(TASK.vocab_size, layers=1, width=32)
MODEL = policy(SHAPE)
OF_THE_HOST = {"step", "seconds", "seconds/rollout", "tokens_per_second", "compiles", "peak_gib", "prompts_skipped"}
REUSED = dict(epochs=2, minibatches=2)


def reward_model(sequences):
  """A fixed function of the real tokens: differs within groups, whatever the padding."""
  tokens = jnp.where(sequences.completion_mask != 0, sequences.completions, 0)
  return 0.01 * jnp.sum(tokens, axis=-1) + 0.05 * jnp.sum(sequences.completion_mask, axis=-1)


class World(NamedTuple):
  """A run that both worlds can make."""

  algorithm: objectives.Algorithm
  critic: str
  config: Config
  reward_model: object = None
  controllers: tuple = ()


def on_the_device(critic):
  """The model of a compiled run, whose parameters are called as a learner calls them."""
  if critic == "shared":
    return heads.with_value_head(MODEL, SHAPE.embed_dim)
  return dataclasses.replace(
    MODEL,
    init=lambda key: {"policy": MODEL.init(key)},
    apply=lambda params, *args, **kwargs: MODEL.apply(params["policy"], *args, **kwargs),
    unembed=lambda params: MODEL.unembed(params["policy"]),
  )


def fit_on_the_host(folder, start, optimizer, world):
  """The run by `loop.fit`, from the same state, as scripts compose it: text prompts, rewards on the host."""
  algorithm, config, devices = world.algorithm, world.config, Devices(make_mesh(data=1, devices=jax.devices()[:1]))
  tokenizer = presets.character_tokenizer(TASK.characters)
  ends = (tokenizer.eos_token_id,)
  learner = make_learner(presets.Model(MODEL, None, SHAPE, None, tokenizer, ends))
  actors = make_actors(learner, world.critic, None, temperature=config.temperature)
  collect = make_text_rollouts(
    make_prompts(
      to_host(TASK, key=start.keys().problems, batch=config.num_prompts, evaluation_size=1),
      Reader(tokenizer, ends),
      max_prompt_tokens=16,
    ),
    learner,
    algorithm,
    devices,
    num_prompts=config.num_prompts,
    group_size=config.group_size,
    max_new_tokens=TASK.max_new_tokens,
    schedule=config.schedule,
    shaping=Shaping(spread=config.spread or None, kl=kl.k1 if config.kl_coef else None),
    reward_model=None if world.reward_model is None else jax.jit(world.reward_model),
    values=actors.values,
  ).collect
  reference = None if start.ref_params is None else start.ref_params["policy"]
  with RunDirectory(folder, {}, resume=False) as run, open_checkpoints(folder / "checkpoints") as checkpoints:
    fitted, _ = loop.fit(
      replicate(start._replace(ref_params=reference), devices.mesh),
      steps=config.steps,
      collect=collect,
      update=devices.step(make_train_step(actors.forward, algorithm.objective, optimizer)),
      run=run,
      checkpoints=checkpoints,
      schedule=config.schedule,
      put=devices.put,
      control=jax.jit(make_control(actors.forward, world.controllers)) if world.controllers else None,
    )
  return fitted, read_lines(folder, "metrics.jsonl")


WORLDS = {
  "grpo on-policy": World(objectives.load("grpo", kl_coef=0.1), "none", Config(steps=3, num_prompts=4, group_size=4)),
  "grpo off-policy": World(
    objectives.load("grpo", kl_coef=0.1), "none", Config(steps=3, num_prompts=4, group_size=4, **REUSED)
  ),
  "remax": World(objectives.load("remax"), "none", Config(steps=3, num_prompts=4, group_size=4)),
  "ppo with critic, KL and reward model": World(
    objectives.load("ppo", lam=0.9, value_coef=0.5),
    "shared",
    Config(steps=3, num_prompts=4, group_size=4, kl_coef=0.1, **REUSED),
    reward_model,
    (adaptive_kl(target=0.05, horizon=100.0, samples=16),),
  ),
  "rewards that are spread, and a bonus that rises": World(
    objectives.load("ppo", moving=("entropy_coef",)),
    "shared",
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
    on_the_device(world.critic),
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
