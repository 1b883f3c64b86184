import copy
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl_jax.models import presets
from rl_jax.models.transformer import TransformerConfig, policy
from rl_jax.sampling.generate import last_real, make_generate, prompt_positions
from rl_jax.sampling.samplers import SamplingParams, sample_token
from rl_jax.state import Sequences
from rl_jax.train.forward import make_forward
from tests.fakes import bigram, bigram_params, chain

NEVER = jnp.array([-1], jnp.int32)


def test_stops_at_the_stop_token_which_belongs_to_the_completion():
  model, params = chain(10)
  generate = jax.jit(make_generate(model, group_size=2, max_new_tokens=6, pad_token=0))
  prompts = jnp.array([[1, 2], [5, 6]])
  out = generate(params, prompts, jnp.ones((2, 2)), jnp.array([5, 99]), jax.random.key(0), SamplingParams(0.0))
  np.testing.assert_array_equal(out.tokens[:, 0], [[3, 4, 5, 0, 0, 0], [7, 8, 9, 9, 9, 9]])
  np.testing.assert_array_equal(out.mask[:, 0], [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
  np.testing.assert_array_equal(out.terminated, [[True, True], [False, False]])
  np.testing.assert_array_equal(out.logp[0, 0, 3:], 0)


def test_any_of_several_stop_tokens_ends_a_row():
  model, params = chain(10)
  generate = jax.jit(make_generate(model, group_size=1, max_new_tokens=6, pad_token=0))
  prompts = jnp.array([[1], [5]])
  out = generate(params, prompts, jnp.ones((2, 1)), jnp.array([3, 8]), jax.random.key(0), SamplingParams(0.0))
  np.testing.assert_array_equal(out.mask.sum(-1)[:, 0], [2, 3])


def test_decoding_ends_when_all_rows_have_stopped():
  model, params = chain(10)
  fed = []

  def apply(*args, **kwargs):
    jax.debug.callback(lambda tokens: fed.append(tokens.shape), args[1])
    return model.apply(*args, **kwargs)

  counting = SimpleNamespace(apply=apply, unembed=model.unembed, empty_cache=model.empty_cache, softcap=None)
  generate = jax.jit(make_generate(counting, group_size=1, max_new_tokens=50, pad_token=0))
  generate(params, jnp.array([[1]]), jnp.ones((1, 1)), jnp.array([4]), jax.random.key(0), SamplingParams(0.0))
  jax.effects_barrier()
  assert len(fed) == 1 + 2  # the prompt, then tokens 2 and 3; token 4 is never fed back


def test_temperature_stops_and_seed_do_not_compile_again():
  traces = []
  generate = make_generate(bigram(), group_size=2, max_new_tokens=4, pad_token=0)
  counted = jax.jit(lambda *args: (traces.append(1), generate(*args))[1])
  for seed, temperature in ((0, 1.0), (1, 0.3), (2, 0.0)):
    stops = jnp.array([seed, 7])
    counted(
      bigram_params(), jnp.array([[1]]), jnp.ones((1, 1)), stops, jax.random.key(seed), SamplingParams(temperature)
    )
  assert len(traces) == 1


CONFIG = TransformerConfig(
  vocab_size=19, num_layers=2, embed_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=4, qk_norm=True
)
MODEL = policy(CONFIG)
PARAMS = MODEL.init(jax.random.key(3))
PROMPTS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
PROMPT_MASK = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def sample(sampler, seed=0, stops=NEVER, length=6, prompts=PROMPTS, mask=PROMPT_MASK):
  generate = jax.jit(make_generate(MODEL, group_size=3, max_new_tokens=length, pad_token=0))
  return generate(PARAMS, prompts, mask, stops, jax.random.key(seed), sampler)


def test_sampler_and_scorer_agree_on_log_probs():
  temperature = 0.8
  out = sample(SamplingParams(temperature, top_k=5), stops=jnp.array([7, 11]))
  sequences = Sequences(PROMPTS, PROMPT_MASK, out.tokens, out.mask)
  scores = jax.jit(make_forward(MODEL, temperature=temperature))(PARAMS, sequences)
  real = np.asarray(out.mask)
  assert 0 < real.mean() < 1
  np.testing.assert_allclose(np.asarray(scores.logp)[real], np.asarray(out.full_logp)[real], rtol=1e-4, atol=1e-5)
  assert (np.asarray(out.logp) >= np.asarray(out.full_logp) - 1e-6).all()  # what is left after truncation weighs more


def test_greedy_decoding_matches_running_the_whole_text_again():
  @jax.jit
  def logits(tokens):
    return MODEL.apply(PARAMS, tokens, jnp.arange(tokens.size)).hidden @ MODEL.unembed(PARAMS)

  out = sample(SamplingParams(0.0))
  for row, length in enumerate((5, 3)):
    tokens = np.zeros(11, np.int32)  # what follows a token does not change its logits
    tokens[:length] = PROMPTS[row, :length]
    for place, expected in enumerate(out.tokens[row, 0].tolist(), start=length):
      assert int(jnp.argmax(logits(tokens)[place - 1])) == expected
      tokens[place] = expected


def test_left_and_right_padding_give_the_same_completions():
  left = jnp.array([[3, 1, 4, 1, 5], [0, 0, 9, 2, 6]])
  left_mask = jnp.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
  one, other = sample(SamplingParams(1.0)), sample(SamplingParams(1.0), prompts=left, mask=left_mask)
  np.testing.assert_array_equal(one.tokens, other.tokens)
  np.testing.assert_allclose(one.logp, other.logp, rtol=1e-4, atol=1e-5)


def test_one_new_token_is_sampled_scored_and_differentiated():
  out = sample(SamplingParams(1.0), length=1)
  sequences = Sequences(PROMPTS, PROMPT_MASK, out.tokens, out.mask)
  score = make_forward(MODEL)
  np.testing.assert_allclose(jax.jit(score)(PARAMS, sequences).logp, out.logp, rtol=1e-4, atol=1e-5)
  gradient = jax.jit(jax.grad(lambda params: score(params, sequences).logp.sum()))(PARAMS)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert np.abs(gradient["embedding"]).sum() > 0


def test_rows_of_a_group_differ_and_seeds_reproduce():
  tokens = np.asarray(sample(SamplingParams(1.0), seed=5).tokens)
  assert (tokens[0, 0] != tokens[0, 1]).any()
  np.testing.assert_array_equal(tokens, sample(SamplingParams(1.0), seed=5).tokens)
  assert (tokens != np.asarray(sample(SamplingParams(1.0), seed=6).tokens)).any()


def test_positions_and_last_token_with_padding_on_either_side():
  mask = jnp.array([[0, 1, 1, 0], [1, 1, 1, 1]])
  np.testing.assert_array_equal(prompt_positions(mask)[mask == 1], [0, 1, 0, 1, 2, 3])
  hidden = jnp.arange(8.0).reshape(2, 4, 1)
  np.testing.assert_array_equal(last_real(hidden, mask)[:, 0], [2, 7])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}])
