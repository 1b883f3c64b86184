"""Every objective that `rl_jax.objectives` holds, against the contract of `objectives.base`.

With `--objective my_module:objective` (repeatable; the working directory is searched) it runs on those instead.

Batches are `[4, 2, 6]`, so that the second axis can be a group, a preference pair or a ranking. What an objective reads
follows from its `needs`, what it compares from its `parts`. A module may hold

    example = {"length": 512}       arguments that its factory requires
    is_policy_gradient = False      if its on-policy gradient is not that of `-A log pi`, weighted by its first term
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import devices, objectives
from rl_jax.objectives.__main__ import build
from rl_jax.objectives.base import LEARNER, Inputs
from rl_jax.ops import metrics as metrics_lib
from rl_jax.state import Batch, ModelOutputs, TrainState
from rl_jax.train.step import make_train_step

TOKENS = (
  "logp",
  "entropy",
  "old_logp",
  "ref_logp",
  "behavior_logp",
  "batch_logp",
  "batch_entropy",
  "advantages",
  "values",
  "old_values",
  "returns",
  "noise",
)
ROWS = ("reward_scores", "ratings", "kl_baseline")
SHAPE = (4, 2, 6)

make = functools.cache(build)


def pytest_generate_tests(metafunc):
  # Of the module: tests of one objective follow each other, and share what is compiled.
  own = metafunc.config.getoption("objective")
  names = own or objectives.names()
  if metafunc.function is test_devices_and_micro_batches_change_nothing and not own:
    # Five compiled steps an objective: the quick ones are a clip, a critic, a statistic of the batch, and pairs.
    quick = ("grpo", "ppo", "clip_cov", "dpo")
    names = [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
  metafunc.parametrize("name", names, scope="module")


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
    behavior_logp=old + rng.normal(size=shape) * 0.05,
    entropy=rng.random(shape),
    advantages=np.broadcast_to(rng.normal(size=(*shape[:-1], 1)) * 3, shape),
    values=rng.normal(size=shape),
    old_values=rng.normal(size=shape),
    returns=rng.normal(size=shape),
    noise=rng.random(shape),
    reward_scores=rng.normal(size=shape[:-1]),
    ratings=rng.normal(size=shape[:-1]),
    kl_baseline=rng.normal(size=shape[:-1]),
  )
  fields |= dict(batch_logp=fields["logp"], batch_entropy=fields["entropy"])
  target = mask & (rng.random((*shape[:-1], 1)) < 0.5)
  masks = dict(mask=mask, target_mask=target)
  return Inputs(**{k: jnp.asarray(v, dtype) for k, v in (fields | masks).items()})


def parameter_free(inputs):
  return inputs._replace(**{name: None for name in LEARNER})


def compares_sequences(objective):
  return any(key == "compares" for key, _ in objective.parts)


def loss_and_gradient(objective, inputs, weights=None):
  weights = objective.weight(parameter_free(inputs)) if weights is None else weights
  learner = {name: getattr(inputs, name) for name in LEARNER if getattr(inputs, name) is not None}

  def loss(learner):
    return objective.loss(inputs._replace(**learner), weights)

  (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(learner)
  return value, gradient, metrics


@functools.cache
def compiled(name):
  """An objective's `loss_and_gradient`, compiled once for all tests."""
  return jax.jit(functools.partial(loss_and_gradient, make(name)))


def assert_same(one, other, rtol=1e-5, atol=1e-7):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_masked_slots_are_inert(name, bad):
  clean = batch()
  exists = jnp.any(clean.mask == 1, axis=-1)
  dirty = clean._replace(
    **{f: jnp.where(clean.mask == 1, getattr(clean, f), bad) for f in TOKENS},
    **{f: jnp.where(exists, getattr(clean, f), bad) for f in ROWS},
  )
  assert_same(compiled(name)(dirty), compiled(name)(clean), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [bool, np.int32, np.float32])
