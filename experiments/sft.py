"""Supervised fine-tuning on demonstrations, short ones packed into common rows.

    python -m experiments.sft --data demonstrations.jsonl                        # prompt and completion, or messages
    python -m experiments.sft --data pages.jsonl --model smollm2                 # text: plain language modelling
    python -m experiments.sft --model tiny --data demonstrations.jsonl --steps 2 # a smoke test

Only completions (or the assistant's messages) are learnt. Tokens of packed examples do not see each other.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.actors import create_state, make_learner
from rl_jax.models import presets
from rl_jax.objectives import sft
from rl_jax.objectives.base import Inputs, Objective
from rl_jax.ops.masking import masked_sum
from rl_jax.tasks import files
from rl_jax.train import examples, loop, parallel, supervised, text
from rl_jax.train.compiles import CompileCounter
from rl_jax.train.evaluate import Measured
from rl_jax.train.metrics_io import RunDirectory
from rl_jax.train.packing import Packed, make_packed_score, pack
from rl_jax.train.settings import (
  check_adapters,
  check_parts,
  exit_if_stopped,
  require_at_least,
  require_positive,
  run_script,
)
from rl_jax.train.state import RLState
from rl_jax.train.step import Batch, make_train_step

MODULE = "experiments.sft"
Data = tuple[Packed, np.ndarray]  # rows, and which of their tokens are labels


@dataclasses.dataclass(frozen=True)
class Config:
  data: str  # .jsonl or .parquet with prompt and completion, messages, or text
  model: str = "smollm2"  # smollm2, tiny, small, a folder in Hugging Face's format, or a .gguf file
  run_dir: str = "runs/sft"  # configuration, metrics, checkpoints and the trained model
  resume: bool = False  # go on with the run in run_dir
  steps: int = 100  # updates
  rows: int = 16  # packed rows an update
  row_tokens: int = 256  # tokens a row; longer examples are left out
  packing: bool = True  # put several examples into a row
  held_out: float = 0.1  # share of the examples to measure perplexity on
  loss: str = "nll"  # nll, or dft, which weighs each token by its probability
  lora_rank: int = 0  # above 0: train adapters of this rank alone
  lora_alpha: float = 32.0  # the adapters' update is multiplied by alpha / rank
  learning_rate: float = 2e-5  # of AdamW, falling to 0 along a cosine; about 2e-4 for adapters
  weight_decay: float = 0.0  # of AdamW
  max_grad_norm: float = 1.0  # gradients are scaled down to this norm
  microbatches: int = 1  # slices an update's gradient is accumulated over, to save memory
  remat: bool = False  # compute activations again in the backward pass, to save memory
  checkpoint_every: int = 50  # updates between checkpoints, besides one at the end; 0 for none
  seed: int = 0  # of the order of the examples


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  check(config)
  objective = sft.objective(loss=config.loss)  # pyright: ignore[reportArgumentType]
  path = Path(config.data)
  settings = dataclasses.asdict(config) | {"data": files.fingerprint(path), "decay_steps": config.steps}
  directory = RunDirectory(config.run_dir, settings, resume=config.resume)
  model = presets.load(config.model, remat=config.remat)
  presets.check_context(model, config.row_tokens)
  places = ((f"{path}, {place}", row) for place, row in files.read(path))
  data, problems = examples.encode_demonstrations(model.tokenizer, places, max_tokens=config.row_tokens)
  print(f"{len(data)} demonstrations; {examples.describe(problems)}", flush=True)
  seen, test = supervised.hold_out(data, config.held_out, seed=config.seed, key=lambda example: tuple(example.tokens))
  packing: Any = dict(length=config.row_tokens, pad_token=text.pad_token(model.tokenizer), together=config.packing)
  packed = pack(seen, **packing)
  supervised.check_size(len(packed[1]), config.rows)
  with directory as run:
    return train(config, objective, model, packed, pack(test, **packing), run)


def check(config: Config) -> None:
  """Raises ValueError for settings that cannot work, alone or together."""
  require_at_least(config, 1, ("steps", "rows", "row_tokens", "microbatches"))
  require_at_least(config, 0, ("learning_rate", "weight_decay", "checkpoint_every", "seed"))
  require_positive(config, ("max_grad_norm",))
  check_adapters(config)
  if not 0 < config.held_out < 1:
    raise ValueError(f"held_out must be between 0 and 1, got {config.held_out}")
  check_parts(config.rows, config.microbatches, "rows")


def train(
  config: Config, objective: Objective, model: presets.Model, packed: Data, test: Data, run: RunDirectory
) -> Path:
  (rows, labels), (test_rows, test_labels) = packed, test
  mesh, counter = parallel.make_mesh(), CompileCounter()
  place = partial(parallel.shard_rows, mesh=mesh)
  rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
  tx = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adamw(rate, weight_decay=config.weight_decay))
  learner = make_learner(config.model, config.lora_rank, config.lora_alpha)
  score = learner.on(make_packed_score(model.policy))
  step = make_train_step(score, objective, tx, microbatches=config.microbatches, frozen=learner.frozen)
  forward = jax.jit(score)

  def make_batch(_: RLState, numbers: np.ndarray) -> Batch:
    return Batch(supervised.take(rows, numbers), Inputs(mask=jnp.asarray(labels[numbers])))

  def perplexity(state: RLState) -> Measured:
    total = 0.0
    for part, numbers in enumerate(supervised.fill(len(test_labels), config.rows)):
      new = part * config.rows + np.arange(config.rows) < len(test_labels)
      mask = test_labels[numbers] & new[:, None]
      logp = forward(state.policy.params, supervised.take(test_rows, numbers)).logp
      total -= float(masked_sum(logp, jnp.asarray(mask)))
    return Measured({"perplexity": math.exp(total / max(test_labels.sum(), 1)), "tokens": int(test_labels.sum())})

  create = partial(create_state, learner=learner, tx=tx, with_reference=False)
  state = parallel.build_replicated(create, mesh)(model.params, jax.random.key(config.seed))
  model = model._replace(params=None)
  collect = supervised.make_collect(make_batch, rows=len(labels), batch_size=config.rows, seed=config.seed)
  state, done = loop.train(
    state,
    run=run,
    test=perplexity,
    steps=config.steps,
    collect=collect,
    update=parallel.jit_step(counter.count(step), mesh),
    checkpoint_every=config.checkpoint_every,
    place=place,
    compiles=counter.total,
  )
  exit_if_stopped(MODULE, config, done)
  learner.save(run.folder, model, state.policy.params)
  supervised.show(run.folder)
  return run.folder / "model"


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
