import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rl_jax import devices
from rl_jax.objectives import grpo, reinforce
from rl_jax.objectives.base import Inputs
from rl_jax.ops import metrics
from rl_jax.state import Batch, ModelOutputs, RLState, Sequences, TrainState
from rl_jax.train.forward import make_forward
from rl_jax.train.step import make_train_step
from tests.fakes import bigram, bigram_params

PROMPTS = jnp.array([[1, 2], [3, 4]])
COMPLETIONS = jnp.array([[[5, 6, 7], [8, 9, 0]], [[1, 1, 1], [2, 3, 4]]])
MASK = jnp.array([[[1, 1, 1], [1, 1, 0]], [[1, 1, 1], [1, 0, 0]]])
SEQUENCES = Sequences(PROMPTS, jnp.ones((2, 2)), COMPLETIONS, MASK)


def test_each_log_prob_belongs_to_the_token_at_its_place():
  params = bigram_params()
  outputs = make_forward(bigram(), temperature=0.5)(params, SEQUENCES)
  before = jnp.concatenate([jnp.broadcast_to(PROMPTS[:, -1:, None], (2, 2, 1)), COMPLETIONS[..., :-1]], axis=-1)
  logits = params["table"][before] @ params["unembedding"] / 0.5
  log_p = np.asarray(jax.nn.log_softmax(logits))
  expected = np.take_along_axis(log_p, np.asarray(COMPLETIONS)[..., None], -1)[..., 0]
  np.testing.assert_allclose(outputs.logp, expected, rtol=1e-5, atol=1e-6)  # an ulp of logits around 10
  np.testing.assert_allclose(outputs.entropy, -(np.exp(log_p) * log_p).sum(-1), rtol=1e-5, atol=1e-6)


def batch(advantage=1.0, **fields):
  return Batch(SEQUENCES, Inputs(mask=MASK, advantages=jnp.full(MASK.shape, advantage), **fields))


def make(learning_rate=0.1, **kwargs):
  forward = make_forward(bigram())
  optimizer = optax.sgd(learning_rate)
  step = make_train_step(forward, grpo.objective(kl_coef=0.0), optimizer, **kwargs)
  return jax.jit(step), TrainState.create(bigram_params(), optimizer), forward


def test_on_policy_step_raises_the_weighted_log_likelihood():
  step, state, forward = make()
  weights = MASK / MASK.sum(-1, keepdims=True) / 4  # four sequences, each with its mean over tokens
  expected = jax.grad(lambda p: -(weights * forward(p, SEQUENCES).logp).sum())(state.params)
  updated, seen = step(state, batch())
  for name in state.params:
    np.testing.assert_allclose(updated.params[name], state.params[name] - 0.1 * expected[name], rtol=1e-4, atol=1e-6)
  results = metrics.results(seen)
  np.testing.assert_allclose(results["grad_norm"], optax.tree.norm(expected), rtol=1e-5)
  assert results["ratio"] == 1 and results["skipped"] == 0
  assert updated.step == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_gradient_leaves_the_state_and_is_counted(bad):
  step, state, _ = make()
  updated, seen = step(state, batch(advantage=bad))
  jax.tree.map(np.testing.assert_array_equal, updated.params, state.params)
  assert metrics.results(seen)["skipped"] == 1
  assert updated.step == 1
  again, seen = step(updated, batch())
  assert metrics.results(seen)["skipped"] == 0
  assert (np.asarray(again.params["table"]) != np.asarray(state.params["table"])).any()


def test_micro_batches_must_divide_the_prompts():
  with pytest.raises(ValueError, match="2 prompts of a batch do not divide into 3"):
    step, state, _ = make(microbatches=3)
    step(state, batch())
  with pytest.raises(ValueError, match="microbatches must be at least 1"):
    make(microbatches=0)


def test_micro_batches_in_float64_parameters(x64):
  optimizer = optax.sgd(0.1)
  params = jax.tree.map(lambda x: x.astype(jnp.float64), bigram_params())
  states = [
    jax.jit(make_train_step(make_forward(bigram()), grpo.objective(kl_coef=0.0), optimizer, microbatches=parts))(
      TrainState.create(params, optimizer), batch()
    )[0]
    for parts in (1, 2)
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *states)


def test_the_state_is_donated_but_its_reference_copy_survives():
  params = bigram_params()
  optimizer = optax.adam(0.1)
  state = RLState.create(params, optimizer, jax.random.key(0), keep_reference=True)
  mesh = devices.make_mesh(data=1, devices=jax.devices()[:1])
  step = devices.jit_step(make_train_step(make_forward(bigram()), grpo.objective(kl_coef=0.0), optimizer), mesh)
  policy, _ = step(state.policy, batch())
  assert state.policy.params["table"].is_deleted()
  jax.tree.map(np.testing.assert_array_equal, state.ref_params, bigram_params())
  assert not policy.params["table"].is_deleted()


def test_adaptive_optimizer_states_stay_finite_after_a_skip():
  optimizer = optax.adam(0.1)
  step = jax.jit(make_train_step(make_forward(bigram()), grpo.objective(kl_coef=0.0), optimizer))
  state = TrainState.create(bigram_params(), optimizer)
  for advantage in (1.0, np.nan, 1.0):
    state, _ = step(state, batch(advantage=advantage))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_outputs_of_another_shape_are_refused():
  def forward(params, sequences):
    return ModelOutputs(jnp.zeros((2, 2)), jnp.zeros((2, 2)))

  step = make_train_step(forward, grpo.objective(kl_coef=0.0), optax.sgd(0.1))
  with pytest.raises(AssertionError):
    step(TrainState.create(bigram_params(), optax.sgd(0.1)), batch())


def test_coefficients_of_the_state_weigh_the_objective():
  """-H of the same tokens, once and twice: the gradient of the bonus is proportional to its coefficient."""
  forward, optimizer = make_forward(bigram()), optax.sgd(1.0)
  step = jax.jit(make_train_step(forward, lambda c: reinforce.objective(entropy_coef=c["entropy_coef"]), optimizer))
  moved = []
  for coefficient in (1.0, 2.0):
    state = TrainState.create(bigram_params(), optimizer, coefficients={"entropy_coef": coefficient})
    updated, _ = step(state, batch(advantage=0.0))
    moved.append(jax.tree.map(jnp.subtract, updated.params, state.params))
    assert updated.coefficients == {"entropy_coef": coefficient}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-3, atol=1e-5), *moved)
  gradient = jax.grad(lambda p: jnp.sum(MASK * forward(p, SEQUENCES).entropy) / MASK.sum())(bigram_params())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), moved[0], gradient)
