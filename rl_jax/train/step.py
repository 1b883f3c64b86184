"""The update step: weights on the global batch, gradients summed over micro-batches and devices, one optimizer step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rl_jax import devices
from rl_jax.objectives.base import Objective
from rl_jax.ops import corrections
from rl_jax.ops import metrics as metrics_lib
from rl_jax.ops.metrics import Mean, Metrics
from rl_jax.state import Batch, Coefficients, Forward, TrainState, join, split

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
MakeObjective = Callable[[Coefficients], Objective]


def make_train_step(
  forward: Forward,
  objective: Objective | MakeObjective,
  optimizer: optax.GradientTransformation,
  *,
  microbatches: int = 1,
  axis_name: devices.AxisName = None,
  frozen: Sequence[str] = (),
) -> TrainStep:
  """Returns `step(state, batch) -> (state, metrics)`, pure; wrap it with one of `rl_jax.devices`.

  A non-finite loss or gradient leaves parameters and optimizer state as they were, and the metric `skipped` counts it.

  Args:
    forward: `(params, sequences) -> ModelOutputs`, differentiable.
    objective: What to minimize; or a function of the state's coefficients, called inside the traced step.
    optimizer: Any optax transformation.
    microbatches: Slices that the gradient is accumulated over; it saves memory and does not change the result.
    axis_name: The mapped axis under shard_map or pmap; None under plain or sharded jit.
    frozen: Entries of a dict of parameters that `forward` reads and that are not trained: no gradient is computed for
      them, and the optimizer's state does not hold them (`TrainState.create(..., frozen=...)`).

  The step raises ValueError at trace time if the prompts of a batch do not divide by `microbatches`.

  >>> from rl_jax.objectives import grpo
  >>> from rl_jax.objectives.base import Inputs
  >>> from rl_jax.state import ModelOutputs
  >>> def forward(params, features):
  ...   return ModelOutputs(params * features, jnp.zeros_like(features))
  >>> optimizer = optax.sgd(0.25)
  >>> step = make_train_step(forward, grpo.objective(kl_coef=0), optimizer)
  >>> batch = Batch(-jnp.ones((2, 3)), Inputs(mask=jnp.ones((2, 3)), advantages=jnp.ones((2, 3))))
  >>> state, metrics = step(TrainState.create(jnp.array(1.0), optimizer), batch)
  >>> float(state.params)
  0.75
  """
  if microbatches < 1:
    raise ValueError(f"microbatches must be at least 1, got {microbatches}")

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    current = objective if isinstance(objective, Objective) else objective(state.coefficients)
    if current.needs & {"batch_logp", "batch_entropy"}:
      batch = _with_batch_outputs(forward, state.params, batch, microbatches)
    weights = devices.global_weights(current.weight, batch.inputs, axis_name)
    trained, constant = split(state.params, frozen)
    differentiate = jax.value_and_grad(partial(_loss, forward, current), has_aux=True)
    value, metrics, grads = _over_microbatches(differentiate, microbatches)(trained, constant, batch, weights)
    value, grads = devices.sum_over_devices((value, grads), axis_name)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    apply = partial(_apply, optimizer, grads)
    trained, opt_state = jax.lax.cond(finite, apply, lambda *same: same, trained, state.opt_state)
    one = jnp.ones(())
    metrics = devices.combine_metrics(metrics, axis_name) | {
      "loss": Mean(value, one),
      "grad_norm": Mean(grad_norm, one),
      "skipped": Mean(1 - finite.astype(jnp.float32), one),
    }
    return TrainState(join(trained, constant), opt_state, state.step + 1, state.coefficients), metrics

  return step


def _loss(
  forward: Forward, objective: Objective, trained: Any, constant: Any, batch: Batch, weights: Any
) -> tuple[Array, Metrics]:
  """The partial loss of a slice of the batch, and its metrics."""
  outputs = forward(join(trained, constant), batch.sequences)
  given = {name: value for name, value in outputs._asdict().items() if value is not None}
  inputs = batch.inputs._replace(**given)
  if inputs.old_logp is None and inputs.logp is not None:
    inputs = inputs._replace(old_logp=jax.lax.stop_gradient(inputs.logp))
  value, metrics = objective.loss(inputs, weights)
  if inputs.entropy is not None:
    metrics |= {"entropy": Mean.of(inputs.entropy, inputs.mask)}
  if inputs.behavior_logp is not None and inputs.logp is not None:
    metrics |= corrections.mismatch(inputs.logp, inputs.behavior_logp, inputs.mask)
  return value, metrics


def _apply(optimizer: optax.GradientTransformation, grads: Any, params: Any, opt_state: Any) -> tuple[Any, Any]:
  updates, opt_state = optimizer.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def in_parts(forward: Forward, params: Any, sequences: Any, parts: int) -> tuple[Array, Array]:
  """Returns log-probs and entropies of a whole batch, slice by slice and without a gradient.

  >>> from rl_jax.state import ModelOutputs
  >>> logp, _ = in_parts(lambda params, x: ModelOutputs(params * x, x), 2.0, jnp.arange(4.0), 2)
  >>> print(logp)
  [0. 2. 4. 6.]
  """
  slices = split_rows(sequences, parts)
  return join_rows(jax.lax.stop_gradient(jax.lax.map(lambda part: forward(params, part)[:2], slices)))


def _with_batch_outputs(forward: Forward, params: Any, batch: Batch, microbatches: int) -> Batch:
  """Fills in what is a statistic of the whole batch, from a pass over all of it without a gradient."""
  logp, entropy = in_parts(forward, params, batch.sequences, microbatches)
  inputs = batch.inputs._replace(batch_logp=logp, batch_entropy=entropy)
  if inputs.old_logp is None:
    inputs = inputs._replace(old_logp=logp)
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
