"""Coefficients that follow what they control: pure functions of the last one, which belongs in the checkpoint."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def adaptive_kl(
  coef: Float[Array, ""],
  kl: Float[Array, ""],
  *,
  target: float | Array,
  horizon: float | Array = 10_000.0,
  samples: float | Array,
) -> Float[Array, ""]:
  """Ziegler's proportional controller: `coef (1 + clip(kl / target - 1, -0.2, 0.2) samples / horizon)`.

  Args:
    coef: The coefficient so far.
    kl: The measured KL, in the units of `target` (nats a sequence in the paper, nats a token in verl).
    target: The KL wanted.
    horizon: Samples over which the coefficient may change by a fifth.
    samples: Samples seen since the last call.

  Reference: D. M. Ziegler et al., "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593 (eq. 4).

  >>> f"{adaptive_kl(jnp.array(0.1), jnp.array(12.0), target=6.0, horizon=1000, samples=100):.4f}"
  '0.1020'
  """
  error = jnp.clip(kl / target - 1, -0.2, 0.2)
  return coef * (1 + error * samples / horizon)


def kl_band(
  coef: Float[Array, ""], kl: Float[Array, ""], *, low: float | Array, high: float | Array, factor: float | Array = 2.0
) -> Float[Array, ""]:
  """Multiplies the coefficient by `factor` where `kl > high`, divides where `kl < low`.

  PPO's rule for a target d is `low = d / 1.5, high = 1.5 d, factor = 2`.

  Args:
    coef: The coefficient so far.
    kl: The measured KL.
    low: The KL below which the coefficient falls.
    high: The KL above which the coefficient rises.
    factor: Factor of a change, above 1.

  Reference: J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347 (section 4).

  >>> [float(kl_band(jnp.array(1.0), jnp.array(kl), low=0.01, high=0.04)) for kl in (0.001, 0.02, 0.1)]
  [0.5, 1.0, 2.0]
  """
  return jnp.where(kl > high, coef * factor, jnp.where(kl < low, coef / factor, coef))


def adaptive_entropy(
  coef: Float[Array, ""],
  entropy: Float[Array, ""],
  *,
  target: float | Array,
  delta: float | Array = 0.005,
  low: float | Array = 0.0,
  high: float | Array = 1.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Raises the weight of the entropy bonus by `delta` where the entropy is at or below its target, lowers it elsewhere.

  Args:
    coef: The coefficient so far.
    entropy: The measured entropy, in nats a token.
    target: The least entropy wanted.
    delta: Step of a change.
    low: Least coefficient.
    high: Largest coefficient.

  Returns:
    The new coefficient, to be kept, and the one to apply: 0 while the entropy is above its target.

  Reference: J. He et al., "Skywork Open Reasoner 1 Technical Report", arXiv:2505.22312.

  >>> kept, applied = adaptive_entropy(jnp.array(0.01), jnp.array(0.1), target=0.2)
  >>> f"{kept:.3f} {applied:.3f}"
  '0.015 0.015'
  """
  short = entropy <= target
  kept = jnp.clip(jnp.where(short, coef + delta, coef - delta), low, high)
  return kept, jnp.where(short, kept, 0)
