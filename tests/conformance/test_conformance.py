"""Every objective that `rl_jax.objectives` holds, against the contract of `objectives.base`.

An objective whose factory has required arguments names them in `REQUIRED`.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import objectives
from rl_jax.objectives.base import Inputs
from rl_jax.ops import metrics as metrics_lib
from rl_jax.train import parallel
from rl_jax.train.score import Scores
from rl_jax.train.state import TrainState
from rl_jax.train.step import Batch, make_train_step

REQUIRED: dict[str, dict] = {}
NAMES = objectives.names()
FLOATS = ("logp", "entropy", "old_logp", "ref_logp", "behaviour_logp", "advantages")
LEARNER = ("logp", "entropy")
SHAPE = (4, 3, 6)

pytestmark = pytest.mark.parametrize("name", NAMES)


def make(name):
  return importlib.import_module(f"rl_jax.objectives.{name}").objective(**REQUIRED.get(name, {}))


def batch(seed=0, dtype=np.float32, shape=SHAPE):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, shape[-1] + 1, size=shape[:-1])
  lengths.flat[0] = 0  # an empty row
  mask = np.arange(shape[-1]) < lengths[..., None]
  old = -rng.random(shape) * 3
  fields = dict(
    old_logp=old,
    logp=old + rng.normal(size=shape) * 0.3,
    ref_logp=old + rng.normal(size=shape) * 0.3,
    behaviour_logp=old + rng.normal(size=shape) * 0.05,
    entropy=rng.random(shape),
    advantages=np.broadcast_to(rng.normal(size=(*shape[:-1], 1)), shape),
  )
  return Inputs(mask=jnp.asarray(mask, dtype), **{k: jnp.asarray(v, dtype) for k, v in fields.items()})


def parameter_free(inputs):
  return inputs._replace(logp=None, entropy=None)


def loss_and_gradient(objective, inputs, weights=None):
  weights = objective.weight(parameter_free(inputs)) if weights is None else weights
  learner = {name: getattr(inputs, name) for name in LEARNER}

  def loss(learner):
    return objective.loss(inputs._replace(**learner), weights)

  (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(learner)
  return value, gradient, metrics


def assert_same(one, other, rtol=1e-5, atol=1e-7):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_masked_slots_are_inert(name, bad):
  objective, clean = make(name), batch()
  dirty = clean._replace(**{f: jnp.where(clean.mask == 1, getattr(clean, f), bad) for f in FLOATS})
  assert_same(loss_and_gradient(objective, dirty), loss_and_gradient(objective, clean), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [bool, np.int32, np.float32])
def test_masks_of_any_type(name, kind):
  objective, inputs = make(name), batch()
  other = inputs._replace(mask=jnp.asarray(np.asarray(inputs.mask).astype(kind)))
  assert_same(loss_and_gradient(objective, other)[:2], loss_and_gradient(objective, inputs)[:2])


def test_more_padding_changes_nothing(name):
  objective, inputs = make(name), batch()
  longer = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 5))), inputs)
  one, other = loss_and_gradient(objective, inputs), loss_and_gradient(objective, longer)
  np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
  assert_same(one[1], jax.tree.map(lambda x: x[..., : SHAPE[-1]], other[1]))


def test_nothing_selected_gives_finite_zeros(name):
  objective, inputs = make(name), batch()
  empty = inputs._replace(mask=jnp.zeros(SHAPE), advantages=jnp.full(SHAPE, jnp.nan))
  value, gradient, _ = loss_and_gradient(objective, empty)
  assert value == 0
  assert_same(gradient, jax.tree.map(jnp.zeros_like, gradient), rtol=0, atol=0)


def test_on_policy_gradient_is_that_of_the_weighted_log_likelihood(name):
  # At logp = old = ref = behaviour every ratio is 1, nothing is clipped, and a KL to the reference is at its minimum.
  objective, inputs = make(name), batch()
  same = inputs._replace(logp=inputs.old_logp, ref_logp=inputs.old_logp, behaviour_logp=inputs.old_logp)
  gradient = loss_and_gradient(objective, same)[1]["logp"]
  weight = objective.weight(parameter_free(same))["policy"]
  np.testing.assert_allclose(gradient, -weight * same.advantages, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_batch(name, parts):
  objective, inputs = make(name), batch()
  weights = objective.weight(parameter_free(inputs))
  whole = loss_and_gradient(objective, inputs, weights)
  pieces = [
    loss_and_gradient(objective, *jax.tree.map(lambda x, i=i: x[i::parts], (inputs, weights))) for i in range(parts)
  ]
  np.testing.assert_allclose(sum(piece[0] for piece in pieces), whole[0], rtol=1e-5, atol=1e-7)
  for i, piece in enumerate(pieces):
    assert_same(piece[1], jax.tree.map(lambda x, i=i: x[i::parts], whole[1]))
  combined = metrics_lib.reduce(jax.tree.map(lambda *xs: jnp.stack(xs), *(piece[2] for piece in pieces)))
  assert_same(combined, whole[2], rtol=1e-4, atol=1e-6)


def test_lone_sequence(name):
  objective, inputs = make(name), batch(seed=1, shape=(6,))
  inputs = inputs._replace(mask=jnp.array([1.0, 1, 1, 1, 0, 0]))
  value, gradient, _ = loss_and_gradient(objective, inputs)
  row = jax.tree.map(lambda x: x[None], inputs)
  assert value.shape == () and gradient["logp"].shape == (6,)
  assert_same(loss_and_gradient(objective, row)[0], value)


def test_float32_is_close_to_float64(name):
  single = loss_and_gradient(make(name), batch())[:2]
  with jax.enable_x64(True):
    double = loss_and_gradient(make(name), batch(dtype=np.float64))[:2]
    assert double[0].dtype == jnp.float64
  assert_same(single, double, rtol=1e-4, atol=1e-6)


def test_bfloat16_log_probs_are_upcast(name):
  objective, inputs = make(name), batch()
  half = inputs._replace(**{f: getattr(inputs, f).astype(jnp.bfloat16) for f in FLOATS})
  widened = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  value, _, _ = loss_and_gradient(objective, half)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, loss_and_gradient(objective, widened)[0], rtol=1e-6)


def test_jit_equals_eager_and_compiles_once(name):
  objective, traces = make(name), []

  @jax.jit
  def jitted(inputs):
    traces.append(1)
    return loss_and_gradient(objective, inputs)[:2]

  for seed in range(3):
    assert_same(jitted(batch(seed)), loss_and_gradient(objective, batch(seed))[:2])
  assert len(traces) == 1


def test_it_needs_what_it_says(name):
  objective, inputs = make(name), batch()
  for field in FLOATS:
    without = inputs._replace(**{field: None})
    weights = objective.weight(parameter_free(inputs))
    if field in objective.needs:
      with pytest.raises(ValueError, match=field):
        objective.loss(without, weights)
    else:
      assert_same(objective.loss(without, weights)[0], objective.loss(inputs, weights)[0])


def train_step(name, **kwargs):
  """Log-probs linear in the parameters, so that the gradient sums over all rows."""

  def score(params, features):
    logp = -jnp.logaddexp(0.0, features @ params["w"])
    return Scores(logp, jnp.abs(logp))

  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
  params = {"w": jnp.array([0.3, -0.2, 0.5])}
  features = jnp.asarray(np.random.default_rng(5).normal(size=(*SHAPE, 3)), jnp.float32)
  inputs = parameter_free(batch())
  data = Batch(features, inputs)
  return make_train_step(score, make(name), tx, **kwargs), TrainState.create(params, tx), data


def test_devices_and_micro_batches_change_nothing(name):
  step, state, data = train_step(name)
  expected = jax.jit(step)(state, data)
  mesh = parallel.make_mesh(data=4)

  def check(result):
    assert_same(result[0], expected[0], rtol=1e-4, atol=1e-6)
    one, other = metrics_lib.results(result[1]), metrics_lib.results(expected[1])
    assert one.keys() == other.keys()
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4, atol=1e-6)

  # A fresh state each time: the steps donate theirs.
  sharded = parallel.jit_step(step, mesh)
  check(sharded(parallel.replicate(state, mesh), parallel.shard_rows(data, mesh)))
  for parts in (2, 4):
    micro, _, _ = train_step(name, microbatches=parts)
    check(jax.jit(micro)(state, data))
  mapped, _, _ = train_step(name, axis_name=("data", "fsdp"))
  shard_mapped = parallel.shard_map_step(mapped, mesh)
  check(shard_mapped(parallel.replicate(state, mesh), parallel.shard_rows(data, mesh)))
  named, _, _ = train_step(name, axis_name="data")
  check(parallel.pmap_step(named)(state, data))
