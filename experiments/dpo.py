"""Direct preference optimisation: learn from preferences without a reward model. The family by name.

    python -m experiments.dpo --data preferences.jsonl                           # prompt, chosen, rejected
    python -m experiments.dpo --data preferences.jsonl --loss ipo --beta 0.05
    python -m experiments.dpo --data preferences.jsonl --lora-rank 16            # adapters; the base is the reference
    python -m experiments.dpo --model tiny --data preferences.jsonl --steps 2

The reference is the initial model: a frozen copy, or with adapters the base itself.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rl_jax.models import lora, presets, weights
from rl_jax.objectives import dpo
from rl_jax.objectives.base import Inputs
from rl_jax.ops.metrics import results
from rl_jax.tasks import files, preferences
from rl_jax.train import examples, loop, parallel, supervised, text
from rl_jax.train.compiles import CompileCounter
from rl_jax.train.evaluate import Measured
from rl_jax.train.metrics_io import RunDirectory
from rl_jax.train.score import Scores, Sequences, make_score
from rl_jax.train.settings import check_parts, exit_if_stopped, require_at_least, run_script
from rl_jax.train.state import RLState
from rl_jax.train.step import Batch, make_train_step

MODULE = "experiments.dpo"


@dataclasses.dataclass(frozen=True)
class Config:
  data: str  # .jsonl or .parquet with prompt, chosen and rejected
  model: str = "smollm2"  # smollm2, tiny, small, a folder in Hugging Face's format, or a .gguf file
  run_dir: str = "runs/dpo"  # configuration, metrics, checkpoints and the trained model
  resume: bool = False  # go on with the run in run_dir
  steps: int = 100  # updates
  pairs: int = 8  # an update
  max_tokens: int = 512  # longer prompts with answers are left out
  held_out: float = 0.1  # share of the pairs to measure on
  loss: str = "sigmoid"  # sigmoid, robust, hinge, ipo, exo, nca, bco, sppo, aot, apo_zero, apo_down, discopop
  beta: float = 0.1  # strength of the pull towards the reference
  label_smoothing: float = 0.0  # share of the pairs that may be the wrong way round
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
  require_at_least(config, 1, ("steps", "pairs", "max_tokens", "microbatches"))
  not_negative = ("lora_rank", "beta", "label_smoothing", "learning_rate", "weight_decay", "max_grad_norm",
                  "checkpoint_every", "seed")  # fmt: skip
  require_at_least(config, 0, not_negative)
  if not 0 < config.held_out < 1:
    raise ValueError(f"held_out must be between 0 and 1, got {config.held_out}")
  if config.beta <= 0 or config.label_smoothing >= 0.5:
    given = f"{config.beta} and {config.label_smoothing}"
    raise ValueError(f"beta must be positive and label_smoothing below 0.5, got {given}")
  check_parts(config.pairs, config.microbatches, "pairs")
  objective = dpo.objective(loss=config.loss, beta=config.beta, label_smoothing=config.label_smoothing)
  settings = dataclasses.asdict(config) | {"data": files.fingerprint(Path(config.data))}
  directory = RunDirectory(config.run_dir, settings, resume=config.resume)
  model = presets.load(config.model, remat=config.remat)
  presets.check_context(model, config.max_tokens)
  data = preferences.load(config.data)
  encoded, problems = examples.encode_rankings(model.tokenizer, data, max_tokens=config.max_tokens)
  print(f"{data.describe()}; as tokens: {examples.describe(problems)}", flush=True)
  if len(encoded[0].answers) != 2:
    raise ValueError(f"DPO learns from pairs; the data ranks {len(encoded[0].answers)} answers")
  train, test = supervised.hold_out(encoded, config.held_out, seed=config.seed)

  mesh, counter = parallel.make_mesh(), CompileCounter()
  place = partial(parallel.shard_rows, mesh=mesh)
  adapted = config.lora_rank > 0
  frozen = ("base",) if adapted else ()
  rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
  tx = optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm), optax.adamw(rate, weight_decay=config.weight_decay)
  )
  plain_score, pad_token = make_score(model.policy), text.pad_token(model.tokenizer)

  def plain(params: Any) -> Any:
    """The parameters of the model itself, adapters merged."""
    return lora.merge(params["base"], params["adapters"], alpha=config.lora_alpha) if adapted else params

  def score(params: Any, sequences: Sequences) -> Scores:
    return plain_score(plain(params), sequences)

  step = make_train_step(score, objective, tx, microbatches=config.microbatches, frozen=frozen)
  forward, merged = jax.jit(plain_score), jax.jit(plain)

  def reference(state: RLState) -> Any:
    return state.policy.params["base"] if adapted else state.ref_params

  def make_batch(state: RLState, rows: list[examples.Answers]) -> Batch:
    sequences = place(examples.ranking_sequences(rows, pad_token))
    ref_logp = forward(reference(state), sequences).logp
    return Batch(sequences, Inputs(mask=sequences.completion_mask, ref_logp=ref_logp))

  def measure(state: RLState) -> Measured:
    """The loss on all held-out pairs, whose log-probs are computed a batch at a time."""
    everything, policy = examples.ranking_sequences(test, pad_token), merged(state.policy.params)
    logps: dict[str, list[np.ndarray]] = {"logp": [], "ref_logp": []}
    for start in range(0, len(test), config.pairs):
      numbers = np.arange(start, start + config.pairs) % len(test)  # the last batch is filled up with others
      part = place(supervised.take(everything, numbers))
      for name, params in (("logp", policy), ("ref_logp", reference(state))):
        logps[name].append(np.asarray(forward(params, part).logp))
    logp, ref_logp = (jnp.asarray(np.concatenate(parts)[: len(test)]) for parts in logps.values())
    inputs = Inputs(mask=everything.completion_mask, logp=logp, batch_logp=logp, ref_logp=ref_logp)
    loss, metrics = objective.loss(inputs, objective.weight(inputs))
    return Measured({"loss": float(loss), **results(metrics), "pairs": len(test)})

  def create(params: Any, key: jax.Array) -> RLState:
    adapter_key, run_key = jax.random.split(key)
    if adapted:
      params = {"base": params, "adapters": lora.init(adapter_key, params, rank=config.lora_rank)}
    return RLState.create(params, tx, run_key, keep_reference=not adapted, frozen=frozen)

  state = parallel.build_replicated(create, mesh)(model.params, jax.random.key(config.seed))
  model = model._replace(params=None)
  collect = supervised.make_collect(
    lambda state, numbers: make_batch(state, [train[i] for i in numbers]),
    rows=len(train), batch_size=config.pairs, seed=config.seed,
  )  # fmt: skip
  with directory as run:
    state, done = loop.train(
      state, run=run, test=measure, steps=config.steps, collect=collect,
      update=parallel.jit_step(counter.count(step), mesh), checkpoint_every=config.checkpoint_every,
      place=place, compiles=counter.total,
    )  # fmt: skip
    exit_if_stopped(MODULE, config, done)
    if adapted:
      lora.save_peft(
        run.folder / "adapters", state.policy.params["adapters"], alpha=config.lora_alpha, base_model=config.model
      )
    weights.save_safetensors(
      run.folder / "model", merged(state.policy.params), model.config, model.hf, model.tokenizer,
      eos_tokens=model.eos_tokens,
    )  # fmt: skip
    supervised.show(run.folder)
  return run.folder / "model"


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
