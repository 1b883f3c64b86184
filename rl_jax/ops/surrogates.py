"""Per-token policy losses, to be minimized. Each factory returns `(log_ratio, advantages, **context) -> loss [..., T]`.

The context, which an objective passes and most surrogates ignore, is `logp` (the learner's log-probs) and `mask`. A
surrogate whose gradient is that of the log-prob rather than of the ratio (REINFORCE, CISPO, DRO, DPPO, VESPO) names
`logp` among its arguments; one that looks at whole sequences (GMPO, VESPO) names `mask`.

Where a loss is unbounded in the ratio, the log-ratio is clamped first, because float32 overflows at 88: by default to
`numerics.largest_exponent` (64.7 in float32, 685.7 in float64). Beyond the clamp the gradient is 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.ops.masking import as_bool, masked_mean, masked_sum, zero_masked
from rl_jax.ops.numerics import safe_exp

Surrogate = Callable[..., Array]


def reinforce() -> Surrogate:
  """`-A log pi(a)`: the policy gradient itself; the ratio is not looked at.

  Returns:
    `(log_ratio, advantages, *, logp) -> loss [..., T]`, minimized.

  Reference: R. J. Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
  Learning", Machine Learning 8 (1992).

  >>> print(reinforce()(jnp.zeros(1), jnp.array([2.0]), logp=jnp.array([-0.5])))
  [1.]
  """

  def surrogate(log_ratio: Array, advantages: Array, *, logp: Array, **_) -> Array:
    del log_ratio
    return -advantages * logp

  return surrogate


def importance(*, max_log_ratio: float | Array | None = None) -> Surrogate:
  """`-A r`, importance-sampled and unclipped.

  Args:
    max_log_ratio: The log-ratio is clamped to this from above (verl: 20); just below overflow by default.

  Returns:
    `(log_ratio, advantages) -> loss [..., T]`, minimized.

  >>> print(importance()(jnp.log(jnp.array([1.5])), jnp.array([2.0])))
  [-3.]
  """

  def surrogate(log_ratio: Array, advantages: Array, **_) -> Array:
    return -advantages * safe_exp(log_ratio, max_log_ratio)

  return surrogate


def clip(
  *,
  low: float | Array = 0.2,
  high: float | Array = 0.2,
  delta: float | Array | None = None,
  max_log_ratio: float | Array | None = None,
) -> Surrogate:
  """The clipped surrogate, `max(-A r, -A clip(r, 1 - low, 1 + high))` with `r = exp(log_ratio)`.

  The gradient is that of `-A r`, and 0 where `A > 0, r > 1 + high` or `A < 0, r < 1 - low`. Where `A < 0` it grows
  with r without bound, up to `max_log_ratio`: `delta` and `dual_clip` bound it.

  Args:
    low: How far the ratio may fall below 1 before the gradient stops.
    high: How far it may rise above 1. `high > low` is DAPO's asymmetric clip ("clip-higher").
    delta: If given, the unclipped branch uses `min(r, delta)`: INTELLECT-2's two-sided clip, as TRL has it. Above
      `1 + high` it bounds the loss of negative advantages, as `dual_clip` does.
    max_log_ratio: The log-ratio is clamped to this from above; it matters where the advantage is negative. Just below
      overflow by default; verl clamps to +-20.

  Returns:
    `(log_ratio [..., T], advantages [..., T]) -> loss [..., T]`, minimized.

  Reference: J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347 (eq. 7); Q. Yu et al.,
  "DAPO", arXiv:2503.14476; Prime Intellect, "INTELLECT-2", arXiv:2505.07291 (delta).

  >>> loss = clip(low=0.2, high=0.2)
  >>> losses = loss(jnp.log(jnp.array([1.1, 1.5, 0.5, 1.5])), jnp.array([1.0, 1.0, -1.0, -1.0]))
  >>> [f"{x:.2f}" for x in losses]
  ['-1.10', '-1.20', '0.80', '1.50']
  """

  def surrogate(log_ratio: Array, advantages: Array, **_) -> Array:
    # The pessimistic branch is chosen before exp: a ratio that is clipped away may then be as large as it likes.
    clipped = jnp.clip(log_ratio, jnp.log(jnp.maximum(1 - jnp.asarray(low), 0)), jnp.log1p(high))
    free = log_ratio if delta is None else jnp.minimum(log_ratio, jnp.log(delta))
    pessimistic = jnp.where(advantages > 0, jnp.minimum(free, clipped), jnp.maximum(free, clipped))
    return -advantages * safe_exp(pessimistic, max_log_ratio)

  return surrogate


def dual_clip(
  *,
  low: float | Array = 0.2,
  high: float | Array = 0.2,
  bound: float | Array = 3.0,
  max_log_ratio: float | Array | None = None,
) -> Surrogate:
  """The clipped surrogate with a ceiling for negative advantages: where `A < 0`, `min(clip's loss, -A bound)`.

  Without it, a token that the policy has made much likelier (`r >> 1`) and whose advantage is negative has an unbounded
  loss. The gradient is 0 where `A < 0, r > bound`.

  Args:
    low: As for `clip`.
    high: As for `clip`.
    bound: The ratio at which the loss stops growing, above 1.
    max_log_ratio: As for `clip`.

  Returns:
    `(log_ratio [..., T], advantages [..., T]) -> loss [..., T]`, minimized.

  Reference: D. Ye et al., "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning",
  arXiv:1912.09729. verl applies it by default, with 3.

  >>> [f"{x:.2f}" for x in dual_clip()(jnp.log(jnp.array([5.0, 5.0])), jnp.array([1.0, -1.0]))]
  ['-1.20', '3.00']
  """
  clipped = clip(low=low, high=high, max_log_ratio=max_log_ratio)

  def surrogate(log_ratio: Array, advantages: Array, **_) -> Array:
    bounded = jnp.where(advantages < 0, jnp.minimum(log_ratio, jnp.log(bound)), log_ratio)
    return clipped(bounded, advantages)

  return surrogate


def band(
  *, low: float | Array = 0.2, high: float | Array = 0.2, max_log_ratio: float | Array | None = None
) -> Surrogate:
  """`-A r` inside `1 - low <= r <= 1 + high` and 0 outside, whatever the advantage's sign (a symmetric mask).

  Unlike `clip` it also drops tokens whose gradient would lead back into the band.

  Args:
    low: How far the ratio may fall below 1.
    high: How far it may rise above 1.
    max_log_ratio: As for `importance`; it matters where `high` is infinite.

  Returns:
    `(log_ratio, advantages) -> loss [..., T]`, minimized.

  Reference: as IcePop's band, applied to the learner: Ling Team, "Every Step Evolves", arXiv:2510.18855.

  >>> [f"{x:.2f}" for x in band()(jnp.log(jnp.array([1.1, 1.5, 1.5])), jnp.array([1.0, 1.0, -1.0]))]
  ['-1.10', '0.00', '0.00']
  """

  def surrogate(log_ratio: Array, advantages: Array, **_) -> Array:
    inside = (log_ratio >= jnp.log(jnp.maximum(1 - jnp.asarray(low), 0))) & (log_ratio <= jnp.log1p(high))
    return jnp.where(inside, -advantages * safe_exp(jnp.where(inside, log_ratio, 0), max_log_ratio), 0)

  return surrogate


def probability_band(
  *, low: float | Array = 0.2, high: float | Array = 0.2, max_log_ratio: float | Array | None = None
) -> Surrogate:
  """`-A r` where the token's probability has moved by `-low` to `high`, and 0 elsewhere, whatever the advantage's sign.

  As `band`, with the distance that `dppo_tv` uses: a symmetric mask in probabilities.

  Args:
    low: Largest fall of the probability.
    high: Largest rise of the probability.
    max_log_ratio: As for `importance`.

  Returns:
    `(log_ratio, advantages, *, logp) -> loss [..., T]`, minimized. Use `ratios.token`.

  Reference: the loss type `ipo` of Prime Intellect's prime-rl, whose default depends on the advantage's sign
  (`dppo_tv`); its small quadratic pull to the old policy is `kl_penalty(kl.k2, ..., reference="old_logp")`.

  >>> logp = jnp.log(jnp.array([0.5, 0.5]))
  >>> loss = probability_band()(logp - jnp.log(jnp.array([0.4, 0.2])), jnp.ones(2), logp=logp)
  >>> [f"{x:.2f}" for x in loss]
  ['-1.25', '0.00']
  """

  def surrogate(log_ratio: Array, advantages: Array, *, logp: Array, **_) -> Array:
    moved = jax.lax.stop_gradient(jnp.exp(logp) - jnp.exp(logp - log_ratio))
    inside = (moved >= -jnp.asarray(low)) & (moved <= high)
    return jnp.where(inside, -advantages * safe_exp(jnp.where(inside, log_ratio, 0), max_log_ratio), 0)

  return surrogate


def cispo(*, low: float | Array = 1.0, high: float | Array = 4.0) -> Surrogate:
  """`-sg(clip(r, 1 - low, 1 + high)) A log pi(a)`: the weight is clipped, the gradient never stops.

  Args:
    low: The weight is at least `1 - low`; 1, the paper's choice, sets no lower bound.
    high: The weight is at most `1 + high`, as in the paper and in verl. TRL's `epsilon_high` is the cap itself
      (5 there is 4 here), and it has no lower bound.

  Returns:
    `(log_ratio, advantages, *, logp) -> loss [..., T]`, minimized; its gradient in `logp` is `-clip(r, ...) A`.

  Reference: MiniMax, "MiniMax-M1", arXiv:2506.13585 (eq. 4).

  >>> loss = cispo(high=1.0)
  >>> print(loss(jnp.log(jnp.array([0.5, 9.0])), jnp.array([1.0, 1.0]), logp=jnp.array([-1.0, -1.0])))
  [0.5 2. ]
  """

  def surrogate(log_ratio: Array, advantages: Array, *, logp: Array, **_) -> Array:
    capped = jnp.exp(jnp.minimum(log_ratio, jnp.log1p(high)))  # before exp, which could overflow
    weight = jnp.maximum(capped, 1 - jnp.asarray(low))
    return -jax.lax.stop_gradient(weight) * advantages * logp

  return surrogate


def sapo(
  *, tau_pos: float | Array = 1.0, tau_neg: float | Array = 1.05, max_log_ratio: float | Array = 20.0
) -> Surrogate:
  """`-(4 / tau) sigmoid(tau (r - 1)) A`: a soft gate in place of the clip, with slope `-A` at `r = 1`.

  Args:
    tau_pos: Temperature where the advantage is positive.
    tau_neg: Temperature elsewhere; larger, so that negative advantages fade faster.
    max_log_ratio: The log-ratio is clamped to +- this, as in verl; the gate is flat there anyway. TRL does not clamp.

  Returns:
    `(log_ratio, advantages) -> loss [..., T]`, minimized.

  Reference: C. Gao et al., "Soft Adaptive Policy Optimization" (SAPO), arXiv:2511.20347.

  >>> print(sapo()(jnp.zeros(1), jnp.array([1.0])))
  [-2.]
  """

  def surrogate(log_ratio: Array, advantages: Array, **_) -> Array:
    excess = jnp.expm1(jnp.clip(log_ratio, -max_log_ratio, max_log_ratio))
    tau = jnp.where(advantages > 0, tau_pos, tau_neg)
    return -4 / tau * jax.nn.sigmoid(tau * excess) * advantages

  return surrogate


def gmpo(*, low: float | Array = 0.4, high: float | Array = 0.4) -> Surrogate:
  """`-exp(1/n sum_t clamped log r_t) mean_t(A_t)`: the geometric mean of the ratios of a sequence, clipped token-wise.

  A token's log-ratio is clamped to `[-low, high]` on the pessimistic side only: from above where `A > 0`, from below
  where `A < 0`; where `A = 0` it counts as 0. The clip is one in log space: `high = 0.4` allows ratios up to
  `exp(0.4)`.

  Args:
    low: How far the log-ratio may fall below 0.
    high: How far it may rise above 0.

  Returns:
    `(log_ratio, advantages, *, mask) -> loss [..., T]`, minimized, the same at all tokens of a row: aggregate it by
    `aggregation.sequence_mean`.

  Reference: Y. Zhao et al., "Geometric-Mean Policy Optimization" (GMPO), arXiv:2507.20673 (eq. 4).

  >>> loss = gmpo()(jnp.array([[0.2, 9.0]]), jnp.array([[1.0, 1.0]]), mask=jnp.ones((1, 2)))
  >>> print((loss + jnp.exp(0.3)).round(5))
  [[0. 0.]]
  """

  def surrogate(log_ratio: Array, advantages: Array, *, mask: Array, **_) -> Array:
    pessimistic = jnp.where(advantages > 0, jnp.minimum(log_ratio, high), jnp.maximum(log_ratio, -jnp.asarray(low)))
    pessimistic = jnp.where(advantages == 0, 0, pessimistic)
    # Only rows of mixed signs can have a mean beyond the clamps: there it is bounded, so that exp stays finite.
    mean = masked_mean(pessimistic, mask, axis=-1)
    loss = -safe_exp(mean) * masked_mean(advantages, mask, axis=-1)
    return jnp.broadcast_to(loss[..., None], mask.shape)

  return surrogate


def vespo(
  *,
  k_pos: float | Array = 2.0,
  lambda_pos: float | Array = 3.0,
  k_neg: float | Array = 3.0,
  lambda_neg: float | Array = 2.0,
  max_log_ratio: float | Array = 20.0,
) -> Surrogate:
  """`-sg(phi(W)) A log pi(a)` with the sequence's whole ratio `W = prod_t r_t` and `phi = W^k exp(lambda (1 - W))`.

  The weight is 1 at `W = 1` and fades smoothly on both sides: no clip.

  Args:
    k_pos: Power of W where the advantage is not negative.
    lambda_pos: Rate of decay in W there.
    k_neg: Power of W where the advantage is negative.
    lambda_neg: Rate of decay in W there.
    max_log_ratio: Each token's log-ratio is clamped to +- this, their sum to `[log 1e-8, this]`, as in TRL.

  Returns:
    `(log_ratio, advantages, *, logp, mask) -> loss [..., T]`, minimized. Use `ratios.token`.

  Reference: "VESPO: Variational Sequence-level Soft Policy Optimization", arXiv:2602.10693.

  >>> loss = vespo()(jnp.zeros((1, 2)), jnp.ones((1, 2)), logp=jnp.array([[-1.0, -2.0]]), mask=jnp.ones((1, 2)))
  >>> print(loss)
  [[1. 2.]]
  """

  def surrogate(log_ratio: Array, advantages: Array, *, logp: Array, mask: Array, **_) -> Array:
    total = masked_sum(jnp.clip(log_ratio, -max_log_ratio, max_log_ratio), mask, axis=-1)[..., None]
    log_w = jnp.clip(total, jnp.log(1e-8), max_log_ratio)
    k = jnp.where(advantages >= 0, k_pos, k_neg)
    decay = jnp.maximum(jnp.where(advantages >= 0, lambda_pos, lambda_neg), 1e-4)
    phi = jnp.exp(decay + k * log_w - decay * jnp.exp(log_w))
    return -jax.lax.stop_gradient(phi) * advantages * logp

  return surrogate


def dro(*, beta: float | Array = 0.1) -> Surrogate:
  """`-(A log pi(a) - beta/2 (log r)^2)`: the policy gradient with a quadratic pull back to the old policy.

  Args:
    beta: Strength of the pull, positive.

  Returns:
    `(log_ratio, advantages, *, logp) -> loss [..., T]`, minimized; its gradient is `-A + beta log r`.

  Reference: P. H. Richemond et al., "Offline Regularized Reinforcement Learning for LLM Alignment" (DRO),
  arXiv:2405.19107; token-wise as in verl.

  >>> print(dro(beta=1.0)(jnp.array([2.0]), jnp.array([1.0]), logp=jnp.array([-1.0])))
  [3.]
  """

  def surrogate(log_ratio: Array, advantages: Array, *, logp: Array, **_) -> Array:
    return -advantages * logp + 0.5 * beta * jnp.square(log_ratio)

  return surrogate


def dppo_tv(*, low: float | Array = 0.15, high: float | Array = 0.15, cap: float | Array = 20.0) -> Surrogate:
  """`-sg(min(r, cap)) A log pi(a)` where the token's probability has moved by at most `high` (or `low`), 0 elsewhere.

  A trust region in probabilities, the binary total variation, rather than in ratios: rare tokens may move freely. Only
  moves that the advantage asks for are stopped: `pi - pi_old > high` where `A > 0`, `< -low` elsewhere.

  Args:
    low: Largest fall of the probability.
    high: Largest rise of the probability.
    cap: Largest importance weight.

  Returns:
    `(log_ratio, advantages, *, logp) -> loss [..., T]`, minimized. Use `ratios.token`.

  Reference: "Rethinking the Trust Region in LLM Reinforcement Learning" (DPPO), arXiv:2602.04879.

  >>> logp = jnp.log(jnp.array([0.5, 0.5]))
  >>> loss = dppo_tv()(logp - jnp.log(jnp.array([0.3, 0.4])), jnp.ones(2), logp=logp)
  >>> [f"{x:.4f}" for x in loss]
  ['0.0000', '0.8664']
  """

  def surrogate(log_ratio: Array, advantages: Array, *, logp: Array, **_) -> Array:
    moved = jnp.exp(logp) - jnp.exp(logp - log_ratio)
    allowed = jnp.where(advantages > 0, moved <= high, moved >= -jnp.asarray(low))
    return _weighted_likelihood(allowed, log_ratio, cap) * advantages * logp

  return surrogate


def dppo_kl(*, low: float | Array = 0.05, high: float | Array = 0.05, cap: float | Array = 20.0) -> Surrogate:
  """As `dppo_tv`, with the binary KL between chosen and not chosen, `KL(Bern(pi_old) || Bern(pi))`, as the distance.

  Args:
    low: Largest divergence where the advantage is not positive and the probability fell.
    high: Largest divergence where the advantage is positive and the probability rose.
    cap: Largest importance weight.

  Returns:
    `(log_ratio, advantages, *, logp) -> loss [..., T]`, minimized. Use `ratios.token`.

  Reference: "Rethinking the Trust Region in LLM Reinforcement Learning" (DPPO), arXiv:2602.04879.

  >>> logp = jnp.log(jnp.array([0.5, 0.5]))
  >>> loss = dppo_kl()(logp - jnp.log(jnp.array([0.1, 0.4])), jnp.ones(2), logp=logp)
  >>> [f"{x:.4f}" for x in loss]
  ['0.0000', '0.8664']
  """

  def surrogate(log_ratio: Array, advantages: Array, *, logp: Array, **_) -> Array:
    p, old = jnp.exp(logp), jnp.exp(logp - log_ratio)
    rest = jnp.log((1 - old + 1e-8) / (1 - p + 1e-8))  # the constant is verl's; it keeps certain tokens finite
    divergence = -old * log_ratio + (1 - old) * rest
    close = jnp.where(advantages > 0, divergence <= high, divergence <= low)
    allowed = close | jnp.where(advantages > 0, p <= old, p >= old)
    return _weighted_likelihood(allowed, log_ratio, cap) * advantages * logp

  return surrogate


def _weighted_likelihood(allowed: Array, log_ratio: Array, cap: float | Array) -> Array:
  """`-sg(min(r, cap))` where it is allowed, else 0: what `A log pi` is multiplied by."""
  weight = jnp.where(allowed, jnp.exp(jnp.minimum(log_ratio, jnp.log(cap))), 0)
  return -jax.lax.stop_gradient(weight)


# Surrogates whose gradient is never stopped: they clip a weight, fade, or do neither.
NEVER_STOP = frozenset({"reinforce", "importance", "cispo", "sapo", "dro", "vespo"})


def is_stopped(
  surrogate: Surrogate, log_ratio: Array, advantages: Array, *, logp: Array | None = None, mask: Array | None = None
) -> Array:
  """Returns where a surrogate passes no gradient although the advantage is not 0: the tokens that it clipped.

  Computed from its derivative in each token's log-prob, so it holds for any surrogate, one written tomorrow included.

  >>> print(is_stopped(clip(), jnp.log(jnp.array([1.5, 1.5])), jnp.array([1.0, -1.0])))
  [ True False]
  """
  logp = jnp.zeros_like(log_ratio) if logp is None else logp
  mask = jnp.ones_like(log_ratio) if mask is None else mask

  def total(shift: Array) -> Array:  # the log-prob moves the log-ratio along with it
    return jnp.sum(zero_masked(surrogate(log_ratio + shift, advantages, logp=logp + shift, mask=mask), mask))

  slope = jax.grad(total)(jnp.zeros_like(log_ratio))
  return jax.lax.stop_gradient((slope == 0) & (advantages != 0) & as_bool(mask))
