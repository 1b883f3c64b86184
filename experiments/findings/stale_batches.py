"""Many updates a batch hurt the plain policy gradient; the importance ratio and the clip repair it.

    python -m experiments.findings.stale_batches

Claim: J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347, section 2.1: several steps on
the same samples with the plain gradient lead to destructively large updates.

Here: two-digit sums, 32 updates a rollout (four passes over eight minibatches) without a ratio, with the ratio, and
with ratio and clip; and one update a rollout for comparison.
"""

from experiments.findings.common import Arm, Claim, Config, run, study, verdict
from rl_jax.objectives.base import add, on_policy_gradient, policy_gradient
from rl_jax.ops import aggregation, ratios, surrogates
from rl_jax.tasks import on_device


def main(config: Config) -> None:
  """Many updates a batch need the ratio and the clip (arXiv:1707.06347)."""
  mean = aggregation.token_mean()
  reuse = {"epochs": 4, "minibatches": 8}
  plain = add(policy=on_policy_gradient(mean))
  ratio = add(policy=policy_gradient(ratios.token(), surrogates.importance(), mean))
  clip = add(policy=policy_gradient(ratios.token(), surrogates.clip(), mean))
  arms = {
    "no ratio, 1 update": Arm(plain),
    "no ratio": Arm(plain, sizes=reuse),
    "ratio": Arm(ratio, sizes=reuse),
    "ratio and clip": Arm(clip, sizes=reuse),
  }
  results = study(config, on_device.load("addition"), arms)
  solved = "evaluation/solved"
  better = ("no ratio, 1 update", "ratio", "ratio and clip")
  verdict(results, [Claim(arm, "no ratio", solved) for arm in better])


if __name__ == "__main__":
  run(main, "experiments.findings.stale_batches", rollouts=100)
