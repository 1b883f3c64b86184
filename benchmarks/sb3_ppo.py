"""Stable-Baselines3's PPO until a score is reached, for benchmarks.control; runs in an environment of its own.

Not part of rl_jax: `control.py` starts it with the interpreter of a virtual environment that holds PyTorch.
"""

import json
import sys
import time
from collections import deque

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

EPISODES = 16  # the score is the mean return of so many last episodes


class UntilScore(BaseCallback):
  """Stops once the mean return of the last episodes is at the target, or the time is over."""

  def __init__(self, target: float, limit: float):
    super().__init__()
    self.target, self.limit, self.returns, self.began = target, limit, deque(maxlen=EPISODES), time.perf_counter()

  def _on_step(self) -> bool:
    self.returns.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
    reached = len(self.returns) == EPISODES and np.mean(self.returns) >= self.target
    return not reached and time.perf_counter() - self.began < self.limit


def main(env_id: str, target: float, limit: float, seed: int, settings: dict) -> dict:
  torch.set_num_threads(2)
  copies = settings.pop("copies")
  normalize = settings.pop("normalize")
  environments = make_vec_env(env_id, n_envs=copies, seed=seed)
  environments.reset()
  start = time.perf_counter()
  for _ in range(500):
    environments.step(np.stack([environments.action_space.sample() for _ in range(copies)]))
  steps_per_second = 500 * copies / (time.perf_counter() - start)
  if normalize:
    environments = VecNormalize(environments, gamma=settings.get("gamma", 0.99))
  model = PPO("MlpPolicy", environments, seed=seed, device="cpu", **settings)
  callback = UntilScore(target, limit)
  model.learn(10**9, callback=callback)
  score = float(np.mean(callback.returns))
  return {
    "seconds": time.perf_counter() - callback.began,
    "steps": int(model.num_timesteps),
    "score": score,
    "reached": score >= target,
    "environment_steps_per_second": steps_per_second,
    "version": gymnasium.__version__,
  }


if __name__ == "__main__":
  given = json.loads(sys.argv[1])
  print(json.dumps(main(**given)))
