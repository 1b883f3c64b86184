"""All of RLHF as one compiled program, many seeds side by side: SFT, preferences, a reward model, PPO.

    python -m experiments.compiled_rlhf
    python -m experiments.compiled_rlhf --task sorting --task-options length=3 --kl-coef 0.02

The policy learns from demonstrations; pairs of its own answers are compared by the task's verifier; a reward model,
which starts from the policy, learns from the pairs that differ; PPO raises its score with the KL to the SFT policy in
the reward. The task's own reward is measured beside the learned one, so that over-optimization shows.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments.compiled_configs import TaskConfig
from rl_jax.analysis.comparison import cell
from rl_jax.analysis.figures import pyplot
from rl_jax.models import heads
from rl_jax.models.transformer import Policy, policy
from rl_jax.objectives import load, reward_model
from rl_jax.objectives.base import Inputs
from rl_jax.ops.metrics import Mean
from rl_jax.ops.selection import best_and_worst
from rl_jax.ops.statistics import bootstrap_interval, interquartile_mean
from rl_jax.rollouts import device
from rl_jax.runs import resources
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.settings import require_at_least, run_script
from rl_jax.state import Batch, ModelOutputs, RewardModel, Sequences, TrainState
from rl_jax.tasks import on_device
from rl_jax.tasks.on_device import base
from rl_jax.train import compiled
from rl_jax.train.forward import make_last_value
from rl_jax.train.step import make_train_step
from rl_jax.train.whole_run import Run

SHOWN = 6  # problems whose answers are printed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
  task_options: tuple[str, ...] = ("digits=1",)  # the task's settings, such as digits=3
  run_dir: str = "runs/compiled_rlhf"  # metrics and the figure
  warmup_steps: int = 100  # updates of SFT
  reward_steps: int = 300  # updates of the reward model, each on fresh pairs
  pairs: int = 128  # pairs an update
  reward_rate: float = 1e-3  # learning rate of Adam for the reward model
  rollouts: int = 300  # rollouts of PPO
  num_prompts: int = 64  # prompts a rollout
  group_size: int = 4  # completions a prompt
  kl_coef: float = 0.05  # weight of the KL in the reward

  def check(self) -> None:
    require_at_least(self, 1, ("reward_steps", "pairs"))
    require_at_least(self, 10, ("rollouts",))
    require_at_least(self, 0, ("reward_rate", "kl_coef"))
    if self.rollouts % 10 or self.num_prompts % 2:
      raise ValueError("rollouts must be a multiple of 10, and num_prompts of 2")
    super().check()


def main(config: Config) -> None:
  config.check()
  task = config.load_task()
  began = time.perf_counter()
  with RunDirectory(config.run_dir, dataclasses.asdict(config), resume=False) as run:
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    program = jax.jit(jax.vmap(lambda key: pipeline(config, task, key))).lower(keys).compile()
    print(f"compiled in {time.perf_counter() - began:.0f} s, needs {resources.needed_gib(program):.2f} GiB", flush=True)
    results = jax.device_get(program(keys))
    np.savez(run.folder / "results.npz", **{k: v for k, v in results.items() if not k.startswith("answers/")})
    show(results, run.folder, task)
  print(f"{config.seeds} pipelines in {time.perf_counter() - began:.0f} s")


def pipeline(config: Config, task: on_device.Task, key: Array) -> dict[str, Any]:
  """All stages of one seed; returns metrics over time."""
  shape = config.make_shape(task)
  actor_critic = heads.with_value_head(policy(shape), shape.embed_dim)
  judge = heads.scalar_model(policy(shape), shape.embed_dim)
  sizes = compiled.Config(
    steps=config.rollouts,
    epochs=2,
    minibatches=2,
    kl_coef=config.kl_coef,
    evaluate_every=config.rollouts // 10,
    evaluation_problems=512,
    **config.sizes,
  )

  def build(reward_model: RewardModel | None) -> Run:
    """A run that learns from the reward model's scores alone, where there is one."""
    return compiled.compiled(
      task,
      actor_critic,
      load("ppo"),
      config.make_optimizer(),
      dataclasses.replace(sizes, task_weight=1.0 if reward_model is None else 0.0),
      warmup_optimizer=config.make_warmup_optimizer(),
      reward_model=reward_model,
    )

  start_key, judge_key = jax.random.split(key)
  state, first = build(None).start(start_key)
  params, right = train_judge(config, task, actor_critic, judge, state.policy.params, judge_key)
  run = build(partial(make_last_value(judge), params))
  end, history = jax.lax.scan(lambda state, _: run.advance(state), state, length=run.chunks)
  evaluation = {name: jnp.append(first[name], history.evaluation[name]) for name in ("solved", "kl_ref")}
  train = {name: values.reshape(-1) for name, values in history.train.items()}
  problems = base.sample(task, jax.random.key(1), SHOWN)
  answer = device.make_complete(task, actor_critic, group_size=1, temperature=0.0)
  answers = {
    f"answers/{name}": answer(each.policy.params, problems, start_key).rollout.sequences
    for name, each in (("SFT", state), ("PPO", end))
  }
  return (
    {"right": right.total, "pairs": right.count}
    | answers
    | {f"evaluation/{k}": v for k, v in evaluation.items()}
    | {f"train/{k}": v for k, v in train.items()}
  )


