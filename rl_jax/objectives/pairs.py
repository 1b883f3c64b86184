"""Terms that compare whole sequences: preference pairs, rankings, and sequences against a reference."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.objectives.base import Inputs, Objective, field, present, weighted_sum
from rl_jax.ops import ratios
from rl_jax.ops.aggregation import sequence_mean
from rl_jax.ops.masking import as_bool, masked_sum, zero_masked
from rl_jax.ops.metrics import Mean, Metrics


class Pair(NamedTuple):
  """What a preference loss compares; each `[...]`, one a pair, chosen first.

  Attributes:
    logp: `(chosen, rejected)` log-probs of the sequences, summed over tokens.
    log_ratio: `(chosen, rejected)` of policy over reference; None without a reference.
    tokens: `(chosen, rejected)` numbers of tokens.
  """

  logp: tuple[Array, Array]
  log_ratio: tuple[Array, Array] | None
  tokens: tuple[Array, Array]


def pairwise(
  compare: Callable[[Pair, Any], tuple[Array, tuple[Array, Array]]],
  *,
  reference: bool = True,
  tail_weight: float | Array = 1.0,
  constants: Callable[[Inputs, Array], Any] | None = None,
  needs: Iterable[str] = (),
) -> Objective:
  """The mean over preference pairs `[..., 2, T]` (chosen first) of a loss of the two sequences.

  Pairs with an empty side are left out. Metrics: `reward_chosen` and `reward_rejected`, the rewards that the policy
  implies; `margin`, their difference; and `accuracy`, the share of positive margins (0 counts half).

  Args:
    compare: `(Pair, constants) -> (loss [...], (chosen, rejected) rewards [...])`.
    reference: Whether log-ratios to a reference are needed.
    tail_weight: Weight of the log-probs beyond the shorter side's length, 1 for plain sums; below 1 it desensitizes
      the loss to length (LD-DPO, arXiv:2409.06411).
    constants: `(Inputs, pair weights) -> pytree` with the pairs' leading axes, computed with the weights on the global
      batch and handed to `compare`.
    needs: Fields that `constants` reads.

  >>> margin = pairwise(lambda pair, _: (-(pair.logp[0] - pair.logp[1]), pair.logp), reference=False)
  >>> inputs = Inputs(jnp.ones((2, 1)), logp=jnp.array([[-1.0], [-3.0]]))
  >>> float(margin.loss(inputs, margin.weight(inputs))[0])
  -2.0
  """
  names = ("logp", "ref_logp") if reference else ("logp",)

  def weight(inputs: Inputs) -> tuple[Array, Any]:
    complete = jnp.all(jnp.any(as_bool(inputs.mask), axis=-1), axis=-1)
    weights = complete / jnp.maximum(jnp.sum(complete, dtype=jnp.result_type(float)), 1)
    return weights, None if constants is None else constants(inputs, weights)

  def loss(inputs: Inputs, weights: tuple[Array, Any]) -> tuple[Array, Metrics]:
    logps = {name: _sides(sequence_logp(field(inputs, name), inputs.mask, tail_weight=tail_weight)) for name in names}
    chosen, rejected = logps["logp"]
    log_ratio = (chosen - logps["ref_logp"][0], rejected - logps["ref_logp"][1]) if reference else None
    tokens = _sides(jnp.sum(as_bool(inputs.mask), axis=-1, dtype=chosen.dtype))
    pair = Pair((chosen, rejected), log_ratio, tokens)
    losses, rewards = compare(pair, weights[1])
    margin = rewards[0] - rewards[1]
    measured = {"accuracy": jnp.heaviside(margin, 0.5), "margin": margin}
    measured |= {"reward_chosen": rewards[0], "reward_rejected": rewards[1]}
    metrics: Metrics = {name: Mean.of(values, weights[0]) for name, values in measured.items()}
    return weighted_sum(weights[0], losses), metrics

  parts = (("surrogate", compare.__name__), ("compares", "pairs"))
  return Objective(weight, loss, frozenset(names) | frozenset(needs), parts)


def _sides(x: Array) -> tuple[Array, Array]:
  if x.ndim < 1 or x.shape[-1] != 2:
    raise ValueError(f"a preference batch must be [..., 2, T] with the chosen side first, got {x.shape} sequences")
  return x[..., 0], x[..., 1]


def sequence_logp(logp: Array, mask: Array, *, tail_weight: float | Array = 1.0) -> Array:
  """Returns the log-probs `[...]` of sequences `[..., T]`, summed over real tokens.

  Args:
    logp: `[..., 2, T]` where `tail_weight` is not 1.
    mask: Real tokens.
    tail_weight: Weight of the tokens of a pair's longer side beyond the length of its shorter side.

  >>> print(sequence_logp(jnp.array([[-1.0, -1.0], [-2.0, -9.0]]), jnp.array([[1, 1], [1, 0]])))
  [-2. -2.]
  >>> print(sequence_logp(jnp.array([[-1.0, -1.0], [-2.0, -9.0]]), jnp.array([[1, 1], [1, 0]]), tail_weight=0.5))
  [-1.5 -2. ]
  """
  if isinstance(tail_weight, int | float) and tail_weight == 1:
    return masked_sum(logp, mask, axis=-1)
  place = jnp.cumsum(as_bool(mask), axis=-1)
  shared = jnp.min(place[..., -1], axis=-1)[..., None, None]
  return masked_sum(jnp.where(place <= shared, 1, tail_weight) * zero_masked(logp, mask), mask, axis=-1)


def sequencewise(
  losses: Callable[[Array, Any], tuple[Array, Metrics]],
  *,
  constants: Callable[[Inputs, Array], Any] | None = None,
  needs: Iterable[str] = (),
) -> Objective:
  """The mean over sequences of a loss of their log-ratio to the reference, `log pi(y) - log ref(y)`.

  Args:
    losses: `(log_ratio [...], constants) -> (loss [...], metrics)`.
    constants: `(Inputs, sequence weights) -> pytree` with the sequences' leading axes, computed with the weights on
      the global batch.
    needs: Fields that `constants` reads.

  >>> objective = sequencewise(lambda log_ratio, _: (-log_ratio, {}))
  >>> inputs = Inputs(jnp.ones((1, 2)), logp=jnp.array([[-1.0, -1.0]]), ref_logp=jnp.array([[-2.0, -2.0]]))
  >>> float(objective.loss(inputs, objective.weight(inputs))[0])
  -2.0
  """

  def weight(inputs: Inputs) -> tuple[Array, Any]:
    weights = jnp.sum(sequence_mean()(inputs.mask), axis=-1)
    return weights, None if constants is None else constants(inputs, weights)

  def loss(inputs: Inputs, weights: tuple[Array, Any]) -> tuple[Array, Metrics]:
    log_ratio = ratios.token()(field(inputs, "logp"), field(inputs, "ref_logp"), inputs.mask)
    values, metrics = losses(jnp.sum(log_ratio, axis=-1), weights[1])
    return weighted_sum(weights[0], values), metrics

  return Objective(weight, loss, frozenset({"logp", "ref_logp"}) | frozenset(needs), (("surrogate", losses.__name__),))


def ranking(compare: Callable[[Array], Array], *, centering: float | Array = 0.0, margins: bool = False) -> Objective:
  """The mean over rankings `[..., K]` of a loss of every pair of scores in it, `1 / (pairs of the ranking)` each.

  Scores come best first; K = 2 is a preference pair. Sequences without tokens take part in no pair, and where there
  are `ratings`, equally rated ones are no pair. Metrics: `accuracy` (share of pairs in the right order; equal scores
  count half), `margin`, `reward_score`.

  Args:
    compare: `score difference (better minus worse) -> loss`, elementwise.
    centering: Weight of `(s_i + s_j)^2`, which keeps scores around 0.
    margins: Whether the difference of the `ratings` is subtracted from that of the scores first.

  >>> import jax
  >>> objective = ranking(lambda difference: -jax.nn.log_sigmoid(difference))
  >>> inputs = Inputs(jnp.ones((2, 1)), reward_scores=jnp.array([2.0, 2.0]))
  >>> f"{objective.loss(inputs, objective.weight(inputs))[0]:.4f}"
  '0.6931'
  """

  def weight(inputs: Inputs) -> Array:
    exists = jnp.any(as_bool(inputs.mask), axis=-1)
    both = exists[..., :, None] & exists[..., None, :]
    pairs = both & jnp.broadcast_to(jnp.triu(jnp.ones(both.shape[-2:], bool), k=1), both.shape)  # better, then worse
    if inputs.ratings is not None:
      pairs &= inputs.ratings[..., :, None] != inputs.ratings[..., None, :]
    count = jnp.sum(pairs, axis=(-2, -1), keepdims=True, dtype=jnp.result_type(float))
    rankings = jnp.maximum(jnp.sum(count > 0, dtype=count.dtype), 1)
    return pairs / (jnp.maximum(count, 1) * rankings)

  def loss(inputs: Inputs, weights: Array) -> tuple[Array, Metrics]:
    exists = jnp.any(as_bool(inputs.mask), axis=-1)
    scores = zero_masked(present(inputs, "reward_scores"), exists)
    difference = scores[..., :, None] - scores[..., None, :]
    wanted = difference
    if margins:
      ratings = zero_masked(present(inputs, "ratings"), exists)
      wanted = difference - (ratings[..., :, None] - ratings[..., None, :])
    losses = compare(wanted) + centering * jnp.square(scores[..., :, None] + scores[..., None, :])
    metrics: Metrics = {
      "accuracy": Mean.of(jnp.heaviside(difference, 0.5), weights),
      "margin": Mean.of(difference, weights),
      "reward_score": Mean.of(scores, exists),
    }
    return weighted_sum(weights, losses), metrics

  needs = frozenset({"reward_scores"} | ({"ratings"} if margins else set()))
  return Objective(weight, loss, needs, (("surrogate", compare.__name__), ("compares", "rankings")))