def test_masks_of_any_type(name, kind):
  inputs = batch()
  other = inputs._replace(
    **{name: jnp.asarray(np.asarray(getattr(inputs, name)).astype(kind)) for name in ("mask", "target_mask")}
  )
  assert_same(compiled(name)(other)[:2], compiled(name)(inputs)[:2])


def test_more_padding_changes_nothing(name):
  inputs = batch()
  longer = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 5))) if x.ndim == 3 else x, inputs)
  one, other = compiled(name)(inputs), compiled(name)(longer)
  np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
  assert_same(one[1], jax.tree.map(lambda x: x[..., : SHAPE[-1]] if x.ndim == 3 else x, other[1]))


def test_nothing_selected_gives_finite_zeros(name):
  inputs = batch()
  nothing = jnp.zeros(SHAPE)
  empty = inputs._replace(mask=nothing, target_mask=nothing, advantages=jnp.full(SHAPE, jnp.nan))
  value, gradient, _ = compiled(name)(empty)
  assert value == 0
  assert_same(gradient, jax.tree.map(jnp.zeros_like, gradient), rtol=0, atol=0)


def policy_weight(weights):
  """The per-token weights of an objective's policy gradient, however it is composed: its first term's."""
  while isinstance(weights, dict):
    weights = next(iter(weights.values()))
  return weights


def test_on_policy_gradient_is_that_of_the_weighted_log_likelihood(name):
  # At logp = old = ref = behavior every ratio is 1, nothing is clipped, and a KL to the reference is at its minimum.
  objective, inputs = make(name), batch()
  module = objectives.find(name)[0]
  if not any(key == "ratio" for key, _ in objective.parts) or not getattr(module, "is_policy_gradient", True):
    pytest.skip("no policy gradient")
  logps = ("logp", "ref_logp", "behavior_logp", "batch_logp")
  same = inputs._replace(**{f: inputs.old_logp for f in logps}, target_mask=jnp.zeros(SHAPE))
  gradient = compiled(name)(same)[1]["logp"]
  weight = policy_weight(objective.weight(parameter_free(same)))
  assert jnp.any(gradient != 0)
  np.testing.assert_allclose(gradient, -weight * same.advantages, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shift", [90.0, -90.0])
def test_log_ratios_of_90_stay_finite_in_float32(name, shift):
  inputs = batch()
  moved = inputs.logp + shift - 95 * (shift > 0)  # log-probs stay negative
  other = {f: getattr(inputs, f) - 95 * (shift > 0) for f in ("old_logp", "ref_logp", "behavior_logp")}
  value, gradient, metrics = compiled(name)(inputs._replace(logp=moved, batch_logp=moved, **other))
  for leaf in jax.tree.leaves((value, gradient, metrics)):
    assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_batch(name, parts):
  objective, inputs = make(name), batch()
  weights = objective.weight(parameter_free(inputs))
  whole = compiled(name)(inputs, weights)
  pieces = [compiled(name)(*jax.tree.map(lambda x, i=i: x[i::parts], (inputs, weights))) for i in range(parts)]
  np.testing.assert_allclose(sum(piece[0] for piece in pieces), whole[0], rtol=1e-5, atol=1e-7)
  for i, piece in enumerate(pieces):
    assert_same(piece[1], jax.tree.map(lambda x, i=i: x[i::parts], whole[1]))
  combined = metrics_lib.reduce(jax.tree.map(lambda *xs: jnp.stack(xs), *(piece[2] for piece in pieces)))
  assert_same(combined, whole[2], rtol=1e-4, atol=1e-6)


def test_lone_sequence(name):
  objective = make(name)
  shape = (2, 6) if compares_sequences(objective) else (6,)
  mask = jnp.broadcast_to(jnp.array([1.0, 1, 1, 1, 0, 0]), shape)
  inputs = batch(seed=1, shape=shape)._replace(mask=mask, target_mask=mask)
  value, gradient, _ = compiled(name)(inputs)
  row = jax.tree.map(lambda x: x[None], inputs)
  in_batch = compiled(name)(row)
  assert value.shape == () and value != 0
  assert_same(in_batch[0], value)
  assert_same(jax.tree.map(lambda x: x[0], in_batch[1]), gradient)


def test_float32_is_close_to_float64(name):
  single = compiled(name)(batch())[:2]
  with jax.enable_x64(True):
    double = compiled(name)(batch(dtype=np.float64))[:2]
    assert double[0].dtype == jnp.float64
  assert_same(single, double, rtol=1e-4, atol=1e-6)


def test_bfloat16_log_probs_are_upcast(name):
  inputs = batch()
  half = inputs._replace(**{f: getattr(inputs, f).astype(jnp.bfloat16) for f in (*TOKENS, *ROWS)})
  widened = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  value, _, _ = compiled(name)(half)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, compiled(name)(widened)[0], rtol=1e-6)


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

  def evaluate(given):
    return objective.loss(given, objective.weight(parameter_free(given)))[0]

  for field in (*TOKENS, *ROWS, "target_mask"):
    without = inputs._replace(**{field: None})
    if field in objective.needs:
      with pytest.raises(ValueError, match=field):
        evaluate(without)
    else:
      assert_same(evaluate(without), evaluate(inputs))


