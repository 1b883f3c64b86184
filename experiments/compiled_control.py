"""Whole runs in an environment as one compiled program, many seeds side by side.

    python -m experiments.compiled_control                                           # cart-pole, eight seeds
    python -m experiments.compiled_control --environment pendulum --steps 100 --gamma 0.95 --std 1.0 --num-starts 32
    python -m experiments.compiled_control --objective rloo --group-size 8 --epochs 1 --minibatches 1
    python -m experiments.compiled_control --environment biped --environment-options backend=mjx   # on a TPU or GPU

Every evaluation plays greedy episodes from the same starts; printed are interquartile means of seeds with intervals.
"""

import dataclasses
import os
import time

# XLA's threads on a CPU wait for each other in programs that map over seeds where cores are few; read before jax is.
os.environ.setdefault("NPROC", "16")

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.configs import OptimizerConfig
from experiments.environment_configs import EnvironmentConfig
from rl_jax.analysis.comparison import cell
from rl_jax.runs import resources
from rl_jax.runs.settings import refuse, require_at_least, run_script
from rl_jax.train.compiled_episodes import Config as Sizes
from rl_jax.train.compiled_episodes import compiled_episodes
from rl_jax.train.whole_run import History

MODULE = "experiments.compiled_control"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig, EnvironmentConfig):
  environment: str = "cartpole"  # cartpole, pendulum, or biped with backend=mjx
  num_starts: int = 16  # starts a rollout
  learning_rate: float = 2e-3  # learning rate of AdamW
  max_grad_norm: float = 0.5  # gradients are scaled down to this norm
  steps: int = 40  # rollouts
  evaluations: int = 4  # evaluations after the first
  seeds: int = 8  # runs side by side
  seed: int = 0  # seed of everything random

  def check(self) -> None:
    require_at_least(self, 1, ("steps", "evaluations"))
    require_at_least(self, 2, ("seeds",))
    refuse(self, ("microbatches",), "a compiled run")
    if self.steps % self.evaluations:
      raise ValueError(f"steps must be a multiple of evaluations = {self.evaluations}, got {self.steps}")
    super().check()


def main(config: Config) -> None:
  config.check()
  algorithm, environment = config.load_algorithm(), config.load_environment()
  sizes = Sizes(
    steps=config.steps,
    num_starts=config.num_starts,
    group_size=config.group_size,
    epochs=config.epochs,
    minibatches=config.minibatches,
    evaluate_every=config.steps // config.evaluations,
    evaluation_episodes=config.evaluation_episodes,
  )
  agent = config.make_agent(environment, critic=algorithm.needs_values)
  run = compiled_episodes(environment, agent, algorithm, config.make_optimizer(), sizes, controllers=config.controllers)
  began, keys = time.perf_counter(), jax.random.split(jax.random.key(config.seed), config.seeds)
  program = jax.jit(jax.vmap(lambda key: run(key)[1])).lower(keys).compile()
  print(f"compiled in {time.perf_counter() - began:.0f} s, needs {resources.needed_gib(program):.2f} GiB", flush=True)
  history = jax.device_get(program(keys))
  show(config, environment.name, history)
  if failed := int(history.train["simulations_failed"].sum()):
    print(f"{failed} simulations broke down, which ended their episodes")
  print(f"{config.seeds} runs of {config.steps} rollouts in {time.perf_counter() - began:.0f} s")


def show(config: Config, name: str, history: History) -> None:
  """Prints a table, an evaluation a row."""
  title = f"{name}, {config.objective}: greedy episodes, interquartile means of {config.seeds} seeds"
  table = Table("rollouts", *history.evaluation, title=title)
  for row in range(config.evaluations + 1):
    cells = [cell(np.asarray(values)[:, row], 2) for values in history.evaluation.values()]
    table.add_row(str(row * config.steps // config.evaluations), *cells)
  Console().print(table)


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__, kept="nothing is kept")
