"""k1 as a loss term has no useful gradient; k2 and k3 in the loss, or k1 in the reward, hold the policy back.

    python -m experiments.findings.kl_placement

Claim: Y. Tang and R. Munos, "On a Few Pitfalls in KL Divergence Gradient Estimation for RL", arXiv:2506.09477. The
gradient of k1 as a loss is 0 in expectation; that of k2 is the KL's.

Here: two-digit sums, on-policy updates of group-normalized advantages, a KL weight of 0.1, and the KL to the initial
policy at the end, which a useful term makes smaller than no term does.
"""

from experiments.findings.common import Arm, Claim, Config, run, study, verdict
from rl_jax.objectives.base import Objective, add, kl_penalty, on_policy_gradient, scale
from rl_jax.ops import aggregation, kl
from rl_jax.tasks import on_device

COEFFICIENT = 0.1


def main(config: Config) -> None:
  """k1 in the loss does nothing; k2, k3 and k1 in the reward do (arXiv:2506.09477)."""
  mean = aggregation.token_mean()
  policy = on_policy_gradient(mean)

  def with_penalty(estimator: kl.Estimator) -> Objective:
    return add(policy=policy, kl=scale(COEFFICIENT, kl_penalty(estimator, mean)))

  arms = {
    "no KL": Arm(add(policy=policy)),
    "k1 in the loss": Arm(with_penalty(kl.k1)),
    "k2 in the loss": Arm(with_penalty(kl.k2)),
    "k3 in the loss": Arm(with_penalty(kl.k3)),
    "k1 in the reward": Arm(add(policy=policy), sizes={"kl_coef": COEFFICIENT}),
  }
  results = study(config, on_device.load("addition"), arms)
  useful = ("k2 in the loss", "k3 in the loss", "k1 in the reward")
  verdict(results, [Claim("k1 in the loss", name, "evaluation/kl_ref") for name in useful])


if __name__ == "__main__":
  run(main, "experiments.findings.kl_placement")
