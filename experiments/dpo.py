"""Direct preference optimisation: learn from preferences without a reward model. DPO and its relatives by name.

    python -m experiments.dpo --data preferences.jsonl                           # prompt, chosen, rejected
    python -m experiments.dpo --data preferences.jsonl --loss ipo --beta 0.05
    python -m experiments.dpo --data preferences.jsonl --loss simpo              # also orpo, cpo: no reference
    python -m experiments.dpo --data preferences.jsonl --lora-rank 16            # adapters; the base is the reference
    python -m experiments.dpo --model tiny --data preferences.jsonl --steps 2

The reference is the initial model: a frozen copy, or with adapters the base itself. KTO takes the chosen answers as
desirable and the others not, and estimates its KL on the answers of each batch's other prompts.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.actors import create_state, make_learner
from rl_jax.models import presets
from rl_jax.objectives import cpo, dpo, kto, orpo, simpo
from rl_jax.objectives.base import Inputs, Objective
from rl_jax.ops.masking import masked_sum
from rl_jax.ops.metrics import results
from rl_jax.tasks import files, preferences
from rl_jax.train import examples, loop, parallel, supervised, text
from rl_jax.train.compiles import CompileCounter
from rl_jax.train.evaluate import Measured
from rl_jax.train.metrics_io import RunDirectory
from rl_jax.train.score import Sequences, make_score
from rl_jax.train.settings import (
  check_adapters,
  check_parts,
  exit_if_stopped,
  refuse,
  require_at_least,
  require_positive,
  run_script,
)
from rl_jax.train.state import RLState
from rl_jax.train.step import Batch, make_train_step

MODULE = "experiments.dpo"
OTHERS = {"cpo": cpo, "kto": kto, "orpo": orpo, "simpo": simpo}
SMOOTHED = ("sigmoid", "robust", "exo", "aot")
Rankings = Sequence[examples.Answers]


@dataclasses.dataclass(frozen=True)
class Config:
  data: str  # .jsonl or .parquet with prompt, chosen and rejected
  model: str = "smollm2"  # smollm2, tiny, small, a folder in Hugging Face's format, or a .gguf file
  run_dir: str = "runs/dpo"  # configuration, metrics, checkpoints and the trained model
  resume: bool = False  # go on with the run in run_dir
  steps: int = 100  # updates
  pairs: int = 8  # an update
  max_tokens: int = 512  # longer prompts with answers are left out
  held_out: float = 0.1  # share of the pairs to measure on, of prompts that are not trained on
  loss: str = "sigmoid"  # DPO's, robust, hinge, ipo, exo, nca, bco, sppo, aot, apo_*, discopop; simpo, orpo, cpo, kto
  beta: float | None = None  # of the loss, such as DPO's pull towards the reference; by default what its paper has
  label_smoothing: float = 0.0  # share of the pairs that may be the wrong way round, for sigmoid, robust, exo and aot
  lora_rank: int = 0  # above 0: train adapters of this rank alone
  lora_alpha: float = 32.0  # the adapters' update is multiplied by alpha / rank
  learning_rate: float = 1e-6  # of AdamW, falling to 0 along a cosine; about 1e-4 for adapters
  weight_decay: float = 0.0  # of AdamW
  max_grad_norm: float = 1.0  # gradients are scaled down to this norm
  microbatches: int = 1  # slices an update's gradient is accumulated over, to save memory
  remat: bool = False  # compute activations again in the backward pass, to save memory
  checkpoint_every: int = 50  # updates between checkpoints, besides one at the end; 0 for none
  seed: int = 0  # of the order of the pairs


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  objective = choose(config)
  check(config)
  settings = dataclasses.asdict(config)
  settings |= {"data": files.fingerprint(Path(config.data)), "decay_steps": config.steps}
  directory = RunDirectory(config.run_dir, settings, resume=config.resume)
  model = presets.load(config.model, remat=config.remat)
  presets.check_context(model, config.max_tokens)
  data = preferences.load(config.data)
  encoded, problems = examples.encode_rankings(model.tokenizer, data, max_tokens=config.max_tokens)
  print(f"{data.describe()}; as tokens: {examples.describe(problems)}", flush=True)
  if len(encoded[0].answers) != 2:
    raise ValueError(f"{MODULE} learns from pairs; the data ranks {len(encoded[0].answers)} answers")
  seen, test = supervised.hold_out(encoded, config.held_out, seed=config.seed, key=lambda each: tuple(each.prompt))
  supervised.check_size(len(seen), config.pairs)
  if config.loss == "kto" and len(test) < 2:
    raise ValueError("loss 'kto' exchanges answers among prompts: hold out more than one pair")
  with directory as run:
    return train(config, objective, model, seen, test, run)


def check(config: Config) -> None:
  """Raises ValueError for settings that cannot work, alone or together."""
  require_at_least(config, 1, ("steps", "pairs", "max_tokens", "microbatches"))
  require_at_least(config, 0, ("learning_rate", "weight_decay", "checkpoint_every", "seed"))
  require_positive(config, ("max_grad_norm",))
  check_adapters(config)
  if not 0 < config.held_out < 1:
    raise ValueError(f"held_out must be between 0 and 1, got {config.held_out}")
  if config.loss == "kto" and config.pairs < 2:
    raise ValueError("loss 'kto' exchanges answers among prompts: pairs must be at least 2")
  check_parts(config.pairs, config.microbatches, "pairs")


def choose(config: Config) -> Objective:
  """The objective by name, with those of the settings that it takes."""
  if config.beta is not None and not 0 < config.beta < math.inf:
    raise ValueError(f"beta must be positive, got {config.beta}")
  if not 0 <= config.label_smoothing < 0.5:
    raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {config.label_smoothing}")
  names = sorted([*dpo.LOSSES, "aot", *OTHERS])
  if config.loss not in names:
    raise ValueError(f"loss must be one of {', '.join(names)}, got {config.loss!r}")
  if config.loss not in SMOOTHED:
    refuse(config, ("label_smoothing",), f"loss {config.loss!r}")
  beta: Any = {} if config.beta is None else {"beta": config.beta}
  if config.loss in OTHERS:
    return OTHERS[config.loss].objective(**beta)
  return dpo.objective(loss=config.loss, label_smoothing=config.label_smoothing, **beta)


def train(
  config: Config, objective: Objective, model: presets.Model, seen: Rankings, test: Rankings, run: RunDirectory
) -> Path:
  mesh, counter = parallel.make_mesh(), CompileCounter()
  place = partial(parallel.shard_rows, mesh=mesh)
  learner = make_learner(config.model, config.lora_rank, config.lora_alpha)
  rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
  tx = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adamw(rate, weight_decay=config.weight_decay))
  plain_score, pad_token = make_score(model.policy), text.pad_token(model.tokenizer)
  score = learner.on(plain_score)
  step = make_train_step(score, objective, tx, microbatches=config.microbatches, frozen=learner.frozen)
  of_initial, of_policy = jax.jit(plain_score), jax.jit(score)

  def prepare(state: RLState, sequences: Sequences) -> Batch:
    """Pairs with what the objective needs besides the learner's own log-probs."""
    placed, inputs = place(sequences), Inputs(mask=sequences.completion_mask)
    if "ref_logp" in objective.needs:
      inputs = inputs._replace(ref_logp=of_initial(learner.initial(state), placed).logp)
    if "kl_baseline" in objective.needs:
      strange = place(examples.exchanged(sequences))
      log_ratio = of_policy(state.policy.params, strange).logp - of_initial(learner.initial(state), strange).logp
      inputs = inputs._replace(kl_baseline=masked_sum(log_ratio, strange.completion_mask, axis=-1))
    if "advantages" in objective.needs:  # the chosen answer is desirable
      signs = jnp.array([1.0, -1.0])[:, None]
      inputs = inputs._replace(advantages=jnp.broadcast_to(signs, sequences.completion_mask.shape))
    return Batch(placed, inputs)

  def measure(state: RLState) -> Measured:
    """The loss on all held-out pairs, whose log-probs are computed a batch at a time."""
    everything, parts = examples.ranking_sequences(test, pad_token), []
    for numbers in supervised.fill(len(test), config.pairs):
      sequences, inputs = prepare(state, supervised.take(everything, numbers))
      logp = of_policy(state.policy.params, sequences).logp
      parts.append(jax.device_get(inputs._replace(logp=logp, batch_logp=logp)))
    inputs = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(test)], *parts)
    loss, metrics = objective.loss(inputs, objective.weight(inputs))
    return Measured({"loss": float(loss), **results(metrics), "pairs": len(test)})

  create = partial(create_state, learner=learner, tx=tx, with_reference="ref_logp" in objective.needs)
  state = parallel.build_replicated(create, mesh)(model.params, jax.random.key(config.seed))
  model = model._replace(params=None)
  collect = supervised.make_collect(
    lambda state, numbers: prepare(state, examples.ranking_sequences([seen[i] for i in numbers], pad_token)),
    rows=len(seen),
    batch_size=config.pairs,
    seed=config.seed,
  )
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
  supervised.show(run.folder)
  return run.folder / "model"


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
