"""The composition that every objective is written in.

An `Objective` is two pure functions. `weight` turns masks into per-token weights, once, on the global batch; it
never sees a parameter. `loss` is then a plain sum of `weight * something`, so adding up the losses (and gradients)
of any split of the batch into micro-batches or devices gives the loss of the whole.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_jax.ops.aggregation import Aggregate
from rl_jax.ops.masking import zero_masked
from rl_jax.ops.metrics import Mean, Metrics
from rl_jax.ops.ratios import Ratio
from rl_jax.ops.surrogates import Surrogate, is_stopped


class Inputs(NamedTuple):
  """What a loss may read; all `[..., T]`. A field that no term needs may be None.

  Attributes:
    mask: 1 where the policy chose the token and it is trained on.
    advantages: One a token, finished before the update.
    logp: The learner's log-probs, the only field (with `entropy`) that carries a gradient.
    entropy: The learner's entropies.
    old_logp: The policy's log-probs at the start of the update.
    ref_logp: The reference policy's log-probs.
    behaviour_logp: The log-probs of the distribution that the tokens were sampled from.
  """

  mask: Float[Array, "*batch T"] | Bool[Array, "*batch T"]
  advantages: Float[Array, "*batch T"] | None = None
  logp: Float[Array, "*batch T"] | None = None
  entropy: Float[Array, "*batch T"] | None = None
  old_logp: Float[Array, "*batch T"] | None = None
  ref_logp: Float[Array, "*batch T"] | None = None
  behaviour_logp: Float[Array, "*batch T"] | None = None


Weights = Any


class Objective(NamedTuple):
  """A loss as two pure functions and the names of the passes that it needs.

  Attributes:
    weight: `Inputs -> weights`, from the parameter-free fields of the *global* batch.
    loss: `(Inputs, weights) -> (partial loss, metrics)`; partial losses of slices of the batch are summed.
    needs: The optional fields of `Inputs` that `loss` reads; a pass that nobody needs never runs.
  """

  weight: Callable[[Inputs], Weights]
  loss: Callable[[Inputs, Weights], tuple[Float[Array, ""], Metrics]]
  needs: frozenset[str]


def field(inputs: Inputs, name: str) -> Array:
  """Returns a field with zeros under the mask, or says which one is missing.

  >>> print(field(Inputs(mask=jnp.array([1, 0]), logp=jnp.array([-1.0, jnp.nan])), "logp"))
  [-1.  0.]
  >>> field(Inputs(mask=jnp.array([1, 0])), "ref_logp")
  Traceback (most recent call last):
  ...
  ValueError: this objective needs Inputs.ref_logp, which is None
  """
  value = getattr(inputs, name)
  if value is None:
    raise ValueError(f"this objective needs Inputs.{name}, which is None")
  return zero_masked(value, inputs.mask)


def weighted_sum(weights: Array, values: Array) -> Float[Array, ""]:
  """`sum_t w_t x_t`, with `x` dropped wherever the weight is 0.

  >>> float(weighted_sum(jnp.array([0.5, 0.0]), jnp.array([2.0, jnp.inf])))
  1.0
  """
  return jnp.sum(weights * zero_masked(values, weights))


def policy_gradient(ratio: Ratio, surrogate: Surrogate, aggregate: Aggregate) -> Objective:
  """`sum_t w_t surrogate(log_ratio_t, A_t)`, the policy's part of an objective.

  Args:
    ratio: `(logp, old_logp, mask) -> log-ratio [..., T]`, from `ops.ratios`.
    surrogate: `(log_ratio, advantages) -> loss [..., T]`, from `ops.surrogates`.
    aggregate: `mask -> weight [..., T]`, from `ops.aggregation`.

  Metrics: `ratio` and `approx_kl` (k3 of old against new), `clip_low` and `clip_high`: the fractions of tokens with
  negative and with positive advantage whose gradient the surrogate stops.

  >>> from rl_jax.ops import aggregation, ratios, surrogates
  >>> objective = policy_gradient(ratios.token(), surrogates.clip(), aggregation.token_mean())
  >>> inputs = Inputs(jnp.ones(2), advantages=jnp.array([1.0, 3.0]), logp=jnp.zeros(2), old_logp=jnp.zeros(2))
  >>> float(objective.loss(inputs, objective.weight(inputs))[0])
  -2.0
  """

  def loss(inputs: Inputs, weights: Array) -> tuple[Array, Metrics]:
    logp, old_logp = field(inputs, "logp"), field(inputs, "old_logp")
    advantages = field(inputs, "advantages")
    log_ratio = ratio(logp, old_logp, inputs.mask)
    stopped = is_stopped(surrogate, log_ratio, advantages)
    metrics: Metrics = {
      "ratio": Mean.of(jnp.exp(log_ratio), inputs.mask),
      "approx_kl": Mean.of(jnp.expm1(log_ratio) - log_ratio, inputs.mask),
      "clip_low": Mean.of(stopped & (advantages < 0), inputs.mask),
      "clip_high": Mean.of(stopped & (advantages > 0), inputs.mask),
    }
    return weighted_sum(weights, surrogate(log_ratio, advantages)), metrics

  return Objective(lambda inputs: aggregate(inputs.mask), loss, frozenset({"logp", "old_logp", "advantages"}))


def kl_penalty(estimator: Callable[[Array, Array], Array], aggregate: Aggregate) -> Objective:
  """`sum_t w_t kl_t(policy || reference)`. Metric: `kl`.

  Args:
    estimator: `(logp, ref_logp) -> [..., T]`, from `ops.kl`; `functools.partial` sets its clamp.
    aggregate: `mask -> weight [..., T]`, from `ops.aggregation`.

  >>> from rl_jax.ops import aggregation, kl
  >>> objective = kl_penalty(kl.k2, aggregation.token_mean())
  >>> inputs = Inputs(jnp.ones(1), logp=jnp.array([-1.0]), ref_logp=jnp.array([-1.5]))
  >>> float(objective.loss(inputs, objective.weight(inputs))[0])
  0.125
  """

  def loss(inputs: Inputs, weights: Array) -> tuple[Array, Metrics]:
    divergence = estimator(field(inputs, "logp"), field(inputs, "ref_logp"))
    return weighted_sum(weights, divergence), {"kl": Mean.of(divergence, inputs.mask)}

  return Objective(lambda inputs: aggregate(inputs.mask), loss, frozenset({"logp", "ref_logp"}))


def entropy_bonus(aggregate: Aggregate) -> Objective:
  """`-sum_t w_t H_t`: a positive coefficient keeps the policy random. Metric: `entropy`.

  >>> from rl_jax.ops import aggregation
  >>> objective = entropy_bonus(aggregation.token_mean())
  >>> inputs = Inputs(jnp.ones(2), entropy=jnp.array([1.0, 3.0]))
  >>> float(objective.loss(inputs, objective.weight(inputs))[0])
  -2.0
  """

  def loss(inputs: Inputs, weights: Array) -> tuple[Array, Metrics]:
    entropy = field(inputs, "entropy")
    return -weighted_sum(weights, entropy), {"entropy": Mean.of(entropy, inputs.mask)}

  return Objective(lambda inputs: aggregate(inputs.mask), loss, frozenset({"entropy"}))


def scale(coefficient: float | Array, objective: Objective) -> Objective:
  """Multiplies an objective's loss, not its metrics. The coefficient may be traced.

  A Python 0 drops the term with its needs, so that a reference pass nobody weighs never runs.

  >>> from rl_jax.ops import aggregation
  >>> objective = entropy_bonus(aggregation.token_mean())
  >>> inputs = Inputs(jnp.ones(2), entropy=jnp.array([1.0, 3.0]))
  >>> float(scale(0.5, objective).loss(inputs, objective.weight(inputs))[0])
  -1.0
  >>> scale(0, objective).needs
  frozenset()
  """
  if isinstance(coefficient, int | float) and coefficient == 0:
    return Objective(lambda inputs: (), lambda inputs, weights: (jnp.zeros(()), {}), frozenset())

  def loss(inputs: Inputs, weights: Weights) -> tuple[Array, Metrics]:
    value, metrics = objective.loss(inputs, weights)
    return coefficient * value, metrics

  return objective._replace(loss=loss)


def add(**terms: Objective) -> Objective:
  """Sums objectives; each keeps its own weights, and its metrics get its name in front.

  >>> from rl_jax.ops import aggregation, kl
  >>> both = add(kl=kl_penalty(kl.k3, aggregation.token_mean()), entropy=entropy_bonus(aggregation.token_mean()))
  >>> sorted(both.needs)
  ['entropy', 'logp', 'ref_logp']
  """

  def weight(inputs: Inputs) -> dict[str, Weights]:
    return {name: term.weight(inputs) for name, term in terms.items()}

  def loss(inputs: Inputs, weights: dict[str, Weights]) -> tuple[Array, Metrics]:
    total, metrics = jnp.zeros(()), {}
    for name, term in terms.items():
      value, its_metrics = term.loss(inputs, weights[name])
      total = total + value
      metrics |= {f"{name}/{key}": metric for key, metric in its_metrics.items()}
    return total, metrics

  return Objective(weight, loss, frozenset().union(*(term.needs for term in terms.values())))