def train_judge(
  config: Config, task: on_device.Task, actor: Policy, judge: Policy, policy_params: Any, key: Array
) -> tuple[Any, Mean]:
  """Returns a reward model that starts from the policy, and how many of which fresh pairs it ordered rightly."""
  head_key, data_key = jax.random.split(key)
  params = {"backbone": policy_params["policy"], "head": heads.init_head(head_key, config.width)}
  optimizer, last_value = optax.adam(config.reward_rate), make_last_value(judge)
  complete, verify = device.make_complete(task, actor, group_size=2), device.make_judge(task)

  def forward(params: Any, sequences: Sequences) -> ModelOutputs:
    return ModelOutputs(None, None, reward_scores=last_value(params, sequences))

  step = make_train_step(forward, reward_model.objective(centering=0.01), optimizer)

  def update(state: TrainState, key: Array) -> tuple[TrainState, Any]:
    problem_key, sample_key = jax.random.split(key)
    sampled = complete(policy_params, base.sample(task, problem_key, config.pairs), sample_key)
    places, differ = best_and_worst(jnp.asarray(verify(sampled)[0].scores[task.name]))
    prompts, prompt_mask, tokens, mask = sampled.rollout.sequences
    tokens, mask = (jnp.take_along_axis(x, places[..., None], axis=1) for x in (tokens, mask))
    compared = mask & differ[:, None, None]  # a pair of equals is no preference
    state, metrics = step(state, Batch(Sequences(prompts, prompt_mask, tokens, mask), Inputs(mask=compared)))
    return state, metrics["accuracy"]

  keys = jax.random.split(data_key, config.reward_steps)
  state, right = jax.lax.scan(update, TrainState.create(params, optimizer), keys)
  return state.params, right


def show(results: dict[str, Any], folder: Path, task: on_device.Task) -> None:
  """Prints what every stage reached and the first seed's answers; draws both rewards over rollouts and over the KL."""
  right, pairs = (results[name][:, -20:].sum(axis=1) for name in ("right", "pairs"))
  ends = {
    "exact match after SFT": results["evaluation/solved"][:, 0],
    "accuracy of the reward model": np.where(pairs > 0, right / np.maximum(pairs, 1), 0.5),  # where none differ: chance
    "exact match after PPO": results["evaluation/solved"][:, -1],
    "best exact match on the way": results["evaluation/solved"].max(axis=1),
    "KL to the SFT policy [nats a token]": results["evaluation/kl_ref"][:, -1],
  }
  print(f"{task.name}, interquartile means of {len(pairs)} seeds with 95 % intervals")
  for name, values in ends.items():
    print(f"  {name}: {cell(values, 3)}")
  print("greedy answers of the first seed, after SFT and after PPO")
  for prompt, *replies in zip(*texts(results, task), strict=True):
    print(f"  {prompt} {' | '.join(replies)}")
  draw(results, folder, task)


def texts(results: dict[str, Any], task: on_device.Task) -> tuple[list[str], list[str], list[str]]:
  """The first seed's prompts, and the answers before and after PPO."""
  before, after = (jax.tree.map(lambda leaf: leaf[0], results[f"answers/{name}"]) for name in ("SFT", "PPO"))
  first, last = (base.decode(task, each.completions[:, 0], each.completion_mask[:, 0]) for each in (before, after))
  return base.decode(task, before.prompts, before.prompt_mask), first, last


def draw(results: dict[str, Any], folder: Path, task: on_device.Task) -> None:
  """Draws the learned reward, the task's and the KL over rollouts, and both rewards against the KL."""
  panels = {"learned reward": "train/reward/learned", "the task's reward": f"train/reward/{task.name}"}
  if "train/kl_completion" in results:
    panels["KL [nats a completion]"] = "train/kl_completion"
  smooth = {title: results[name].reshape(len(results[name]), -1, 10).mean(axis=2) for title, name in panels.items()}
  plt = pyplot()
  figure, axes = plt.subplots(1, 4, figsize=(16, 3.6))
  rollouts = np.linspace(10, results["train/reward"].shape[1], smooth["learned reward"].shape[1])
  for axis, (title, values) in zip(axes, smooth.items(), strict=False):
    low, high = bootstrap_interval(values.T, resamples=500)
    axis.plot(rollouts, interquartile_mean(values.T))
    axis.fill_between(rollouts, low, high, alpha=0.2)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("rollouts of PPO", fontsize=8)
  if len(smooth) == 3:
    learned, true, divergence = (values.ravel() for values in smooth.values())
    other = axes[3].twinx()
    axes[3].plot(divergence, learned, ".", color="tab:blue", markersize=4)
    other.plot(divergence, true, ".", color="tab:orange", markersize=4)
    axes[3].set_title("learned reward (blue) and the task's (orange)", fontsize=10)
    axes[3].set_xlabel("KL [nats a completion]", fontsize=8)
  for axis in axes:
    axis.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(folder / "rlhf.png", dpi=120)
  plt.close(figure)
  print(f"figure: {folder / 'rlhf.png'}")


if __name__ == "__main__":
  run_script(main, Config, module="experiments.compiled_rlhf", description=__doc__, kept="nothing is kept")
