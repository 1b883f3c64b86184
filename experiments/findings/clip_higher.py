"""A clip that is wider above than below keeps entropy.

    python -m experiments.findings.clip_higher

Claim: Q. Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", arXiv:2503.14476. The upper clip
keeps unlikely tokens from growing; raised from 0.2 to 0.28, entropy collapses less.

Here: two-digit sums, DAPO's loss, eight updates a rollout so that ratios leave 1, and a third arm at 0.4.
"""

from experiments.findings.common import Arm, Claim, Config, run, study, verdict
from rl_jax.objectives import dapo
from rl_jax.tasks import on_device


def main(config: Config) -> None:
  """Asymmetric clipping keeps entropy (DAPO, arXiv:2503.14476)."""
  arms = {f"clip_high {high}": Arm(dapo.objective(clip_high=high)) for high in (0.2, 0.28, 0.4)}
  results = study(config, on_device.load("addition"), arms, epochs=2, minibatches=4)
  entropy = "evaluation/entropy"
  claims = [Claim("clip_high 0.28", "clip_high 0.2", entropy), Claim("clip_high 0.4", "clip_high 0.2", entropy)]
  verdict(results, claims)


if __name__ == "__main__":
  run(main, "experiments.findings.clip_higher", rollouts=200)
