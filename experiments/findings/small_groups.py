"""Leave-one-out against group-normalized advantages in groups of two.

    python -m experiments.findings.small_groups

Claim: A. Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization", arXiv:2402.14740. The mean of the
others is an unbiased baseline, good at small G. Two rewards normalized by their own standard deviation are +-0.7
however close they are, so that small differences (here a number's format) count as much as large ones.

Here: two-digit sums, the same clipped loss, 128 prompts with two completions each.
"""

from experiments.findings.common import Arm, Claim, Config, run, study, verdict
from rl_jax.objectives import dapo, grpo, rloo
from rl_jax.tasks import on_device


def main(config: Config) -> None:
  """Leave-one-out against group-normalized advantages at G = 2 (arXiv:2402.14740)."""
  arms = {
    "leave-one-out": Arm(dapo.objective(), rloo.advantage()),
    "group-normalized": Arm(dapo.objective(), grpo.advantage()),
  }
  results = study(config, on_device.load("addition"), arms, num_prompts=128, group_size=2, minibatches=2)
  verdict(results, [Claim("leave-one-out", "group-normalized", "evaluation/solved")])


if __name__ == "__main__":
  run(main, "experiments.findings.small_groups")
