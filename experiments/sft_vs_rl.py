"""Supervised learning against reinforcement learning: same model, same number of answers, short and longer problems.

    python -m experiments.sft_vs_rl
    python -m experiments.sft_vs_rl --task addition --task-options digits=2 --longer digits=3

Both go on from the same supervised warm-up and see the same number of answers an update: one learns from fresh right
answers, the other from its own, judged. Then both answer problems of the lengths that they were trained on, and longer
ones, greedily. First the identity behind it is checked: cross-entropy is the policy gradient with reward 1 on labels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.compiled_configs import TaskConfig
from rl_jax.analysis.comparison import cell
from rl_jax.models.transformer import Policy, policy
from rl_jax.objectives import load, sft
from rl_jax.objectives.base import Inputs, Objective, on_policy_gradient
from rl_jax.ops import aggregation
from rl_jax.rollouts import device
from rl_jax.runs.settings import require_at_least, run_script
from rl_jax.state import Forward, Sequences
from rl_jax.tasks import on_device
from rl_jax.tasks.load import parse_options
from rl_jax.tasks.on_device import base
from rl_jax.train import compiled
from rl_jax.train.forward import make_forward


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
  task_options: tuple[str, ...] = ("digits=2",)  # options of the problems to learn from
  longer: tuple[str, ...] = ("shortest=3", "digits=3")  # options of the longer problems
  updates: int = 400  # updates of each method; an update sees num_prompts * group_size answers

  def check(self) -> None:
    require_at_least(self, 1, ("warmup_steps", "updates"))
    super().check()


def main(config: Config) -> None:
  config.check()
  short = config.load_task()
  longer = on_device.load(config.task, **parse_options(config.longer))
  # A model reads any length; the room for answers is that of the longer problems.
  tasks = {"as trained": short._replace(max_new_tokens=longer.max_new_tokens), "longer": longer}
  model = policy(config.make_shape(short))
  forward = make_forward(model)
  print(f"largest difference of the two gradients: {identity(model, forward, short):.1e}")
  results = jax.jit(jax.vmap(lambda key: train(config, short, tasks, model, forward, key)))(
    jax.random.split(jax.random.key(config.seed), config.seeds)
  )
  table = Table("exact match", *tasks, title=f"{short.name}, longer: {longer.name}")
  for method in ("warm-up", "supervised", "reinforcement"):
    table.add_row(method, *(cell(np.asarray(results[method][name]), 3) for name in tasks))
  Console().print(table)


def identity(model: Policy, forward: Forward, task: on_device.Task) -> float:
  """The largest difference between the gradient of cross-entropy and the policy gradient with reward 1."""
  problems = base.sample(task, jax.random.key(0), 64)
  tokens, mask = (x[:, None] for x in base.demonstrate(task, problems.data))
  sequences, params = Sequences(problems.prompts, problems.prompt_mask, tokens, mask), model.init(jax.random.key(1))

  def gradient(objective: Objective) -> Any:
    given = Inputs(mask, advantages=jnp.ones(mask.shape))
    return jax.grad(
      lambda params: objective.loss(given._replace(logp=forward(params, sequences).logp), objective.weight(given))[0]
    )(params)

  cross_entropy, reward_one = gradient(sft.objective()), gradient(on_policy_gradient(aggregation.token_mean()))
  differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), cross_entropy, reward_one)
  return max(jax.tree.leaves(differences))


def train(
  config: Config,
  task: on_device.Task,
  tasks: dict[str, on_device.Task],
  model: Policy,
  forward: Forward,
  key: jax.Array,
) -> dict[str, dict[str, jax.Array]]:
  """Returns `{method: {length: exact match}}` of one seed, to be mapped over seeds."""
  start_key, sft_key = jax.random.split(key)
  sizes, optimizer = compiled.Config(steps=config.updates, **config.sizes), config.make_optimizer()
  run = compiled.compiled(task, model, load("dapo"), optimizer, sizes, warmup_optimizer=config.make_warmup_optimizer())
  start, _ = run.start(start_key)
  examples = config.num_prompts * config.group_size
  supervise = compiled.make_warmup(task, forward, optimizer, steps=config.updates, examples=examples)
  params = {
    "warm-up": start.policy.params,
    "supervised": supervise(start.policy.params, sft_key),
    "reinforcement": run.advance(start)[0].policy.params,
  }
  return {method: {name: solved(model, each, tasks[name]) for name in tasks} for method, each in params.items()}


def solved(model: Policy, params: Any, task: on_device.Task) -> jax.Array:
  complete = device.make_complete(task, model, group_size=1, temperature=0.0)
  judgment, _ = device.make_judge(task)(complete(params, base.sample(task, jax.random.key(1), 512), jax.random.key(0)))
  return jnp.mean(jnp.asarray(judgment.solved))


if __name__ == "__main__":
  run_script(main, Config, module="experiments.sft_vs_rl", description=__doc__, kept="nothing is kept")
