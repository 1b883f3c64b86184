"""Compare objectives on a task that runs on the device: same model, same prompts, same sizes, many seeds, intervals.

    python -m experiments.compare_objectives                                    # six objectives on addition
    python -m experiments.compare_objectives --objectives dapo --grid clip_high=0.2,0.28,0.4
    python -m experiments.compare_objectives --objectives grpo,my_module:objective   # with one of yours
    python -m experiments.compare_objectives --task sorting --task-options length=8 --seeds 16
    python -m rl_jax.analysis.comparison runs/compare                           # table and curves again

Every variant starts, seed by seed, from the same parameters, after the same supervised warm-up, and takes the same
number of updates; each uses the defaults of its loss and its own advantages. There is no KL in the reward,
also where a paper has one, and objectives without a ratio (rloo, reinforce, remax, gpg) take every minibatch of a
rollout as fresh. Evaluation draws from the same distribution as training, so easy tasks repeat problems. All seeds and
grid points of an objective train in one compiled program. `--resume RUN_DIR` goes on after an
interruption.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

from experiments.compiled_configs import TaskConfig
from rl_jax import objectives
from rl_jax.analysis import comparison
from rl_jax.models import heads
from rl_jax.models.transformer import policy
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.settings import require_at_least, run_script
from rl_jax.tasks import on_device
from rl_jax.train import compiled, variants
from rl_jax.train.variants import Variant
from rl_jax.train.whole_run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
  objectives: str = "grpo,dr_grpo,dapo,gspo,rloo,ppo"  # names, or paths such as my_module:objective, with commas
  grid: tuple[str, ...] = ()  # values of a setting to sweep, such as clip_high=0.2,0.28,0.4, where an objective has it
  run_dir: str = "runs/compare"  # results, table and curves
  resume: bool = False  # go on with the comparison in run_dir; as a flag, its folder, whose settings are taken
  rollouts: int = 400  # batches of completions
  minibatches: int = 2  # updates a rollout
  epochs: int = 1  # passes over a rollout
  temperature: float = 1.0  # temperature of sampling and of every log-prob
  evaluate_every: int = 40  # rollouts between evaluations
  evaluation_problems: int = 512  # problems an evaluation, one completion each

  def check(self) -> None:
    require_at_least(self, 1, ("rollouts", "evaluate_every"))
    if self.rollouts % self.evaluate_every:
      raise ValueError(f"rollouts must be a multiple of evaluate_every={self.evaluate_every}, got {self.rollouts}")
    super().check()


def main(config: Config) -> None:
  config.check()
  task = config.load_task()
  grid = parse_grid(config.grid)
  names = [name.strip() for name in config.objectives.split(",")]
  if len(set(names)) < len(names):
    raise ValueError(f"objectives must differ, got {config.objectives!r}")
  for setting in grid:
    if not any(setting in objectives.settings_of(name) for name in names):
      raise ValueError(f"no objective that is compared has a setting {setting!r} to sweep")
  compared = [make_variant(name, config, task, grid) for name in names]
  with RunDirectory(config.run_dir, dataclasses.asdict(config), resume=config.resume) as run:
    variants.train(compared, run.folder, seeds=config.seeds, seed=config.seed)
    comparison.show(run.folder)


def parse_grid(settings: tuple[str, ...]) -> dict[str, list[float]]:
  """Returns the points of the product of all `name=value,value`: `{name: [value at each point]}`."""
  values = {}
  for setting in settings:
    name, equals, given = setting.partition("=")
    if name in values:
      raise ValueError(f"grid names {name!r} twice")
    try:
      values[name] = [float(value) for value in given.split(",")]
    except ValueError:
      equals = ""
    if not equals:
      raise ValueError(f"grid must look like clip_high=0.2,0.28, got {setting!r}")
    if not all(map(math.isfinite, values[name])) or len({f"{value:g}" for value in values[name]}) < len(values[name]):
      raise ValueError(f"grid values must be finite and differ in their first six digits, got {setting!r}")
  points = list(itertools.product(*values.values()))
  return {name: [point[i] for point in points] for i, name in enumerate(values)}


def make_variant(name: str, config: Config, task: on_device.Task, grid: Mapping[str, list[float]]) -> Variant:
  """An objective over the points of the grid that it has settings for."""
  own = {argument: values for argument, values in grid.items() if argument in objectives.settings_of(name)}
  if "length" in own:
    raise ValueError("length is not an argument to sweep: the comparison sets it to the longest answer")
  if name == "instruct_gpt":
    raise ValueError("objective 'instruct_gpt' needs rows of pretraining text, which these tasks do not have")
  shape = config.make_shape(task)
  model = heads.with_value_head(policy(shape), shape.embed_dim)
  sizes = compiled.Config(
    steps=config.rollouts,
    temperature=config.temperature,
    epochs=config.epochs,
    minibatches=config.minibatches,
    evaluate_every=config.evaluate_every,
    evaluation_problems=config.evaluation_problems,
    **config.sizes,
  )
  optimizer, warmup_optimizer = config.make_optimizer(), config.make_warmup_optimizer()

  def build(hyperparameters: Mapping[str, Any]) -> Run:
    algorithm = objectives.load(name, fallback={"length": task.max_new_tokens}, **hyperparameters)
    return compiled.compiled(task, model, algorithm, optimizer, sizes, warmup_optimizer=warmup_optimizer)

  points = distinct(own)
  build({argument: values[0] for argument, values in points.items()})  # says now what would fail later
  return Variant(name, build, points)


def distinct(points: Mapping[str, list[float]]) -> dict[str, list[float]]:
  """The points that are left of a grid where an objective has some of its settings alone."""
  unique = list(dict.fromkeys(zip(*points.values(), strict=True)))
  return {name: [point[i] for point in unique] for i, name in enumerate(points)}


if __name__ == "__main__":
  run_script(
    main,
    Config,
    module="experiments.compare_objectives",
    description=__doc__,
    kept="finished variants are kept, and --resume goes on with the others",
  )
