"""Advantages of tokens, `[..., T]`: from rewards of completions, from rewards of tokens, from another policy.

They are finished before the update, on the global batch.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rl_jax.ops.advantages import group_normalized
from rl_jax.ops.masking import as_bool, masked_whiten, zero_masked
from rl_jax.ops.returns import Holes, discounted_returns


def broadcast_to_tokens(advantages: Float[Array, "*batch"], mask: Array) -> Float[Array, "*batch T"]:
  """Gives every token of a completion the completion's advantage.

  Args:
    advantages: `[...]`.
    mask: `[..., T]`.

  Returns:
    `[..., T]`, 0 where the mask is 0.

  >>> print(broadcast_to_tokens(jnp.array([2.0]), jnp.array([[1, 1, 0]])))
  [[2. 2. 0.]]
  """
  return zero_masked(jnp.broadcast_to(advantages[..., None], mask.shape), mask)


def reinforce_plus_plus(
  token_rewards: Float[Array, "*batch T"],
  mask: Array,
  *,
  gamma: float | Array = 1.0,
  ddof: int = 1,
  eps: float | Array = 1e-8,
  holes: Holes = "carry",
) -> Float[Array, "*batch T"]:
  """Token returns, whitened over all tokens of the batch (REINFORCE++). The rewards hold the KL penalty.

  Args:
    token_rewards: `[..., T]`, the reward that follows each token.
    mask: 1 where a token was chosen.
    gamma: Discount a token.
    ddof: 1 for the unbiased variance (verl), 0 for the population's (OpenRLHF, NeMo-RL).
    eps: Added to the variance.
    holes: Interior slots with mask 0, as for `ops.returns.gae`: verl carries returns across them, OpenRLHF and slime
      step through them, `"zero"`. In SkyRL no reward behind a hole reaches the tokens before it.

  Reference: J. Hu et al., "REINFORCE++", arXiv:2501.03262.

  >>> advantages = reinforce_plus_plus(jnp.array([[0.0, 1.0], [0.0, -1.0]]), jnp.ones((2, 2)))
  >>> [f"{x:.3f}" for x in advantages[:, 0]]
  ['0.866', '-0.866']
  """
  return masked_whiten(discounted_returns(token_rewards, mask, gamma=gamma, holes=holes), mask, ddof=ddof, eps=eps)


def reinforce_plus_plus_baseline(
  rewards: Float[Array, "*batch G"],
  mask: Array,
  *,
  group_mask: Array | None = None,
  ddof: int = 1,
  eps: float | Array = 1e-8,
) -> Float[Array, "*batch G T"]:
  """`s_i - mean_G(s)` at every token, whitened over all tokens of the batch (REINFORCE++-baseline).

  Args:
    rewards: One scalar a completion, groups on the last axis.
    mask: `[..., G, T]`, 1 where a token was chosen.
    group_mask: `[..., G]`, which completions exist or have a reward; all by default. The others get 0.
    ddof: 1 for the unbiased variance (verl), 0 for the population's (OpenRLHF, NeMo-RL).
    eps: Added to the variance.

  Returns:
    `[..., G, T]`. Groups of one get the (whitened) 0; verl lets them keep their reward.

  Reference: J. Hu et al., "REINFORCE++", arXiv:2501.03262.

  >>> advantages = reinforce_plus_plus_baseline(jnp.array([0.0, 2.0]), jnp.ones((2, 2)))
  >>> [f"{x:.3f}" for x in advantages[:, 0]]
  ['-0.866', '0.866']
  """
  exists = jnp.ones_like(rewards) if group_mask is None else group_mask
  mask = as_bool(mask) & as_bool(exists)[..., None]
  return masked_whiten(
    broadcast_to_tokens(group_normalized(rewards, exists, scale="none"), mask), mask, ddof=ddof, eps=eps
  )


def optimal_token_baseline(
  token_rewards: Float[Array, "*batch G T"],
  old_logp: Array,
  sum_squared_probs: Array,
  mask: Array,
  *,
  importance: Array | None = None,
  zero_tail: bool = True,
  by_place: bool = False,
  eps: float | Array = 1e-8,
) -> tuple[Float[Array, "*batch G T"], Float[Array, "*batch G T"]]:
  """Reward-to-go less the baseline of least variance at each time step.

    W_t = sum_{s <= t} (1 - 2 pi_s + sum_v pi_s(v)^2)        a proxy for the squared norm of the gradient so far
    b_t = sum_G G_t W_t / (sum_G W_t + eps),   A_t = G_t - b_t

  Args:
    token_rewards: `[..., G, T]`, the reward that follows each token.
    old_logp: Log-probs of the tokens; `pi = exp(old_logp)`.
    sum_squared_probs: `sum_v pi(v)^2` at each token, from `log_probs.sum_squared_probs`.
    mask: 1 where a token was chosen.
    importance: Weights `[..., G, T]` of an off-policy sampler; `W`'s summands are multiplied by their squares.
    zero_tail: Whether the only longest completion has the baseline 0 beyond the length of the second longest, where
      it has nobody to be compared with.
    by_place: Whether steps are counted in chosen tokens instead of in slots, so that turns with interior holes line up
      (verl's multi-turn form).
    eps: Added to the denominator.

  Returns:
    Advantages and returns `[..., G, T]`; a group of one has the baseline 0.

  Reference: "On the optimal token baseline", arXiv:2602.07078.

  >>> ones = jnp.ones((2, 1))
  >>> advantages, _ = optimal_token_baseline(jnp.array([[1.0], [0.0]]), jnp.log(0.5 * ones), 0.5 * ones, ones)
  >>> print(advantages)
  [[ 0.5]
   [-0.5]]
  """
  chex.assert_equal_shape([token_rewards, old_logp, sum_squared_probs, mask])
  chosen = as_bool(mask)
  returns = discounted_returns(token_rewards, mask)
  # W_t: what each token adds to the squared norm of the gradient, summed up to it.
  proxy = 1 - 2 * jnp.exp(zero_masked(old_logp, mask)) + zero_masked(sum_squared_probs, mask)
  if importance is not None:
    proxy = proxy * jnp.square(zero_masked(importance, mask))
  norm = jnp.cumsum(zero_masked(proxy, mask), axis=-1)
  # Steps that are compared stand in one column: by slot, or moved together by their place among the chosen tokens.
  order = jnp.argsort(~chosen, axis=-1, stable=True) if by_place else None  # chosen tokens first
  packed = tuple(x if order is None else jnp.take_along_axis(x, order, axis=-1) for x in (returns, norm, chosen))
  found = _group_baseline(*packed, zero_tail=zero_tail, eps=eps)
  if order is not None:
    found = jnp.take_along_axis(found, jnp.argsort(order, axis=-1), axis=-1)
  return zero_masked(returns - found, mask), returns


def _group_baseline(returns: Array, norm: Array, chosen: Array, *, zero_tail: bool, eps: float | Array) -> Array:
  # The group's mean of returns at each step, weighted by W; completions that have ended have no weight.
  norm = jnp.where(chosen, norm, 0)
  total = jnp.sum(norm, axis=-2, keepdims=True)
  found = jnp.broadcast_to(jnp.sum(returns * norm, axis=-2, keepdims=True) / (total + eps), returns.shape)
  lengths = jnp.sum(chosen, axis=-1, keepdims=True)
  if lengths.shape[-2] == 1:
    return jnp.zeros_like(found)
  # Beyond the second longest, the longest completion has nobody to be compared with.
  two_longest = jnp.sort(lengths, axis=-2)[..., -2:, :]
  second, longest = two_longest[..., :1, :], two_longest[..., 1:, :]
  if zero_tail:
    place = jax.lax.broadcasted_iota(lengths.dtype, found.shape, found.ndim - 1)
    alone = (lengths == longest) & (longest > second)
    found = jnp.where(alone & (place >= second), 0, found)
  return jnp.where(jnp.sum(lengths > 0, axis=-2, keepdims=True) > 1, found, 0)


def step_level(
  advantages: Float[Array, "*batch T"],
  step_rewards: Float[Array, " steps"],
  states: Array,
  steps: Array,
  mask: Array,
  *,
  weight: float | Array = 1.0,
  discount_free_scale: bool = True,
) -> Float[Array, "*batch T"]:
  """Adds to a completion's advantage that of each step among the steps taken from the same state (GiGPO).

    A_t = A^episode + weight * A^step(step of t),   A^step = (R_step - mean_state) [/ std_state]

  Args:
    advantages: `[..., T]`, of whole episodes.
    step_rewards: `[S]`, the discounted return from each of the batch's S steps.
    states: `[S]` integers, equal where two steps started from the same state.
    steps: `[..., T]` integers, the step of each token, in `[0, S)`; anything where the mask is 0.
    mask: 1 where a token was chosen.
    weight: Weight of the step's part.
    discount_free_scale: Whether the step's part is divided by the state's standard deviation.

  Reference: L. Feng et al., "Group-in-Group Policy Optimization for LLM Agent Training" (GiGPO), arXiv:2505.10978.

  >>> total = step_level(
  ...     jnp.zeros((2, 2)), jnp.array([1.0, 3.0, 7.0]), jnp.array([0, 0, 1]), jnp.array([[0, 2], [1, 1]]),
  ...     jnp.ones((2, 2)), discount_free_scale=False)
  >>> print(total)
  [[-1.  0.]
   [ 1.  1.]]
  """
  chex.assert_equal_shape([step_rewards, states])
  same = states[:, None] == states[None, :]
  groups = jnp.broadcast_to(step_rewards[None, :], same.shape)
  scale = "group" if discount_free_scale else "none"
  own = jnp.diagonal(group_normalized(groups, same, scale=scale))
  part = jnp.take(own, jnp.where(as_bool(mask), steps, 0), axis=0)
  return zero_masked(advantages, mask) + weight * zero_masked(part, mask)


def distillation(teacher_logp: Array, student_logp: Array, mask: Array) -> Float[Array, "*batch T"]:
  """On-policy distillation: `A_t = log teacher(a_t) - log student(a_t)` on the student's own samples.

  Its policy gradient is that of the reverse KL to the teacher.

  Args:
    teacher_logp: The teacher's log-probs `[..., T]` of the tokens.
    student_logp: The student's at the start of the update.
    mask: 1 where a token was chosen.

  Reference: R. Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv:2306.13649; as advantages in
  MiMo-V2's multi-teacher form, arXiv:2601.02780.

  >>> print(distillation(jnp.array([-1.0]), jnp.array([-3.0]), jnp.ones(1)))
  [2.]
  """
  chex.assert_equal_shape([teacher_logp, student_logp, mask])
  return jax.lax.stop_gradient(zero_masked(teacher_logp, mask) - zero_masked(student_logp, mask))
