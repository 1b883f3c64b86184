"""Train a reward model on preferences: pairs, or rankings of K answers over all their pairs (Bradley-Terry).

    python -m experiments.reward_model --data preferences.jsonl                  # prompt, chosen, rejected
    python -m experiments.reward_model --data rankings.jsonl --margins           # prompt, answers (best first), ratings
    python -m experiments.reward_model --model tiny --data preferences.jsonl --steps 2

The score is a scalar head on the last token. Held-out accuracy, and whether `sigmoid(margin)` is how often the better
answer wins (calibration). `experiments.ppo --reward-model RUN_DIR/model` learns from it.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.actors import make_learner
from rl_jax.analysis.statistics import calibration_error
from rl_jax.models import heads, presets
from rl_jax.objectives import reward_model
from rl_jax.objectives.base import Inputs
from rl_jax.tasks import files, preferences
from rl_jax.train import examples, loop, parallel, supervised, text
from rl_jax.train.compiles import CompileCounter
from rl_jax.train.evaluate import Measured
from rl_jax.train.metrics_io import RunDirectory
from rl_jax.train.score import Scores, Sequences, make_last_value
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

MODULE = "experiments.reward_model"
Rankings = Sequence[examples.Answers]


@dataclasses.dataclass(frozen=True)
class Config:
  data: str  # .jsonl or .parquet with prompt, chosen and rejected, or prompt and answers, best first
  model: str = "smollm2"  # smollm2, tiny, small, a folder in Hugging Face's format, or a .gguf file
  run_dir: str = "runs/reward_model"  # configuration, metrics, checkpoints and the trained model
  resume: bool = False  # go on with the run in run_dir
  steps: int = 100  # updates
  rankings: int = 16  # pairs or rankings an update
  max_tokens: int = 512  # longer prompts with answers are left out
  held_out: float = 0.1  # share of the rankings to measure on, of prompts that are not trained on
  margins: bool = False  # answers must differ by as much as their ratings do
  centering: float = 0.01  # weight of the squared sum of two scores, which keeps them around 0
  lora_rank: int = 0  # above 0: train adapters of this rank alone
  lora_alpha: float = 32.0  # the adapters' update is multiplied by alpha / rank
  learning_rate: float = 1e-5  # of AdamW, falling to 0 along a cosine; about 1e-4 for adapters
  weight_decay: float = 0.0  # of AdamW
  max_grad_norm: float = 1.0  # gradients are scaled down to this norm
  microbatches: int = 1  # slices an update's gradient is accumulated over, to save memory
  remat: bool = False  # compute activations again in the backward pass, to save memory
  checkpoint_every: int = 50  # updates between checkpoints, besides one at the end; 0 for none
  seed: int = 0  # of the order of the rankings


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  check(config)
  settings = dataclasses.asdict(config)
  settings |= {"data": files.fingerprint(Path(config.data)), "decay_steps": config.steps}
  directory = RunDirectory(config.run_dir, settings, resume=config.resume)
  model = presets.load(config.model, remat=config.remat)
  presets.check_context(model, config.max_tokens)
  data = preferences.load(config.data)
  encoded, problems = examples.encode_rankings(model.tokenizer, data, max_tokens=config.max_tokens)
  print(f"{data.describe()}; as tokens: {examples.describe(problems)}", flush=True)
  if config.margins and not encoded[0].ratings:
    raise ValueError("margins need a column 'ratings', which the data does not have")
  seen, test = supervised.hold_out(encoded, config.held_out, seed=config.seed, key=lambda each: tuple(each.prompt))
  supervised.check_size(len(seen), config.rankings)
  with directory as run:
    return train(config, model, seen, test, run)


def check(config: Config) -> None:
  """Raises ValueError for settings that cannot work, alone or together."""
  require_at_least(config, 1, ("steps", "rankings", "max_tokens", "microbatches"))
  require_at_least(config, 0, ("centering", "learning_rate", "weight_decay", "checkpoint_every", "seed"))
  require_positive(config, ("max_grad_norm",))
  check_adapters(config)
  if not 0 < config.held_out < 1:
    raise ValueError(f"held_out must be between 0 and 1, got {config.held_out}")
  check_parts(config.rankings, config.microbatches, "rankings")


def train(config: Config, model: presets.Model, seen: Rankings, test: Rankings, run: RunDirectory) -> Path:
  mesh, counter = parallel.make_mesh(), CompileCounter()
  place = partial(parallel.shard_rows, mesh=mesh)
  scalar = heads.scalar_model(model.policy, model.config.embed_dim)
  objective = reward_model.objective(centering=config.centering, margins=config.margins)
  rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
  tx = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adamw(rate, weight_decay=config.weight_decay))
  learner = make_learner(config.model, config.lora_rank, config.lora_alpha)
  last_value, pad_token = make_last_value(scalar), text.pad_token(model.tokenizer)

  def rate_answers(params: Any, sequences: Sequences) -> jax.Array:
    return last_value({"backbone": learner.policy(params), "head": params["head"]}, sequences)

  def score(params: Any, sequences: Sequences) -> Scores:
    return Scores(None, None, scores=rate_answers(params, sequences))

  step = make_train_step(score, objective, tx, microbatches=config.microbatches, frozen=learner.frozen)
  forward = jax.jit(rate_answers)

  def make_batch(_: RLState, numbers: np.ndarray) -> Batch:
    chosen = [seen[i] for i in numbers]
    sequences, ratings = examples.ranking_sequences(chosen, pad_token), examples.ratings_of(chosen)
    ratings = None if ratings is None else jnp.asarray(ratings)
    return Batch(sequences, Inputs(mask=sequences.completion_mask, ratings=ratings))

  def measure(state: RLState) -> Measured:
    everything = examples.ranking_sequences(test, pad_token)
    parts = [supervised.take(everything, numbers) for numbers in supervised.fill(len(test), config.rankings)]
    scores = [np.asarray(forward(state.policy.params, place(part))) for part in parts]
    found = np.concatenate(scores)[: len(test)]
    better, worse = np.triu_indices(found.shape[1], k=1)
    margins = (found[:, better] - found[:, worse]).ravel()
    ratings = examples.ratings_of(test)
    if ratings is not None:  # equally rated ones are no pair
      margins = margins[(ratings[:, better] != ratings[:, worse]).ravel()]
    return Measured(
      {
        "accuracy": float(np.heaviside(margins, 0.5).mean()),
        "calibration error": calibration_error(margins),
        "margin": float(margins.mean()),
        "score": float(found.mean()),
        "pairs": margins.size,
      }
    )

  def create(backbone: Any, key: jax.Array) -> RLState:
    head_key, learner_key, run_key = jax.random.split(key, 3)
    params = learner.build(backbone, learner_key) | {"head": scalar.init_head(head_key)}
    return RLState.create(params, tx, run_key, keep_reference=False, frozen=learner.frozen)

  state = parallel.build_replicated(create, mesh)(model.params, jax.random.key(config.seed))
  model = model._replace(params=None)
  collect = supervised.make_collect(make_batch, rows=len(seen), batch_size=config.rankings, seed=config.seed)
  state, done = loop.train(
    state,
    run=run,
    test=measure,
    steps=config.steps,
    collect=collect,
    update=parallel.jit_step(counter.count(step), mesh),
    checkpoint_every=config.checkpoint_every,
    place=place,
    compiles=counter.total,
  )
  exit_if_stopped(MODULE, config, done)
  learner.save(run.folder, model, state.policy.params)
  heads.save_head(run.folder / "model", state.policy.params["head"])
  supervised.show(run.folder)
  return run.folder / "model"


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
