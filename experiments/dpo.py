"""Direct preference optimization: learn from preferences without a reward model. DPO and its relatives by name.

    python -m experiments.dpo --data preferences.jsonl                           # prompt, chosen, rejected
    python -m experiments.dpo --data preferences.jsonl --loss ipo --beta 0.05
    python -m experiments.dpo --data preferences.jsonl --loss simpo              # also orpo, cpo: no reference
    python -m experiments.dpo --data answers.jsonl --loss kto                    # prompt, completion, label; or pairs
    python -m experiments.dpo --data preferences.jsonl --lora-rank 16            # adapters; the base is the reference
    python -m experiments.dpo --model tiny --data preferences.jsonl --steps 2

The reference is the initial model: a frozen copy, or with adapters the base itself. KTO takes single answers with a
label, or the chosen ones of pairs as desirable and the others not, and estimates its KL on the answers of each batch's
other prompts.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.configs import SupervisedConfig, load_rankings, settings_given
from rl_jax import objectives
from rl_jax.devices import Devices
from rl_jax.models import presets
from rl_jax.objectives import dpo
from rl_jax.objectives.base import Inputs, Objective
from rl_jax.ops.masking import masked_sum
from rl_jax.ops.metrics import results
from rl_jax.rollouts import fixed
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.results import Measurements
from rl_jax.runs.settings import refuse, require_at_least, run_script
from rl_jax.state import Batch, RLState, Sequences
from rl_jax.tasks import examples, text
from rl_jax.train import loop
from rl_jax.train.actors import create_state
from rl_jax.train.step import make_train_step

MODULE = "experiments.dpo"
LOSSES = sorted([*dpo.LOSSES, "aot"])
RELATIVES = ["cpo", "kto", "orpo", "simpo"]
PREFERENCES_GIVE = {"logp", "entropy", "ref_logp", "batch_logp", "kl_baseline", "advantages"}
SMOOTHED = ("sigmoid", "robust", "exo", "aot")
Rankings = Sequence[examples.EncodedRanking]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SupervisedConfig):
  data: str  # a file or a name on the hub: rows with prompt, chosen and rejected; or completion and label, for kto
  num_pairs: int = 8  # pairs an update
  loss: str = "sigmoid"  # DPO's, robust, hinge, ipo, exo, nca, bco, sppo, aot, apo_*, discopop; simpo, orpo, cpo, kto
  beta: float | None = None  # beta of the loss, such as DPO's pull towards the reference; its paper's by default
  label_smoothing: float = 0.0  # share of the pairs that may be the wrong way round, for sigmoid, robust, exo and aot
  learning_rate: float = 1e-6  # learning rate of AdamW, falling to 0 along a cosine; about 1e-4 for adapters
  run_dir: str = "runs/dpo"  # configuration, metrics, checkpoints and the trained model

  def check(self) -> None:
    require_at_least(self, 1, ("num_pairs",))
    if self.loss == "kto" and self.num_pairs < 2:
      raise ValueError("loss 'kto' exchanges answers among prompts: num_pairs must be at least 2")
    super().check()
    self.check_parts(self.num_pairs, "num_pairs")


def load_objective(config: Config) -> Objective:
  """The objective by name, with those of the settings that it takes."""
  if config.beta is not None and not 0 < config.beta < math.inf:
    raise ValueError(f"beta must be positive, got {config.beta}")
  if not 0 <= config.label_smoothing < 0.5:
    raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {config.label_smoothing}")
  if ":" not in config.loss and config.loss not in LOSSES + RELATIVES:
    raise ValueError(f"loss must be one of {', '.join(sorted(LOSSES + RELATIVES))}, got {config.loss!r}")
  if config.loss not in SMOOTHED:
    refuse(config, ("label_smoothing",), f"loss {config.loss!r}")
  settings = settings_given(config, ["beta"])
  if config.loss not in LOSSES:
    objective = objectives.load(config.loss, **settings).objective({})
    if strange := sorted(objective.needs - PREFERENCES_GIVE):
      raise ValueError(f"loss {config.loss!r} needs {strange[0]}, which preferences do not give")
    return objective
  return dpo.objective(loss=config.loss, label_smoothing=config.label_smoothing, **settings)


def signs(rankings: Rankings) -> jax.Array:
  """1 for each desirable answer and -1 for the others: of pairs the chosen ones, of single answers by their labels."""
  return jnp.asarray([ranking.ratings if len(ranking.answers) == 1 else (1.0, -1.0) for ranking in rankings])


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  objective = load_objective(config)
  config.check()
  rows, model = config.read_rows(), config.load_model(config.max_tokens)
  split = load_rankings(config, rows, model, answers=(1, 2) if config.loss == "kto" else (2,))
  if config.loss == "kto" and min(split.prompts) < 2:
    raise ValueError(
      "loss 'kto' exchanges answers among prompts: train on and hold out (held_out) more than one prompt each"
    )
  config = config.for_rows(len(split.training), "num_pairs")
  with config.directory(data_fingerprint=rows.fingerprint) as run:
    return train(config, objective, model, split.training, split.held_out, run)


def train(
  config: Config, objective: Objective, model: presets.Model, training: Rankings, held_out: Rankings, run: RunDirectory
) -> Path:
  devices, learner, pad_token = Devices(), config.make_learner(model), text.pad_token(model.tokenizer)
  optimizer, forward = config.make_optimizer(decay_steps=config.steps), learner.forward()
  step = make_train_step(forward, objective, optimizer, microbatches=config.microbatches, frozen=learner.frozen)
  policy_logp, reference_logp = devices.jit(lambda *given: forward(*given).logp), learner.reference(devices)

  def prepare(
    state: RLState, sequences: Sequences, labels: jax.Array, desirable: jax.Array, subjects: Sequence[str]
  ) -> Batch:
    """Pairs with what the objective needs besides the learner's own log-probs."""
    placed, inputs = devices.put(sequences), Inputs(mask=labels)
    if "ref_logp" in objective.needs:
      inputs = inputs._replace(ref_logp=reference_logp(state, placed))
    if "kl_baseline" in objective.needs:
      mismatched, their_labels = examples.mismatched_pairs(sequences, labels, subjects)
      others = devices.put(mismatched)
      log_ratio = policy_logp(state.policy.params, others) - reference_logp(state, others)
      inputs = inputs._replace(kl_baseline=masked_sum(log_ratio, their_labels, axis=-1))
    if "advantages" in objective.needs:
      inputs = inputs._replace(advantages=jnp.broadcast_to(desirable[..., None], sequences.completion_mask.shape))
    return Batch(placed, inputs)

  def make_batch(state: RLState, numbers: np.ndarray) -> Batch:
    chosen = [training[i] for i in numbers]
    sequences, labels = examples.ranking_sequences(chosen, pad_token)
    return prepare(state, sequences, labels, signs(chosen), [each.subject for each in chosen])

  def measure(state: RLState) -> Measurements:
    """The loss on all held-out pairs, whose log-probs are computed a batch at a time."""
    everything, parts = examples.ranking_sequences(held_out, pad_token), list[Any]()
    for numbers in fixed.fixed_size_batches(len(held_out), config.num_pairs):
      chosen = [held_out[i] for i in numbers]
      sequences, labels = fixed.select_rows(everything, numbers)
      sequences, inputs = prepare(state, sequences, labels, signs(chosen), [each.subject for each in chosen])
      logp = policy_logp(state.policy.params, sequences)
      parts.append(jax.device_get(inputs._replace(logp=logp, batch_logp=logp)))
    inputs = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(held_out)], *parts)
    loss, metrics = objective.loss(inputs, objective.weight(inputs))
    return Measurements({"loss": float(loss), **results(metrics), "pairs": len(held_out)})

  create = create_state(learner, optimizer, keep_reference="ref_logp" in objective.needs)
  state, model = devices.build(create, model.params, jax.random.key(config.seed)), model._replace(params=None)
  state, done = loop.train(
    state,
    run=run,
    evaluate=measure,
    collect=fixed.make_collect(make_batch, rows=len(training), batch_size=config.num_pairs, seed=config.seed),
    update=devices.step(step),
    **config.loop_settings(devices, learner),
  )
  return config.finish(MODULE, run, learner, state.policy.params, done)


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
