"""The update step: weights on the global batch, gradients summed over micro-batches and devices, one optimiser step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rl_jax.objectives.base import Inputs, Objective
from rl_jax.ops import metrics as metrics_lib
from rl_jax.ops.metrics import Mean, Metrics
from rl_jax.train import parallel
from rl_jax.train.score import Scores
from rl_jax.train.state import TrainState, join, split


class Batch(NamedTuple):
  """What an update reads. Every leaf has the prompts on its leading axis.

  Attributes:
    sequences: What the score function reads, usually `train.score.Sequences`.
    inputs: The parameter-free fields of the objective's inputs; what `score` gives is filled in by the step, and so are
      `batch_logp` and `batch_entropy` where the objective needs them, by a pass of their own. Where `old_logp` is None,
      the batch counts as on-policy: the old log-probs are the learner's own.
  """

  sequences: Any
  inputs: Inputs


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
  score: Callable[[Any, Any], Scores],
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  microbatches: int = 1,
  axis_name: parallel.AxisName = None,
  frozen: Sequence[str] = (),
) -> TrainStep:
  """Returns `step(state, batch) -> (state, metrics)`, pure; wrap it with one of `train.parallel`.

  A non-finite loss or gradient leaves parameters and optimiser state as they were, and the metric `skipped` counts it.

  Args:
    score: `(params, sequences) -> Scores`, differentiable.
    objective: What to minimise.
    tx: Any optax transformation.
    microbatches: Slices that the gradient is accumulated over; it saves memory and does not change the result.
    axis_name: The mapped axis under shard_map or pmap; None under plain or sharded jit.
    frozen: Entries of a dict of parameters that `score` reads and that are not trained: no gradient is computed for
      them, and the optimiser's state does not hold them (`TrainState.create(..., frozen=...)`).

  The step raises ValueError at trace time if the prompts of a batch do not divide by `microbatches`.

  >>> from rl_jax.objectives import grpo
  >>> from rl_jax.train.score import Scores
  >>> def score(params, features):
  ...   return Scores(params * features, jnp.zeros_like(features))
  >>> tx = optax.sgd(0.25)
  >>> step = make_train_step(score, grpo.objective(kl_coef=0), tx)
  >>> batch = Batch(-jnp.ones((2, 3)), Inputs(mask=jnp.ones((2, 3)), advantages=jnp.ones((2, 3))))
  >>> state, metrics = step(TrainState.create(jnp.array(1.0), tx), batch)
  >>> float(state.params)
  0.75
  """
  if microbatches < 1:
    raise ValueError(f"microbatches must be at least 1, got {microbatches}")

  def loss(trained: Any, constant: Any, batch: Batch, weights: Any) -> tuple[Array, Metrics]:
    scores = score(join(trained, constant), batch.sequences)
    given = {name: value for name, value in scores._asdict().items() if value is not None}
    inputs = batch.inputs._replace(**given)
    if inputs.old_logp is None and inputs.logp is not None:
      inputs = inputs._replace(old_logp=jax.lax.stop_gradient(inputs.logp))
    value, metrics = objective.loss(inputs, weights)
    if inputs.entropy is not None:
      metrics |= {"entropy": Mean.of(inputs.entropy, inputs.mask)}
    return value, metrics

  gradients = _over_microbatches(jax.value_and_grad(loss, has_aux=True), microbatches)

  def apply(grads: Any, params: Any, opt_state: Any) -> tuple[Any, Any]:
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    if objective.needs & {"batch_logp", "batch_entropy"}:
      batch = _with_batch_scores(score, state.params, batch, microbatches)
    weights = parallel.global_weights(objective.weight, batch.inputs, axis_name)
    trained, constant = split(state.params, frozen)
    value, metrics, grads = gradients(trained, constant, batch, weights)
    value, grads = parallel.sum_over_devices((value, grads), axis_name)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    trained, opt_state = jax.lax.cond(finite, partial(apply, grads), lambda *same: same, trained, state.opt_state)
    one = jnp.ones(())
    metrics = parallel.combine_metrics(metrics, axis_name) | {
      "loss": Mean(value, one),
      "grad_norm": Mean(grad_norm, one),
      "skipped": Mean(1 - finite.astype(jnp.float32), one),
    }
    return TrainState(join(trained, constant), opt_state, state.step + 1), metrics

  return step


def _with_batch_scores(score: Callable[[Any, Any], Scores], params: Any, batch: Batch, microbatches: int) -> Batch:
  """Fills in what is a statistic of the whole batch, from a pass over all of it without a gradient."""
  parts = split_rows(batch.sequences, microbatches)
  scores = join_rows(jax.lax.stop_gradient(jax.lax.map(lambda part: score(params, part)[:2], parts)))
  inputs = batch.inputs._replace(batch_logp=scores[0], batch_entropy=scores[1])
  if inputs.old_logp is None:
    inputs = inputs._replace(old_logp=inputs.batch_logp)
  return batch._replace(inputs=inputs)


def _over_microbatches(differentiate: Callable[..., Any], microbatches: int) -> Callable[..., Any]:
  """Returns `(trained, constant, batch, weights) -> (loss, metrics, gradient)`, summed over slices of the batch.

  `differentiate` gives `(loss, metrics), gradient` of one slice; its weights are those of the whole batch.
  """

  def gradients(trained: Any, constant: Any, batch: Batch, weights: Any) -> tuple[Array, Metrics, Any]:
    if microbatches == 1:
      (value, metrics), grads = differentiate(trained, constant, batch, weights)
      return value, metrics, grads

    def accumulate(carry: tuple[Array, Any], part: tuple[Batch, Any]) -> tuple[tuple[Array, Any], Metrics]:
      (value, metrics), grads = differentiate(trained, constant, *part)
      return jax.tree.map(jnp.add, carry, (value, grads)), metrics

    parts = split_rows((batch, weights), microbatches)
    (value, _), grads = jax.eval_shape(differentiate, trained, constant, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), (value, grads))
    (value, grads), metrics = jax.lax.scan(accumulate, zeros, parts)
    return value, metrics_lib.reduce(metrics), grads

  return gradients


def split_rows(tree: Any, parts: int) -> Any:
  """Cuts the leading axis into `parts` slices, stacked on a new leading axis; slice i takes rows i, i + parts, ...

  Strided slices keep rows that are sharded over devices where they are.

  >>> print(split_rows(jnp.arange(4), 2))
  [[0 2]
   [1 3]]
  """

  def split(leaf: Array) -> Array:
    if leaf.shape[0] % parts:
      raise ValueError(f"the {leaf.shape[0]} prompts of a batch do not divide into {parts} parts")
    return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

  return jax.tree.map(split, tree)


def join_rows(tree: Any) -> Any:
  """Undoes `split_rows`.

  >>> print(join_rows(split_rows(jnp.arange(4), 2)))
  [0 1 2 3]
  """

  def join(leaf: Array) -> Array:
    return jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:])

  return jax.tree.map(join, tree)