def test_hyperparameters_may_be_traced(name):
  module, factory = objectives.find(name)
  defaults = {k: p.default for k, p in inspect.signature(factory).parameters.items()}
  numbers = {k: float(v) for k, v in defaults.items() if isinstance(v, float)}
  inputs = batch()

  def value(numbers):
    objective = factory(**numbers, **getattr(module, "example", {}))
    return objective.loss(inputs, objective.weight(parameter_free(inputs)))[0]

  if "entropy_coef" in numbers:  # a Python 0 leaves the term out, a traced one multiplies it
    numbers["entropy_coef"] = 0.5
  swept = jax.jit(jax.vmap(value))({k: jnp.array([v, v]) for k, v in numbers.items()}) if numbers else [value({})] * 2
  np.testing.assert_allclose(swept, [value(numbers)] * 2, rtol=1e-5)


def test_its_docstring_tells_the_paper_and_the_differences(name):
  if ":" in name:
    pytest.skip("for published objectives")
  text = objectives.find(name)[0].__doc__
  for word in ("Reference:", "differ elsewhere", "TRL", "verl", "loss"):
    assert word in text, word


def train_step(name, **kwargs):
  """Log-probs linear in the parameters, so that the gradient sums over all rows."""

  def score(params, features):
    logp = -jnp.logaddexp(0.0, features @ params["w"])
    return ModelOutputs(logp, jnp.abs(logp), values=logp + 1, reward_scores=logp.mean(-1))

  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
  params = {"w": jnp.array([0.3, -0.2, 0.5])}
  features = jnp.asarray(np.random.default_rng(5).normal(size=(*SHAPE, 3)), jnp.float32)
  inputs = parameter_free(batch())._replace(batch_logp=None, batch_entropy=None)
  data = Batch(features, inputs)
  return make_train_step(score, make(name), optimizer, **kwargs), TrainState.create(params, optimizer), data


def test_devices_and_micro_batches_change_nothing(name):
  step, state, data = train_step(name)
  expected = jax.jit(step)(state, data)
  mesh = devices.make_mesh(data=4)

  def check(result):
    assert_same(result[0], expected[0], rtol=1e-4, atol=1e-6)
    one, other = metrics_lib.results(result[1]), metrics_lib.results(expected[1])
    assert one.keys() == other.keys()
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4, atol=1e-6)

  # A fresh state each time: the steps donate theirs.
  sharded = devices.jit_step(step, mesh)
  check(sharded(devices.replicate(state, mesh), devices.put(data, mesh)))
  micro, _, _ = train_step(name, microbatches=4)
  check(jax.jit(micro)(state, data))
  mapped, _, _ = train_step(name, axis_name=("data", "fsdp"))
  shard_mapped = devices.shard_map_step(mapped, mesh)
  check(shard_mapped(devices.replicate(state, mesh), devices.put(data, mesh)))
  named, _, _ = train_step(name, axis_name="data")
  check(devices.pmap_step(named)(state, data))
