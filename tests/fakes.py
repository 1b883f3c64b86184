"""Models of a few lines that satisfy the contract of sampling and training, and rollouts on text put together of them.

Models and their jitted passes are made once, so that tests share what is compiled.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rl_jax.models.transformer import Policy
from rl_jax.ops.shaping import PLAIN
from rl_jax.rollouts import collect, text
from rl_jax.rollouts.dynamic import play_until_full
from rl_jax.rollouts.evaluate import make_evaluate
from rl_jax.sampling.generate import make_generate
from rl_jax.tasks.reading import Reader
from rl_jax.tasks.text import Prompts, pad_token
from rl_jax.train.forward import make_forward

VOCABULARY, WIDTH = 13, 6


class Output(NamedTuple):
  hidden: jax.Array
  kv: jax.Array


@functools.cache
def bigram() -> Policy:
  """Predicts the next token from the current one alone: hidden state = a row of a table."""

  def apply(params, tokens, positions, *, mask=None, prefix=None, cache=None, cache_index=0):
    return Output(params["table"][tokens], jnp.zeros(()) if cache is None else cache)

  return Policy(
    init=_init, apply=apply, unembed=lambda params: params["unembedding"], empty_cache=lambda batch, size: jnp.zeros(())
  )


def _init(key: jax.Array) -> dict:
  table, unembedding = jax.random.split(key)
  return {
    "table": jax.random.normal(table, (VOCABULARY, WIDTH)),
    "unembedding": jax.random.normal(unembedding, (WIDTH, VOCABULARY)),
  }


def bigram_params(seed: int = 0) -> dict:
  return _init(jax.random.key(seed))


def chain(length: int) -> tuple[Policy, dict]:
  """A model that is certain: token i is followed by i + 1, and the last one by itself."""
  follows = jnp.minimum(jnp.arange(length) + 1, length - 1)
  return bigram(), {"table": jax.nn.one_hot(follows, length) * 50.0, "unembedding": jnp.eye(length)}


class Programs(NamedTuple):
  """The jitted passes of a policy that is all of what is trained."""

  forward: object
  generate: object
  generate_greedy: object


@functools.cache
def programs(model: Policy, group_size: int, max_new_tokens: int, pad: int) -> Programs:
  generate, greedy = (
    jax.jit(make_generate(model, group_size=size, max_new_tokens=max_new_tokens, pad_token=pad))
    for size in (group_size, 1)
  )
  return Programs(jax.jit(make_forward(model)), generate, greedy)


def eagerly(function):
  """In place of jit: the function sees the same arrays, and no tracers."""
  return lambda *args: function(*jax.tree.map(jnp.asarray, args))


class Rollouts(NamedTuple):
  """What `train.text_rollouts` gives for a learner."""

  collect: collect.Collect
  evaluate: object


def text_rollouts(
  task,
  tokenizer,
  model,
  algorithm,
  *,
  num_prompts,
  group_size,
  max_new_tokens,
  stop_tokens=None,
  max_prompt_tokens=8,
  on_policy=True,
  shaping=PLAIN,
  reward_model=None,
  reference=None,
  values=None,
  recompute_old_logp=False,
  mask_truncated=False,
  max_draws=1,
  put=lambda tree: tree,
  jit=jax.jit,
) -> Rollouts:
  """Rollouts and evaluation of a policy whose parameters are all of the state's.

  Args are those of `train.text_rollouts.make_text_rollouts`, and besides `reference`, in place of the pass on the
  state's `ref_params`, and `jit`: with `eagerly` in its place the experience can be looked at.
  """
  stops = np.array([tokenizer.eos_token_id]) if stop_tokens is None else np.asarray(stop_tokens)
  prompts = Prompts(task, Reader(tokenizer, tuple(stops.tolist())), stops, max_prompt_tokens)
  forward, generate, greedy = programs(model, group_size, max_new_tokens, pad_token(tokenizer))
  complete = text.make_complete(generate, stops, mask_truncated=mask_truncated, put=put)
  judge = text.make_judge(prompts)
  if reward_model is not None:
    judge = collect.with_reward_model(judge, reward_model)
  sample = text.make_sample(prompts, complete, num_prompts=num_prompts, put=put)
  composed = collect.compose(
    collect.Source(sample, judge, text.make_greedy(greedy, stops, put=put)),
    algorithm,
    on_policy=on_policy,
    shaping=shaping,
    reference=reference or (lambda state, sequences: forward(state.ref_params, sequences).logp),
    values=values,
    recompute_old_logp=forward if recompute_old_logp else None,
    make_play=functools.partial(play_until_full, max_draws=max_draws, put=put) if max_draws > 1 else collect.once,
    jit=jit,
  )
  answer = text.make_complete(greedy, stops, sampling=text.GREEDY)
  return Rollouts(composed, make_evaluate(prompts, answer, judge))
