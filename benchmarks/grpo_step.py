"""One GRPO step, rollout and update apart: `python -m benchmarks.grpo_step [--case smollm2] [--json rows.jsonl]`.

The update is on-policy, with AdamW and no reference; the rollout decodes all tokens (nothing stops early) at
temperature 1. Rewards are random numbers, since a reward costs no device time.
"""

import argparse
import dataclasses
import json
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from rl_jax import devices
from rl_jax.models import presets
from rl_jax.models.transformer import Policy, TransformerConfig, policy
from rl_jax.objectives import grpo
from rl_jax.objectives.base import Inputs
from rl_jax.ops.advantages import group_normalized
from rl_jax.sampling.generate import Completions, make_generate
from rl_jax.sampling.samplers import SamplingParams
from rl_jax.state import Batch, Sequences, TrainState
from rl_jax.train.forward import make_forward
from rl_jax.train.step import make_train_step


class Case(NamedTuple):
  prompts: int
  group_size: int
  prompt_tokens: int
  new_tokens: int
  runs: int


CASES = {
  "smollm2": Case(4, 8, 44, 32, runs=5),
  "small": Case(8, 8, 16, 64, runs=10),
  "demo": Case(16, 8, 24, 5, runs=5),
}
SMALL = TransformerConfig(
  vocab_size=512, num_layers=4, embed_dim=256, mlp_dim=1024, num_heads=4, num_kv_heads=4, head_dim=64
)


def load(name: str) -> tuple[Policy, Any, int]:
  """Returns a model, its parameters and the size of its vocabulary."""
  if name == "small":
    model = policy(SMALL)
    return model, model.init(jax.random.key(0)), SMALL.vocab_size
  loaded = presets.load("smollm2")
  return loaded.policy, loaded.params, loaded.config.vocab_size


def run(name: str) -> list[harness.Row]:
  case, (model, params, vocabulary) = CASES[name], load(name)
  rng = np.random.default_rng(0)
  prompts = jnp.asarray(rng.integers(3, vocabulary, (case.prompts, case.prompt_tokens)), jnp.int32)
  real = jnp.ones(prompts.shape, bool)
  generate = jax.jit(make_generate(model, group_size=case.group_size, max_new_tokens=case.new_tokens, pad_token=0))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
  step = make_train_step(make_forward(model), grpo.objective(kl_coef=0.0), optimizer)
  mesh = devices.make_mesh()
  update = devices.jit_step(step, mesh)
  state = devices.build_replicated(lambda params: TrainState.create(params, optimizer), mesh)(params)
  never = jnp.array([-1], jnp.int32)

  def rollout() -> Completions:
    return generate(state.params, prompts, real, never, jax.random.key(0), SamplingParams())

  def train(completions: Completions) -> Any:
    nonlocal state
    shape = completions.tokens.shape
    rewards = jnp.asarray(rng.random(shape[:2]), jnp.float32)
    advantages = jnp.broadcast_to(group_normalized(rewards)[..., None], shape)
    sequences = Sequences(prompts, real, completions.tokens, completions.mask)
    batch = devices.put(Batch(sequences, Inputs(completions.mask, advantages)), mesh)
    state, metrics = update(state, batch)
    return state, metrics

  shape = f"{name}, {case.prompts} x {case.group_size}, {case.prompt_tokens} + {case.new_tokens} tokens"
  rows = [harness.measure(shape, "rollout", rollout, runs=case.runs)]
  completions = rollout()
  rows.append(harness.measure(shape, "update", lambda: train(completions), runs=case.runs))
  rows.append(harness.measure(shape, "rollout + update", lambda: train(rollout()), runs=case.runs))
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--case", choices=sorted(CASES), help="run one case in this process and print its rows")
  parser.add_argument("--json", help="append the rows to this file")
  arguments = parser.parse_args()
  if arguments.case:
    harness.emit(run(arguments.case))
    return
  rows = harness.collect("benchmarks.grpo_step", list(CASES))
  harness.show(rows)
  if arguments.json:
    with open(arguments.json, "a", encoding="utf-8") as file:
      file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)


if __name__ == "__main__":
  try:
    main()
  except ValueError as error:
    sys.exit(f"error: {error}")
