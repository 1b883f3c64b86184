"""InstructGPT's PPO-ptx: PPO plus the log-likelihood of pretraining text.

    loss = PPO - gamma 1/M sum_t log pi(x_t)

with the M tokens of the batch's pretraining rows, where `target_mask` is 1 and `mask` is 0. The reward of the last
token is the reward model's, and that of every token holds `-beta log(pi / ref)`, beta = 0.02 (`ops.rewards.with_kl`).

How the defaults differ elsewhere: neither TRL nor verl has the pretraining term.

Reference: L. Ouyang et al., "Training Language Models to Follow Instructions with Human Feedback", arXiv:2203.02155
(eq. 2 and appendix C.4: gamma = 27.8, clip 0.2).
"""

from jaxtyping import Array

from rl_jax.objectives import ppo
from rl_jax.objectives.base import Objective, add, likelihood, scale
from rl_jax.ops import aggregation

advantage = ppo.advantage


def objective(
  *,
  ptx_coef: float | Array = 27.8,
  clip_low: float | Array = 0.2,
  clip_high: float | Array = 0.2,
  value_coef: float | Array = 0.1,
  value_clip: float | Array | None = 0.2,
) -> Objective:
  """Returns the PPO-ptx objective.

  Args:
    ptx_coef: Weight of the pretraining likelihood, gamma in the paper; a Python 0 leaves PPO.
    clip_low: As for `ppo`.
    clip_high: As for `ppo`.
    value_coef: As for `ppo`.
    value_clip: As for `ppo`.

  >>> "target_mask" in objective().needs
  True
  """
  rl = ppo.objective(clip_low=clip_low, clip_high=clip_high, value_coef=value_coef, value_clip=value_clip)
  return add(rl=rl, ptx=scale(ptx_coef, likelihood(aggregation.token_mean(), on="target_mask")))