def test_tokens_that_the_tokenizer_lacks_are_never_chosen(temperature, filters):
  """A vocabulary of 9 with logits 0, ..., 8: the tokenizer has four of them, and not the likeliest."""
  known = jnp.array([0, 1, 0, 1, 1, 0, 1, 0, 0], bool)
  logits = jnp.arange(9.0)
  sampling = SamplingParams(temperature=temperature, **filters)
  keys = jax.random.split(jax.random.key(0), 300)
  choice = jax.vmap(lambda key: sample_token(key, logits, sampling, known=known))(keys)
  assert known[choice.token].all()
  if temperature == 0:
    assert (choice.token == 6).all()
    return
  whole = jax.nn.log_softmax(logits)
  np.testing.assert_allclose(choice.full_logp, whole[choice.token], rtol=1e-5)
  kept = jax.nn.log_softmax(jnp.where(known, logits, -jnp.inf))
  kept = jnp.where(jnp.isin(jnp.arange(9), choice.token), kept, -jnp.inf)
  np.testing.assert_allclose(choice.logp, jax.nn.log_softmax(kept)[choice.token], rtol=1e-4, atol=1e-6)


def test_a_padded_vocabulary_is_sampled_within_the_tokenizer(tmp_path):
  model = presets.load("tiny")
  width = model.config.embed_dim
  wider = {**model.params, "embedding": jnp.concatenate([model.params["embedding"], 9 * jnp.ones((29, width))])}
  hf = copy.deepcopy(model.hf)
  hf.vocab_size += 29
  config = dataclasses.replace(model.config, vocab_size=hf.vocab_size)
  presets.save(tmp_path, model._replace(hf=hf, config=config), wider)
  loaded = presets.load(str(tmp_path))
  assert model.known_tokens is None and loaded.known_tokens.sum() == len(model.tokenizer)
  generate = make_generate(
    loaded.policy, group_size=4, max_new_tokens=6, pad_token=0, known_tokens=jnp.asarray(loaded.known_tokens)
  )
  prompts, key = jnp.array([[5, 6]]), jax.random.key(0)
  out = jax.jit(generate)(loaded.params, prompts, jnp.ones((1, 2)), jnp.array([1]), key, SamplingParams())
  assert out.tokens.max() < len(model.tokenizer) and (out.full_logp <= out.logp).all()
