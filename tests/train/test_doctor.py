"""Runs with one fault each, which the doctor names; and healthy ones, of which it says nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import devices, objectives
from rl_jax.analysis import doctor
from rl_jax.models.presets import character_tokenizer
from rl_jax.objectives import grpo
from rl_jax.objectives.base import add, kl_penalty, scale
from rl_jax.objectives.loading import algorithm as make_algorithm
from rl_jax.ops import aggregation, kl
from rl_jax.runs.checkpoint import open_checkpoints
from rl_jax.runs.directory import RunDirectory
from rl_jax.state import RLState
from rl_jax.tasks import Task
from rl_jax.tasks.rewards import Reward
from rl_jax.train import loop
from rl_jax.train.forward import make_forward
from rl_jax.train.schedule import Schedule
from rl_jax.train.step import make_train_step
from tests.fakes import bigram, bigram_params, text_rollouts

TOKENIZER = character_tokenizer("0123456789")
MESH = devices.make_mesh(data=1, devices=jax.devices()[:1])
STOP = TOKENIZER("7")["input_ids"][-1]
LIMIT = 12


def right(completions, **_):
  return [text.endswith("37") for text in completions]


def graded(completions, **_):
  """What is right is ended by a 7 after a 3; a 3 alone is worth something."""
  return [0.5 * text.endswith("37") + 0.5 * ("3" in text) for text in completions]


GRADED = (Reward(graded, 1.0, "graded"),)


def shuffled(completions, **_):
  return list(np.random.default_rng(len("".join(completions))).permutation(graded(completions)))


def length(completions, **_):
  return [float(len(text)) for text in completions]


def short(completions, **_):
  return [len(text) < 4 for text in completions]


def fit(
  folder,
  *,
  steps=30,
  rewards=GRADED,
  solved=right,
  learning_rate=0.02,
  algorithm=None,
  schedule=Schedule(),
  temperature=1.0,
  change=lambda collect: collect,
  prompt=lambda i: str(i % 89 + 10),
  max_new_tokens=LIMIT,
):
  task = Task("threes", lambda i: {"prompt": prompt(i)}, [{"prompt": "12"}], rewards, solved=solved)
  algorithm = algorithm or objectives.load("grpo", kl_coef=0.0)
  optimizer, put = optax.adam(learning_rate), partial(devices.put, mesh=MESH)
  rollouts = text_rollouts(
    task,
    TOKENIZER,
    bigram(),
    algorithm,
    num_prompts=8,
    group_size=8,
    max_new_tokens=max_new_tokens,
    stop_tokens=[TOKENIZER.eos_token_id, STOP],
    on_policy=schedule.on_policy,
    put=put,
  )
  forward = make_forward(bigram(), temperature=temperature)
  state = RLState.create(bigram_params(), optimizer, jax.random.key(1), keep_reference=True)
  settings = {"max_new_tokens": max_new_tokens, "max_prompt_tokens": 8, **schedule._asdict()}
  with RunDirectory(folder, settings, resume=False) as run, open_checkpoints(folder / "checkpoints") as checkpoints:
    loop.fit(
      devices.replicate(state, MESH),
      steps=steps,
      collect=change(rollouts.collect),
      update=devices.jit_step(make_train_step(forward, algorithm.objective, optimizer), MESH),
      run=run,
      checkpoints=checkpoints,
      schedule=schedule,
      put=put,
    )
  return doctor.examine(folder)


def stale(collect):
  """Samples are those of the first policy."""
  first = []

  def collect_stale(state):
    first.append(jax.tree.map(jnp.copy, state.policy))
    collected = collect(state._replace(policy=first[0]))
    return collected._replace(state=collected.state._replace(policy=state.policy))

  return collect_stale


def with_k1(weight):
  penalty = scale(weight, kl_penalty(kl.k1, aggregation.sequence_mean()))
  return make_algorithm(add(policy=grpo.objective(kl_coef=0.0), kl=penalty), grpo.advantage())


FAULTS = {
  "temperature": (dict(temperature=2.0), "sampler and learner disagree"),
  "stale": (dict(change=stale, learning_rate=0.1), "sampler and learner disagree"),
  "k1": (dict(algorithm=with_k1(0.1), learning_rate=0.002), "KL without a gradient"),
  "shuffled": (dict(rewards=(Reward(shuffled, 1.0, "shuffled"),)), "reward is not a function"),
  "truncated": (dict(max_new_tokens=2, solved=lambda completions, **_: [False] * len(completions)), "at the limit"),
  "constant": (dict(rewards=(Reward(lambda completions, **_: [1.0] * len(completions), 1.0, "one"),)), "variance"),
  "hacked": (dict(rewards=(Reward(length, 1.0, "length"),), solved=short), "reward without solving"),
  "never": (
    dict(rewards=(*GRADED, Reward(lambda completions, **_: [None] * len(completions), 1.0, "x"))),
    "reward that never applies",
  ),
  "tight": (
    dict(schedule=Schedule(4, 2), algorithm=objectives.load("grpo", kl_coef=0.0, clip_low=1e-3, clip_high=1e-3)),
    "clipped too often",
  ),
  "frozen": (dict(learning_rate=0.0, schedule=Schedule(2, 2)), "updates without effect"),
  "long prompts": (dict(prompt=lambda i: "1" * (2 + 8 * (i % 5 == 0))), "prompts passed over"),
  "unheld": (dict(learning_rate=0.05, algorithm=objectives.load("grpo", kl_coef=1e-6), steps=60), "KL runaway"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(tmp_path, fault):
  settings, name = FAULTS[fault]
  found = fit(tmp_path / "run", **settings)
  assert any(name in finding.name for finding in found), [finding.describe() for finding in found]


HEALTHY = {
  "grpo": dict(steps=40, learning_rate=0.01),
  "several updates": dict(steps=40, learning_rate=0.005, schedule=Schedule(2, 2)),
  "with a KL": dict(steps=40, learning_rate=0.01, algorithm=objectives.load("dapo")),
}


@pytest.mark.parametrize("run", HEALTHY)
def test_nothing_is_said_of_a_healthy_run(tmp_path, run):
  found = fit(tmp_path / "run", **HEALTHY[run])
  assert not found, [finding.describe() for finding in found]
