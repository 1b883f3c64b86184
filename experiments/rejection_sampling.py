"""Learn from the best of a policy's own samples: rejection sampling (expert iteration), or online DPO.

    python -m experiments.rejection_sampling                                     # imitate the best of 8
    python -m experiments.rejection_sampling --method prefer                     # online DPO: best over worst
    python -m experiments.rejection_sampling --reward-model runs/reward_model/model --task prompts.jsonl
    python -m experiments.rejection_sampling --model tiny --steps 2

Every rollout samples a group of completions to each prompt and judges them by reward functions, a reward model, or
both.

References: H. Dong et al., "RAFT", arXiv:2304.06767; S. Guo et al., "Direct Language Model Alignment from Online AI
Feedback", arXiv:2402.04792.
"""

import dataclasses
from pathlib import Path

import jax

from experiments.configs import ModelConfig, OptimizerConfig, RolloutConfig, RunConfig, load_reward
from rl_jax.devices import Devices
from rl_jax.models import presets
from rl_jax.objectives import algorithm, dpo, gpg, sft
from rl_jax.rollouts import selected
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.settings import refuse, require_at_least, require_one_of, require_positive, run_script
from rl_jax.sampling.samplers import SamplingParams
from rl_jax.tasks import rewards
from rl_jax.tasks.text import Prompts
from rl_jax.train import loop
from rl_jax.train.actors import LoadedReward, create_state
from rl_jax.train.step import make_train_step
from rl_jax.train.text_rollouts import make_text_rollouts

MODULE = "experiments.rejection_sampling"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig, ModelConfig, OptimizerConfig, RolloutConfig):
  reward_model: str = ""  # folder of a model from experiments.reward_model, whose score is added; none by default
  method: str = "imitate"  # imitate: cross-entropy on the best; prefer: DPO on the best and the worst
  best: int = 1  # completions of a group to imitate
  above: float = float("-inf")  # imitate only completions with a higher reward than this
  beta: float = 0.1  # strength of DPO's pull towards the initial model
  run_dir: str = "runs/rejection_sampling"  # configuration, metrics, samples, checkpoints, plot and the trained model

  def check(self) -> None:
    require_at_least(self, 1, ("best",))
    require_positive(self, ("beta",))
    require_one_of(self, {"method": ("imitate", "prefer")})
    refuse(self, ("beta",) if self.method == "imitate" else ("best", "above"), f"method {self.method!r}")
    if self.group_size < max(2, self.best):
      raise ValueError(f"group_size must be at least 2 and no less than best, got {self.group_size}")
    super().check()
    self.check_parts(self.microbatches)


def main(config: Config) -> Path:
  """Trains, and returns the folder of the trained model."""
  config.check()
  task = config.load_task(config.seed)
  settings = {"data_fingerprint": task.fingerprint, "above": str(config.above)}
  directory, model = config.directory(**settings), config.load_model(config.max_tokens)
  reward = load_reward(config, model)
  rewards.check_any(task.rewards, reward is not None)
  prompts = config.make_prompts(task, config.make_reader(model))
  with directory as run:
    return train(config, prompts, model, reward, run)


def train(
  config: Config, prompts: Prompts, model: presets.Model, reward: LoadedReward | None, run: RunDirectory
) -> Path:
  devices, learner = Devices(), config.make_learner(model)

  # Rollouts: a group of completions with rewards, and of these what is learned. And evaluation, greedy.
  rollouts = make_text_rollouts(
    prompts,
    learner,
    algorithm(sft.objective(), gpg.advantage()),  # the samples are chosen by their rewards: no advantage is read
    devices,
    sampling=SamplingParams(config.temperature),
    schedule=config.schedule,
    reward_model=reward and reward.make_reward_model(devices, ending=prompts.ending),
    mask_truncated=config.mask_truncated,
    **config.sizes,
  )
  if config.method == "imitate":
    objective = sft.objective()
    collect = selected.imitate(rollouts.collect, n=config.best, above=config.above)
  else:
    objective = dpo.objective(beta=config.beta)
    collect = selected.prefer(rollouts.collect, learner.reference(devices, temperature=config.temperature))

  # The update step and the state; then everything runs.
  optimizer = config.make_optimizer(warmup_steps=config.warmup_steps)
  forward = learner.forward(temperature=config.temperature)
  step = make_train_step(forward, objective, optimizer, microbatches=config.microbatches, frozen=learner.frozen)
  create = create_state(learner, optimizer, keep_reference="ref_logp" in objective.needs)
  state, model = devices.build(create, model.params, jax.random.key(config.seed)), model._replace(params=None)
  state, done = loop.train(
    state,
    run=run,
    evaluate=rollouts.evaluate,
    collect=collect,
    update=devices.step(step),
    schedule=config.schedule,
    **config.loop_settings(devices, learner),
  )
  return config.finish(MODULE, run, learner, state.policy.params, done)


if __name__ == "__main__":
  run_script(main, Config, module=MODULE, description=__doc__)
