"""Supervised fine-tuning on demonstrations, short ones packed into common rows.

    python -m experiments.sft --data demonstrations.jsonl                        # prompt and completion, or messages
    python -m experiments.sft --data pages.jsonl --model smollm2                 # text: plain language modeling
    python -m experiments.sft --model tiny --data demonstrations.jsonl --steps 2 # a smoke test

Only completions (or the assistant's messages) are learned. Tokens of packed examples do not see each other.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.configs import SupervisedConfig, show_first
from rl_jax.devices import Devices
from rl_jax.models import presets
from rl_jax.objectives import sft
from rl_jax.objectives.base import Inputs, Objective
from rl_jax.ops.masking import masked_sum
from rl_jax.rollouts import fixed
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.results import Measurements
from rl_jax.runs.settings import require_at_least, run_script
from rl_jax.state import Batch, RLState
from rl_jax.tasks import examples, text
from rl_jax.tasks.held_out import hold_out
from rl_jax.tasks.packing import Packed, pack
from rl_jax.train import loop
from rl_jax.train.actors import create_state
from rl_jax.train.forward import make_packed_forward
from rl_jax.train.step import make_train_step

MODULE = "experiments.sft"
Data = tuple[Packed, np.ndarray]  # rows, and which of their tokens are labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SupervisedConfig):
  data: str  # a file or a name on the hub: rows with prompt and completion, messages, or text
  num_rows: int = 16  # packed rows an update
  max_tokens: int = 256  # tokens a row; longer examples are left out
  packing: bool = True  # put several examples into a row
  loss: str = "nll"  # nll, or dft, which weighs each token by its probability
  learning_rate: float = 2e-5  # learning rate of AdamW, falling to 0 along a cosine; about 2e-4 for adapters
  run_dir: str = "runs/sft"  # configuration, metrics, checkpoints and the trained model

  def check(self) -> None:
    require_at_least(self, 1, ("num_rows",))
    super().check()
    self.check_parts(self.num_rows, "num_rows")


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  config.check()
  objective = sft.objective(loss=config.loss)  # pyright: ignore[reportArgumentType]
  rows, model = config.read_rows(), config.load_model(config.max_tokens)
  reader = config.make_reader(model)
  data, problems, read = examples.encode_demonstrations(reader, rows.placed, max_tokens=config.max_tokens)
  print(f"{read}; {len(data)} demonstrations; {examples.describe(problems)}", flush=True)
  show_first(model, data[0].example.tokens)
  split = hold_out(data, config.held_out, seed=config.seed, key=lambda demonstration: demonstration.subject)
  print(split.describe(), flush=True)
  packing: Any = dict(length=config.max_tokens, pad_token=text.pad_token(model.tokenizer), together=config.packing)
  packed, held_out = (pack([each.example for each in part], **packing) for part in (split.training, split.held_out))
  config = config.for_rows(len(packed[1]), "num_rows")
  with config.directory(data_fingerprint=rows.fingerprint) as run:
    return train(config, objective, model, packed, held_out, run)


def train(
  config: Config, objective: Objective, model: presets.Model, packed: Data, held_out: Data, run: RunDirectory
) -> Path:
  devices, learner = Devices(), config.make_learner(model)
  optimizer = config.make_optimizer(decay_steps=config.steps)
  forward = learner.lift(make_packed_forward(model.policy))
  step = make_train_step(forward, objective, optimizer, microbatches=config.microbatches, frozen=learner.frozen)
  measured, (rows, labels), (test_rows, test_labels) = devices.jit(forward), packed, held_out

  def make_batch(_: RLState, numbers: np.ndarray) -> Batch:
    return Batch(fixed.select_rows(rows, numbers), Inputs(mask=jnp.asarray(labels[numbers])))

  def perplexity(state: RLState) -> Measurements:
    total = 0.0
    for part, numbers in enumerate(fixed.fixed_size_batches(len(test_labels), config.num_rows)):
      new = part * config.num_rows + np.arange(config.num_rows) < len(test_labels)
      mask = test_labels[numbers] & new[:, None]
      logp = measured(state.policy.params, fixed.select_rows(test_rows, numbers)).logp
      total -= float(masked_sum(logp, jnp.asarray(mask)))
    return Measurements({"perplexity": math.exp(total / max(test_labels.sum(), 1)), "tokens": int(test_labels.sum())})

  create = create_state(learner, optimizer, keep_reference=False)
  state, model = devices.build(create, model.params, jax.random.key(config.seed)), model._replace(params=None)
  state, done = loop.train(
    state,
    run=run,
    evaluate=perplexity,
    collect=fixed.make_collect(make_batch, rows=len(labels), batch_size=config.num_rows, seed=config.seed),
    update=devices.step(step),
    **config.loop_settings(devices, learner),
  )
  return config.finish(MODULE, run, learner, state.policy.params, done)


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
