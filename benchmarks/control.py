"""Environments and PPO in them: `python -m benchmarks.control`, with Stable-Baselines3 on the same machine beside it.

First environment steps a second with random actions: the biped in MuJoCo and in MJX, cart-pole in JAX, Gymnasium's
Walker2d. Then seconds until the mean return of 16 episodes reaches a score, from the first step on and with compiling,
for Gymnasium's CartPole and Walker2d: rl_jax, and Stable-Baselines3's PPO in a virtual environment that is made for it
(`.venv-sb3`; it downloads PyTorch). Both have two hidden layers of 64 for policy and critic and see the same
environments; batches and learning rates are each system's own, printed below the table. `--no-sb3` leaves it out.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from rl_jax import environments, objectives
from rl_jax.devices import Devices
from rl_jax.environments import agents
from rl_jax.environments.base import Box, Environment
from rl_jax.ops.moments import Moments
from rl_jax.state import RLState
from rl_jax.train.episodes import make_episode_rollouts, make_forward
from rl_jax.train.schedule import Schedule, orders
from rl_jax.train.step import make_train_step

FOLDER = Path(".venv-sb3")
PACKAGES = ("torch==2.13.0", "stable-baselines3==2.9.2", "gymnasium[mujoco]==1.4.0")


class Goal(NamedTuple):
  """A score to be reached, and each system's settings."""

  env_id: str
  target: float
  ours: dict[str, Any]
  theirs: dict[str, Any]


GOALS = (
  Goal(
    "CartPole-v1",
    450.0,
    dict(num_starts=16, epochs=8, minibatches=4, learning_rate=2.5e-3),
    # The settings of RL Baselines3 Zoo.
    dict(copies=8, normalize=False, n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20,
         learning_rate=1e-3, ent_coef=0.0),
  ),
  Goal(
    "Walker2d-v5",
    500.0,
    dict(num_starts=16, epochs=10, minibatches=8, learning_rate=6e-4),
    # Its defaults, with the 2048 steps of a rollout from 8 copies, and normalization.
    dict(copies=8, normalize=True, n_steps=256),
  ),
)  # fmt: skip


def steps_per_second(environment: Environment, copies: int, *, steps: int = 25, times: int = 8) -> float:
  """Steps of all copies a second, with random actions that are drawn beforehand; without compiling.

  They are few, so that a robot has not fallen through the floor that nothing but its feet touch.
  """
  rng, size = np.random.default_rng(0), environment.actions
  shape = (steps, copies, size.size) if isinstance(size, Box) else (steps, copies)
  actions: Any = rng.uniform(-1, 1, shape) if isinstance(size, Box) else rng.integers(size.count, size=shape)
  starts = jax.random.split(jax.random.key(0), copies)

  def on_host() -> None:
    state, _ = environment.reset(starts)
    for action in actions:
      state = environment.step(state, action).state

  @jax.jit
  def on_device(starts: jax.Array) -> Any:
    def step(state: Any, action: jax.Array) -> Any:
      return environment.step(state, action).state, None

    return jax.lax.scan(step, environment.reset(starts)[0], jnp.asarray(actions))[0]

  call = on_host if environment.on_host else lambda: jax.block_until_ready(on_device(starts))
  call()
  start = time.perf_counter()
  for _ in range(times):
    call()
  return times * steps * copies / (time.perf_counter() - start)


