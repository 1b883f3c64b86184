"""The composition that every objective is written in.

An `Objective` is two pure functions. `weight` turns masks and other parameter-free fields into per-token weights, once,
on the global batch. `loss` is then a plain sum of `weight * something`, so adding up the losses (and gradients) of any
split of the batch into micro-batches or devices gives the loss of the whole.

Terms (`policy_gradient`, `kl_penalty`, `entropy_bonus`, `value_regression`, `likelihood`, and those of `pairs`) are
added by `add`, weighed by `scale`, corrected token by token by `weighted`, and narrowed to some tokens by `masked`.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rl_jax.ops import kl as kl_lib
from rl_jax.ops import metrics as metrics_lib
from rl_jax.ops import ratios, surrogates
from rl_jax.ops.aggregation import Aggregate
from rl_jax.ops.masking import as_bool, zero_masked
from rl_jax.ops.metrics import Mean, Metrics
from rl_jax.ops.numerics import largest_exponent, safe_exp
from rl_jax.ops.ratios import OF_ITSELF, Ratio
from rl_jax.ops.surrogates import NEVER_STOP, Surrogate, is_stopped


class Inputs(NamedTuple):
  """What a loss may read; all `[..., T]` unless said otherwise. A field that no term needs may be None.

  The learner's fields, which carry the gradient, are `logp`, `entropy`, `values` and `reward_scores`. All others are
  parameter-free: finished before the update, on the global batch.

  Attributes:
    mask: 1 where the policy chose the token and it is trained on.
    advantages: One a token.
    logp: The learner's log-probs.
    entropy: The learner's entropies.
    old_logp: The policy's log-probs at the start of the update.
    ref_logp: The reference policy's log-probs.
    behavior_logp: The log-probs of the distribution that the tokens were sampled from.
    batch_logp: The learner's log-probs of the global batch at this update, held constant: for what is a statistic of
      the whole batch, such as a covariance. `make_train_step` fills it where an objective needs it.
    batch_entropy: The learner's entropies, likewise.
    values: The critic's value of the state before each token.
    old_values: Those at the start of the update.
    returns: What values should be.
    reward_scores: `[...]`, a reward model's score of each sequence.
    target_mask: 1 where the token is a label to imitate (rows of demonstrations or pretraining text in the batch).
    noise: Uniform random numbers in [0, 1), for objectives that pick tokens at random.
    ratings: `[...]`, how good raters found each sequence, for margins between them.
    kl_baseline: `[...]`, a sequence's share in a reference point (KTO's z0).
  """

  mask: Float[Array, "*batch T"] | Bool[Array, "*batch T"]
  advantages: Float[Array, "*batch T"] | None = None
  logp: Float[Array, "*batch T"] | None = None
  entropy: Float[Array, "*batch T"] | None = None
  old_logp: Float[Array, "*batch T"] | None = None
  ref_logp: Float[Array, "*batch T"] | None = None
  behavior_logp: Float[Array, "*batch T"] | None = None
  batch_logp: Float[Array, "*batch T"] | None = None
  batch_entropy: Float[Array, "*batch T"] | None = None
  values: Float[Array, "*batch T"] | None = None
  old_values: Float[Array, "*batch T"] | None = None
  returns: Float[Array, "*batch T"] | None = None
  reward_scores: Float[Array, "*batch"] | None = None
  target_mask: Float[Array, "*batch T"] | Bool[Array, "*batch T"] | None = None
  noise: Float[Array, "*batch T"] | None = None
  ratings: Float[Array, "*batch"] | None = None
  kl_baseline: Float[Array, "*batch"] | None = None


LEARNER = ("logp", "entropy", "values", "reward_scores")
Weights = Any


class Objective(NamedTuple):
  """A loss as two pure functions and the names of the passes that it needs.

  Attributes:
    weight: `Inputs -> weights`, from the parameter-free fields of the *global* batch; every leaf has the batch's
      leading axis.
    loss: `(Inputs, weights) -> (partial loss, metrics)`; partial losses of slices of the batch are summed.
    needs: The optional fields of `Inputs` that either reads; a pass that nobody needs never runs.
    parts: What it is made of, as `("ratio", "token")`, for tables.
  """

  weight: Callable[[Inputs], Weights]
  loss: Callable[[Inputs, Weights], tuple[Float[Array, ""], Metrics]]
  needs: frozenset[str]
  parts: tuple[tuple[str, str], ...] = ()


def name_of(function: Callable) -> str:
  """Returns the name that a function, or the factory that made it, was written under.

  >>> from rl_jax.ops import surrogates
  >>> name_of(surrogates.clip(low=0.1))
  'clip'
  """
  return getattr(function, "__qualname__", type(function).__name__).split(".")[0]


def field(inputs: Inputs, name: str) -> Array:
  """Returns a field with zeros under the mask, or says which one is missing.

  >>> print(field(Inputs(mask=jnp.array([1, 0]), logp=jnp.array([-1.0, jnp.nan])), "logp"))
  [-1.  0.]
  >>> field(Inputs(mask=jnp.array([1, 0])), "ref_logp")
  Traceback (most recent call last):
  ...
  ValueError: this objective needs Inputs.ref_logp, which is None
  """
  return zero_masked(present(inputs, name), inputs.mask)


def present(inputs: Inputs, name: str) -> Array:
  """Returns a field as it is, or says that it is missing.

  >>> print(present(Inputs(mask=jnp.array([[1]]), reward_scores=jnp.array([2.0])), "reward_scores"))
  [2.]
  """
  value = getattr(inputs, name)
  if value is None:
    raise ValueError(f"this objective needs Inputs.{name}, which is None")
  return value


def weighted_sum(weights: Array, values: Array) -> Float[Array, ""]:
  """`sum_t w_t x_t`, with `x` dropped wherever the weight is 0.

  >>> float(weighted_sum(jnp.array([0.5, 0.0]), jnp.array([2.0, jnp.inf])))
  1.0
  """
  return jnp.sum(weights * zero_masked(values, weights))


def policy_gradient(
  ratio: Ratio, surrogate: Surrogate, aggregate: Aggregate, *, needs: Iterable[str] = ("logp", "old_logp", "advantages")
) -> Objective:
  """`sum_t w_t surrogate(log_ratio_t, A_t)`, the policy's part of an objective.

  Args:
    ratio: `(logp, old_logp, mask) -> log-ratio [..., T]`, from `ops.ratios`.
    surrogate: `(log_ratio, advantages, *, logp, mask) -> loss [..., T]`, from `ops.surrogates`.
    aggregate: `mask -> weight [..., T]`, from `ops.aggregation`.
    needs: Without "old_logp" the ratio gets None for it; `ratios.on_policy` never asks for it.

  Metrics, where there is an old policy: `ratio` and `approx_kl` (k3 of old against new), and where the surrogate can
  stop a gradient `clip_low` and `clip_high`: the fractions of tokens with negative and with positive advantage whose
  gradient it stops.

  >>> from rl_jax.ops import aggregation, ratios, surrogates
  >>> objective = policy_gradient(ratios.token(), surrogates.clip(), aggregation.token_mean())
  >>> inputs = Inputs(jnp.ones(2), advantages=jnp.array([1.0, 3.0]), logp=jnp.zeros(2), old_logp=jnp.zeros(2))
  >>> float(objective.loss(inputs, objective.weight(inputs))[0])
  -2.0
  """
  needs = frozenset(needs) - ({"old_logp"} if name_of(ratio) in OF_ITSELF else set())

  def loss(inputs: Inputs, weights: Array) -> tuple[Array, Metrics]:
    logp, advantages = field(inputs, "logp"), field(inputs, "advantages")
    log_ratio = ratio(logp, field(inputs, "old_logp") if "old_logp" in needs else None, inputs.mask)
    context = dict(logp=logp, mask=inputs.mask)
    metrics: Metrics = {}
    if "old_logp" in needs:
      # Computed once and kept, rather than again in the reduction of every metric.
      r = jax.lax.optimization_barrier(jax.lax.stop_gradient(safe_exp(log_ratio)))
      metrics |= {"ratio": Mean.of(r, inputs.mask), "approx_kl": Mean.of(r - 1 - log_ratio, inputs.mask)}
    if name_of(surrogate) not in NEVER_STOP:
      stopped = jax.lax.optimization_barrier(is_stopped(surrogate, log_ratio, advantages, **context))
      metrics["clip_low"] = Mean.of(stopped & (advantages < 0), inputs.mask)
      metrics["clip_high"] = Mean.of(stopped & (advantages > 0), inputs.mask)
    return weighted_sum(weights, surrogate(log_ratio, advantages, **context)), metrics

  parts = (("ratio", name_of(ratio)), ("surrogate", name_of(surrogate)), ("aggregation", name_of(aggregate)))
  return Objective(lambda inputs: aggregate(inputs.mask), loss, needs, parts)


def on_policy_gradient(aggregate: Aggregate) -> Objective:
  """`-sum_t w_t A_t log pi(a_t)`: the plain policy gradient, for batches that are used once. No old pass is needed.

  >>> from rl_jax.ops import aggregation
  >>> sorted(on_policy_gradient(aggregation.sequence_sum()).needs)
  ['advantages', 'logp']
  """
  return policy_gradient(ratios.on_policy(), surrogates.reinforce(), aggregate)


def kl_penalty(
  estimator: kl_lib.Estimator,
  aggregate: Aggregate,
  *,
  reference: str = "ref_logp",
  ratio: Ratio | None = None,
  ratio_to: str = "old_logp",
  max_log_ratio: float | Array | None = None,
  max_value: float | Array | None = None,
  metric: str | None = None,
) -> Objective:
  """`sum_t w_t kl_t(policy || reference)`, or `sum_t w_t r_t kl_t` with importance weights.

  Metric: `kl_ref`, the mean over tokens; `kl_old` and `kl_behavior` where it is compared with those.

  Args:
    estimator: `(logp, ref_logp) -> [..., T]`, from `ops.kl`; `functools.partial` sets its clamp.
    aggregate: `mask -> weight [..., T]`, from `ops.aggregation`.
    reference: The field to compare with; "old_logp" gives PPO's penalty on the update itself.
    ratio: If given, each estimate is multiplied by `r = exp(log-ratio)`, with its gradient: with `ratios.token` and k3
      the gradient on tokens drawn from the old policy is that of the KL (TRL's default, "bias-corrected"); so it is
      with k1. The gradient of k2 is that of the KL by itself: it wants `ratios.detached(ratios.token())`.
    ratio_to: The field that the ratio is taken against; "behavior_logp" corrects for the sampler. `ratios.on_policy`
      compares with nothing, and needs none.
    max_log_ratio: Clamp of that log-ratio from above; `numerics.largest_exponent` by default. Where the ratio exceeds
      1 the estimate is bounded further, so that their product stays finite.
    max_value: Clamp of each token's penalty, weighted by its ratio (slime's 10); none by default.
    metric: The metric's name, where the estimator is none of a KL.

  >>> from rl_jax.ops import aggregation, kl
  >>> objective = kl_penalty(kl.k2, aggregation.token_mean())
  >>> inputs = Inputs(jnp.ones(1), logp=jnp.array([-1.0]), ref_logp=jnp.array([-1.5]))
  >>> float(objective.loss(inputs, objective.weight(inputs))[0])
  0.125
  """

  name = metric or f"kl_{reference.removesuffix('_logp')}"
  compared = None if ratio is None or name_of(ratio) in OF_ITSELF else ratio_to

  def loss(inputs: Inputs, weights: Array) -> tuple[Array, Metrics]:
    divergence = estimator(field(inputs, "logp"), field(inputs, reference))
    metrics: Metrics = {name: Mean.of(divergence, inputs.mask)}
    if ratio is not None:
      before = None if compared is None else field(inputs, compared)
      log_ratio = ratio(field(inputs, "logp"), before, inputs.mask)
      limit = largest_exponent(log_ratio)
      log_ratio = jnp.minimum(log_ratio, limit if max_log_ratio is None else max_log_ratio)
      room = jnp.exp(limit - jax.lax.stop_gradient(jnp.maximum(log_ratio, 0)))
      divergence = safe_exp(log_ratio) * jnp.minimum(divergence, room)
    if max_value is not None:
      divergence = jnp.minimum(divergence, max_value)
    return weighted_sum(weights, divergence), metrics

  needs = {"logp", reference} | (set() if compared is None else {compared})
  parts = (("kl", f"{name_of(estimator)} to {reference.removesuffix('_logp')}"), ("aggregation", name_of(aggregate)))
  return Objective(lambda inputs: aggregate(inputs.mask), loss, frozenset(needs), parts)


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

  parts = (("entropy", "bonus"), ("aggregation", name_of(aggregate)))
  return Objective(lambda inputs: aggregate(inputs.mask), loss, frozenset({"entropy"}), parts)


def value_regression(
  aggregate: Aggregate, *, clip: float | Array | None = 0.2, huber: float | Array | None = None
) -> Objective:
  """`1/2 sum_t w_t max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)`, the critic's part of an objective.

  Args:
    aggregate: `mask -> weight [..., T]`, from `ops.aggregation`.
    clip: How far a value may move from the old one before its gradient stops, in units of the return; None for a plain
      regression, which needs no `old_values`.
    huber: If given, errors beyond it count linearly: `huber (|e| - huber / 2)` in place of `e^2 / 2`.

  Metrics: `value_error` (mean square) and `value_clipped` (fraction). See `ops.returns.explained_variance`.

  >>> from rl_jax.ops import aggregation
  >>> objective = value_regression(aggregation.token_mean(), clip=None)
  >>> inputs = Inputs(jnp.ones(2), values=jnp.array([1.0, 2.0]), returns=jnp.array([2.0, 2.0]))
  >>> float(objective.loss(inputs, objective.weight(inputs))[0])
  0.25
  """

  def penalty(error: Array) -> Array:
    if huber is None:
      return 0.5 * jnp.square(error)
    return jnp.where(jnp.abs(error) <= huber, 0.5 * jnp.square(error), huber * (jnp.abs(error) - 0.5 * huber))

  def loss(inputs: Inputs, weights: Array) -> tuple[Array, Metrics]:
    values, returns = field(inputs, "values"), field(inputs, "returns")
    losses = penalty(values - returns)
    metrics: Metrics = {"value_error": Mean.of(jnp.square(values - returns), inputs.mask)}
    if clip is not None:
      old_values = field(inputs, "old_values")
      clipped = penalty(jnp.clip(values, old_values - clip, old_values + clip) - returns)
      metrics["value_clipped"] = Mean.of(clipped > losses, inputs.mask)
      losses = jnp.maximum(losses, clipped)
    return weighted_sum(weights, losses), metrics

  needs = {"values", "returns"} | (set() if clip is None else {"old_values"})
  parts = (("value", "squared" if huber is None else "huber"), ("aggregation", name_of(aggregate)))
  return Objective(lambda inputs: aggregate(inputs.mask), loss, frozenset(needs), parts)


def likelihood(
  aggregate: Aggregate, *, on: str = "mask", token_weight: Callable[[Array], Array] | None = None
) -> Objective:
  """`-sum_t w_t log pi(label_t)`: cross-entropy with given tokens. Metric: `nll`.

  It is the policy gradient with advantage 1 on the labels.

  Args:
    aggregate: `mask -> weight [..., T]`, from `ops.aggregation`.
    on: Which tokens are labels: the field "mask", or "target_mask" for rows of demonstrations within an RL batch.
    token_weight: `logp -> [..., T]`, a factor that carries no gradient.

  >>> from rl_jax.ops import aggregation
  >>> objective = likelihood(aggregation.token_mean())
  >>> inputs = Inputs(jnp.ones(2), logp=jnp.array([-1.0, -3.0]))
  >>> float(objective.loss(inputs, objective.weight(inputs))[0])
  2.0
  """

  def loss(inputs: Inputs, weights: Array) -> tuple[Array, Metrics]:
    labels = present(inputs, on)
    logp = zero_masked(present(inputs, "logp"), labels)
    factor = 1.0 if token_weight is None else jax.lax.stop_gradient(token_weight(logp))
    return -weighted_sum(weights, factor * logp), {"nll": Mean.of(-logp, labels)}

  needs = {"logp"} | ({on} - {"mask"})
  parts = (("surrogate", "likelihood"), ("aggregation", name_of(aggregate)))
  return Objective(lambda inputs: aggregate(present(inputs, on)), loss, frozenset(needs), parts)


def weighted(objective: Objective, factor: Callable[[Inputs], Array], *, needs: Iterable[str]) -> Objective:
  """Multiplies an objective's per-token weights by a factor that carries no gradient, such as an importance weight.

  The denominators stay those of all tokens: see `masked` for the other convention, which comes first where both are
  wanted. The factor is computed on all tokens of the batch.

  Args:
    objective: Its weights are arrays `[..., T]`: a term, or a sum of terms.
    factor: `Inputs -> [..., T]`, from parameter-free fields of the global batch.
    needs: The fields that it reads.

  >>> from rl_jax.ops import aggregation
  >>> halved = weighted(entropy_bonus(aggregation.token_mean()), lambda inputs: 0.5 * inputs.mask, needs=())
  >>> inputs = Inputs(jnp.ones(2), entropy=jnp.array([1.0, 3.0]))
  >>> float(halved.loss(inputs, halved.weight(inputs))[0])
  -1.0
  """

  def weight(inputs: Inputs) -> Weights:
    factors = zero_masked(jax.lax.stop_gradient(factor(inputs)), inputs.mask)
    weights = objective.weight(inputs)
    if any(leaf.shape != factors.shape for leaf in jax.tree.leaves(weights)):
      raise ValueError("weighted needs an objective with a weight per token; one that compares sequences has none")
    return jax.tree.map(lambda leaf: leaf * factors, weights)

  parts = (*objective.parts, ("correction", name_of(factor)))
  return Objective(weight, objective.loss, objective.needs | frozenset(needs), parts)


def masked(objective: Objective, keep: Callable[[Inputs], Array], *, needs: Iterable[str]) -> Objective:
  """Narrows a term to some tokens, with the denominators of those alone: its weights come from `mask & keep`
  (and `target_mask & keep`).

  Only weights are narrowed: a ratio of whole sequences is still one of all their tokens, those left out included.

  Args:
    objective: A term.
    keep: `Inputs -> [..., T]` booleans, from parameter-free fields of the global batch.
    needs: The fields that it reads.

  Raises:
    ValueError: If the term was weighted or narrowed before: factor and mask would be computed on what is kept alone,
      and the order of the two would change the loss.

  >>> from rl_jax.ops import aggregation
  >>> first = masked(entropy_bonus(aggregation.token_mean()), lambda inputs: jnp.array([True, False]), needs=())
  >>> inputs = Inputs(jnp.ones(2), entropy=jnp.array([1.0, 3.0]))
  >>> float(first.loss(inputs, first.weight(inputs))[0])
  -1.0
  """

  if before := [value for kind, value in objective.parts if kind in ("correction", "restriction")]:
    raise ValueError(
      f"masked: {before[0]} changed the term already; narrow a term by one mask (`&` joins several), then weigh it"
    )

  def weight(inputs: Inputs) -> Weights:
    kept = as_bool(keep(inputs))
    narrowed = inputs._replace(mask=as_bool(inputs.mask) & kept)
    if inputs.target_mask is not None:
      narrowed = narrowed._replace(target_mask=as_bool(inputs.target_mask) & kept)
    return objective.weight(narrowed)

  parts = (*objective.parts, ("restriction", name_of(keep)))
  return Objective(weight, objective.loss, objective.needs | frozenset(needs), parts)


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
  """Sums objectives; each keeps its own weights.

  A metric has one name whatever the composition. Where two terms measure the same, it is over the tokens of both.

  >>> from rl_jax.ops import aggregation, kl
  >>> both = add(kl=kl_penalty(kl.k3, aggregation.token_mean()), entropy=entropy_bonus(aggregation.token_mean()))
  >>> sorted(both.needs)
  ['entropy', 'logp', 'ref_logp']
  """

  def weight(inputs: Inputs) -> dict[str, Weights]:
    return {name: term.weight(inputs) for name, term in terms.items()}

  def loss(inputs: Inputs, weights: dict[str, Weights]) -> tuple[Array, Metrics]:
    total, metrics = jnp.zeros(()), dict[str, metrics_lib.Metric]()
    for name, term in terms.items():
      value, its_metrics = term.loss(inputs, weights[name])
      total = total + value
      metrics = metrics_lib.merge(metrics, its_metrics)
    return total, metrics

  parts = tuple(part for term in terms.values() for part in term.parts)
  return Objective(weight, loss, frozenset().union(*(term.needs for term in terms.values())), parts)
