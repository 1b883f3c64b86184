"""Averaging over each sequence and dividing by the group's deviation lengthen wrong answers; Dr. GRPO does not.

    python -m experiments.findings.length_bias

Claim: Z. Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective", arXiv:2503.20783. Dividing a
sequence's loss by its length punishes long wrong answers less per token, so wrong answers grow.

Here: the parity of up to six bits by a chain of steps of any length up to 15, where only the last bit counts. Four
arms: mean over a sequence's tokens or a constant length, with and without the division by the standard deviation.
"""

from experiments.findings.common import Arm, Claim, Config, run, study, verdict
from rl_jax.objectives import dr_grpo, grpo
from rl_jax.tasks import on_device


def main(config: Config) -> None:
  """GRPO lengthens wrong answers, Dr. GRPO does not (arXiv:2503.20783)."""
  task = on_device.load("parity", bits=6, max_new_tokens=16)
  by_sequence, by_constant = grpo.objective(kl_coef=0), dr_grpo.objective(length=task.max_new_tokens)
  arms = {
    "grpo": Arm(by_sequence),
    "grpo without std": Arm(by_sequence, dr_grpo.advantage()),
    "dr_grpo with std": Arm(by_constant),
    "dr_grpo": Arm(by_constant, dr_grpo.advantage()),
  }
  results = study(config, task, arms, num_prompts=16, minibatches=2)
  wrong = "evaluation/wrong_length"
  verdict(results, [Claim("grpo", "dr_grpo", wrong), Claim("grpo without std", "dr_grpo", wrong)])


if __name__ == "__main__":
  run(main, "experiments.findings.length_bias", warmup_steps=150, rollouts=200)