def train(goal: Goal, *, seed: int, limit: float) -> dict[str, Any]:
  """PPO until the score is reached."""
  began, options = time.perf_counter(), goal.ours
  environment, devices = environments.load("gym", env_id=goal.env_id), Devices()
  size, agent = environment.observation_size, agents.for_environment(environment)
  algorithm = objectives.load("ppo", gamma=0.99, value_clip=None, value_coef=0.5)
  schedule = Schedule(options["epochs"], options["minibatches"])
  rows = options["num_starts"]
  collect = make_episode_rollouts(environment, agent, algorithm, devices, num_starts=rows, schedule=schedule).collect
  optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(options["learning_rate"]))
  step = make_train_step(make_forward(agent), algorithm.objective, optimizer)

  @jax.jit
  def updates(policy: Any, batch: Any, key: jax.Array) -> Any:
    def update(policy: Any, part: jax.Array) -> Any:
      return step(policy, jax.tree.map(lambda leaf: leaf[part], batch))[0], None

    return jax.lax.scan(update, policy, orders(schedule, key, rows))[0]

  init_key, key = jax.random.split(jax.random.key(seed))
  state = RLState.create(
    agent.init(init_key), optimizer, key, keep_reference=False, observation_moments=Moments.zero((size,))
  )
  score, steps, rollouts = -math.inf, 0, 0
  while score < goal.target and time.perf_counter() - began < limit:
    collected = collect(state)
    score, steps = float(collected.metrics["reward"]), steps + int(collected.metrics["tokens"])
    policy = updates(state.policy, collected.batch, jax.random.fold_in(state.keys().order, rollouts))
    state, rollouts = collected.state._replace(policy=policy), rollouts + 1
  return {"seconds": time.perf_counter() - began, "steps": steps, "score": score, "reached": score >= goal.target}


def stable_baselines(goal: Goal, *, seed: int, limit: float) -> dict[str, Any]:
  """The same by Stable-Baselines3, in a process of its own; the time is what it takes once everything is imported."""
  python = FOLDER / "bin" / "python"
  if not python.exists():
    subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[:1]], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[1:]], check=True)
  given = dict(env_id=goal.env_id, target=goal.target, limit=limit, seed=seed, settings=goal.theirs)
  script = Path(__file__).with_name("sb3_ppo.py")
  ran = subprocess.run([python, script, json.dumps(given)], stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", type=int, default=3, help="runs a goal")
  parser.add_argument("--limit", type=float, default=180.0, help="seconds after which a run is given up")
  parser.add_argument("--no-sb3", action="store_true", help="leave Stable-Baselines3 out")
  arguments = parser.parse_args()
  console = Console()
  console.print(f"{jax.default_backend()}, jax {jax.__version__}")
  speed = Table("environment", "copies", "steps a second", title="random actions")
  for title, environment, copies in (
    ("biped, MuJoCo", environments.load("biped"), 64),
    ("biped, MJX", environments.load("biped", backend="mjx"), 64),
    ("cart-pole, JAX", environments.load("cartpole"), 64),
    ("Walker2d-v5, Gymnasium", environments.load("gym", env_id="Walker2d-v5"), 8),
    ("CartPole-v1, Gymnasium", environments.load("gym", env_id="CartPole-v1"), 8),
  ):
    speed.add_row(title, str(copies), f"{steps_per_second(environment, copies):,.0f}")
  console.print(speed)
  systems = {"rl_jax": train} | ({} if arguments.no_sb3 else {"Stable-Baselines3": stable_baselines})
  scores = Table("goal", "system", "seconds", "environment steps", "reached", title="until the score is reached")
  for goal in GOALS:
    for name, run in systems.items():
      found = [run(goal, seed=seed, limit=arguments.limit) for seed in range(arguments.seeds)]
      seconds, steps = (sorted(row[key] for row in found) for key in ("seconds", "steps"))
      reached = f"{sum(row['reached'] for row in found)} of {len(found)}"
      middle = len(found) // 2
      console.print(f"{goal.env_id} {name}: {found}", highlight=False)
      scores.add_row(
        f"{goal.env_id}, {goal.target:.0f}", name, f"{seconds[middle]:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})",
        f"{steps[middle]:,}", reached,
      )  # fmt: skip
  console.print(scores)
  for goal in GOALS:
    console.print(f"{goal.env_id}: rl_jax {goal.ours}; Stable-Baselines3 {goal.theirs}", highlight=False)


if __name__ == "__main__":
  main()
