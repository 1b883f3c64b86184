"""The optimizers of scripts: AdamW with a clipped gradient, a warm-up or a decay, and rates of their own for parts."""

from collections.abc import Mapping
from typing import Any

import jax
import optax


def make_optimizer(
  learning_rate: float,
  *,
  warmup_steps: int = 0,
  decay_steps: int = 0,
  weight_decay: float = 0.0,
  max_grad_norm: float = 1.0,
  part_rates: Mapping[str, float] = {},
) -> optax.GradientTransformation:
  """Returns AdamW behind a clip of the gradient's norm.

  Args:
    learning_rate: The peak.
    warmup_steps: Updates over which the rate rises to it, in equal steps from `learning_rate / (warmup_steps + 1)`.
    decay_steps: Updates over which it falls to 0 along a cosine; 0 for a rate that stays. Not with a warm-up.
    weight_decay: AdamW's weight decay.
    max_grad_norm: Gradients are scaled down to this norm, over all parts together.
    part_rates: Peaks of entries of a dict of parameters that have a rate of their own, such as a critic.

  Raises:
    ValueError: For a warm-up and a decay.

  >>> optimizer = make_optimizer(1e-3, part_rates={"critic": 1e-2})
  >>> params = {"policy": jax.numpy.ones(1), "critic": jax.numpy.ones(1)}
  >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
  >>> {name: f"{update[0]:.3f}" for name, update in updates.items()}
  {'critic': '-0.010', 'policy': '-0.001'}
  """
  if warmup_steps and decay_steps:
    raise ValueError(f"either warmup_steps or decay_steps may be above 0, got {warmup_steps} and {decay_steps}")

  def adamw(peak: float) -> optax.GradientTransformation:
    if decay_steps:
      return optax.adamw(optax.cosine_decay_schedule(peak, decay_steps), weight_decay=weight_decay)
    rising = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps) if warmup_steps else peak
    return optax.adamw(rising, weight_decay=weight_decay)

  def labels(params: Mapping[str, Any]) -> dict[str, Any]:
    return {
      name: jax.tree.map(lambda _, name=name: name if name in part_rates else "", entry)
      for name, entry in params.items()
    }

  clip = optax.clip_by_global_norm(max_grad_norm)
  if not part_rates:
    return optax.chain(clip, adamw(learning_rate))
  rates: Any = {"": adamw(learning_rate)} | {name: adamw(rate) for name, rate in part_rates.items()}
  return optax.chain(clip, optax.partition(rates, labels))
