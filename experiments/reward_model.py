"""Train a reward model on preferences: pairs, or rankings of K answers over all their pairs (Bradley-Terry).

    python -m experiments.reward_model --data preferences.jsonl                  # prompt, chosen, rejected
    python -m experiments.reward_model --data rankings.jsonl --margins           # prompt, answers (best first), ratings
    python -m experiments.reward_model --model tiny --data preferences.jsonl --steps 2

The score is a scalar head on the last token. Held-out accuracy, and whether `sigmoid(margin)` is how often the better
answer wins (calibration). `experiments.ppo --reward-model RUN_DIR/model` learns from it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.configs import SupervisedConfig, load_rankings
from rl_jax.devices import Devices
from rl_jax.models import heads, presets, weights
from rl_jax.objectives import reward_model
from rl_jax.objectives.base import Inputs
from rl_jax.ops.statistics import calibration_error
from rl_jax.rollouts import fixed
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.results import Measurements
from rl_jax.runs.settings import require_at_least, run_script
from rl_jax.state import Batch, Keys, ModelOutputs, RLState, Sequences
from rl_jax.tasks import examples, text
from rl_jax.train import loop
from rl_jax.train.actors import create_state
from rl_jax.train.forward import make_last_value
from rl_jax.train.step import make_train_step

MODULE = "experiments.reward_model"
Rankings = Sequence[examples.EncodedRanking]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SupervisedConfig):
  data: str  # a file or a name on the hub: rows with prompt, chosen and rejected, or prompt and answers, best first
  num_rankings: int = 16  # pairs or rankings an update
  margins: bool = False  # answers must differ by as much as their ratings do
  centering: float = 0.01  # weight of the squared sum of two scores, which keeps them around 0
  learning_rate: float = 1e-5  # learning rate of AdamW, falling to 0 along a cosine; about 1e-4 for adapters
  run_dir: str = "runs/reward_model"  # configuration, metrics, checkpoints and the trained model

  def check(self) -> None:
    require_at_least(self, 1, ("num_rankings",))
    require_at_least(self, 0, ("centering",))
    super().check()
    self.check_parts(self.num_rankings, "num_rankings")


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  config.check()
  rows, model = config.read_rows(), config.load_model(config.max_tokens)
  weights.architecture(model.hf.model_type, scores=True)
  split = load_rankings(config, rows, model, whole=True)
  if config.margins and not split.training[0].ratings:
    raise ValueError("margins need a column 'ratings', which the data does not have")
  config = config.for_rows(len(split.training), "num_rankings")
  with config.directory(data_fingerprint=rows.fingerprint) as run:
    return train(config, model, split.training, split.held_out, run)


def train(config: Config, model: presets.Model, training: Rankings, held_out: Rankings, run: RunDirectory) -> Path:
  devices, learner, pad_token = Devices(), config.make_learner(model), text.pad_token(model.tokenizer)
  width = model.config.embed_dim
  last_value = make_last_value(heads.scalar_model(model.policy, width))
  optimizer = config.make_optimizer(decay_steps=config.steps)

  def reward_scores(params: Any, sequences: Sequences) -> jax.Array:
    return last_value({"backbone": learner.policy_params(params), "head": params["head"]}, sequences)

  def forward(params: Any, sequences: Sequences) -> ModelOutputs:
    return ModelOutputs(None, None, reward_scores=reward_scores(params, sequences))

  objective = reward_model.objective(centering=config.centering, margins=config.margins)
  step = make_train_step(forward, objective, optimizer, microbatches=config.microbatches, frozen=learner.frozen)
  measured = devices.jit(reward_scores)

  def make_batch(_: RLState, numbers: np.ndarray) -> Batch:
    chosen = [training[i] for i in numbers]
    (sequences, labels), ratings = examples.ranking_sequences(chosen, pad_token), examples.ratings_of(chosen)
    return Batch(sequences, Inputs(mask=labels, ratings=None if ratings is None else jnp.asarray(ratings)))

  def measure(state: RLState) -> Measurements:
    everything, _ = examples.ranking_sequences(held_out, pad_token)
    batches = fixed.fixed_size_batches(len(held_out), config.num_rankings)
    parts = [devices.put(fixed.select_rows(everything, numbers)) for numbers in batches]
    scores = np.concatenate([np.asarray(measured(state.policy.params, part)) for part in parts])[: len(held_out)]
    better, worse = np.triu_indices(scores.shape[1], k=1)
    margins = (scores[:, better] - scores[:, worse]).ravel()
    ratings = examples.ratings_of(held_out)
    if ratings is not None:  # equally rated ones are no pair
      margins = margins[(ratings[:, better] != ratings[:, worse]).ravel()]
    values = {"accuracy": float(np.heaviside(margins, 0.5).mean()), "calibration_error": calibration_error(margins)}
    return Measurements(
      values | {"margin": float(margins.mean()), "reward_score": float(scores.mean()), "pairs": margins.size}
    )

  def init(start: Any, keys: Keys) -> dict[str, Any]:
    return learner.init(start, keys) | {"head": heads.init_head(keys.head, width, bias=False)}

  def save(folder: Path, state: RLState) -> None:
    learner.save_scorer(folder, state.policy.params)

  create = create_state(learner, optimizer, init=init, keep_reference=False)
  state, model = devices.build(create, model.params, jax.random.key(config.seed)), model._replace(params=None)
  state, done = loop.train(
    state,
    run=run,
    evaluate=measure,
    collect=fixed.make_collect(make_batch, rows=len(training), batch_size=config.num_rankings, seed=config.seed),
    update=devices.step(step),
    **config.loop_settings(devices, learner, save),
  )
  return config.finish(MODULE, run, learner, state.policy.params, done, save=lambda folder: save(folder, state))


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
