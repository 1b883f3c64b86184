"""What the findings share: the settings of a study, its variants, and the comparison that decides."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.compiled_configs import SeedsConfig
from rl_jax.analysis import comparison
from rl_jax.models.transformer import policy
from rl_jax.objectives import algorithm, grpo
from rl_jax.objectives.base import Objective
from rl_jax.ops.estimates import Advantage
from rl_jax.ops.statistics import bootstrap_interval, probability_of_improvement
from rl_jax.runs.directory import RunDirectory
from rl_jax.runs.settings import require_at_least, run_script
from rl_jax.tasks import on_device
from rl_jax.train import compiled, variants


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SeedsConfig):
  run_dir: str  # results, table and curves
  resume: bool = False  # go on with the study in run_dir, or show it again; as a flag, its folder
  rollouts: int = 300  # batches of completions
  warmup_steps: int = 500  # updates of supervised learning before the first rollout

  def check(self) -> None:
    require_at_least(self, 10, ("rollouts",))
    super().check()


class Arm(NamedTuple):
  """One variant of a study: an objective, how its advantages are estimated, and what differs in the sizes."""

  objective: Objective
  advantage: Advantage = grpo.advantage()
  sizes: Mapping[str, Any] = {}


def study(config: Config, task: on_device.Task, arms: Mapping[str, Arm], **sizes: Any) -> comparison.Results:
  """Trains all arms, shows them, and returns their metrics."""
  config.check()
  model = policy(config.make_shape(task))
  common = compiled.Config(
    steps=config.rollouts,
    evaluate_every=config.rollouts // 10,
    evaluation_problems=512,
    num_prompts=32,
    group_size=8,
    **config.warmup,
  )

  def variant(name: str, arm: Arm) -> variants.Variant:
    learned = algorithm(arm.objective, arm.advantage, name=name)
    own = dataclasses.replace(common, **{**sizes, **arm.sizes})
    optimizer, warmup_optimizer = config.make_optimizer(), config.make_warmup_optimizer()
    build = compiled.compiled(task, model, learned, optimizer, own, warmup_optimizer=warmup_optimizer)
    return variants.Variant(name, lambda _: build)

  with RunDirectory(config.run_dir, dataclasses.asdict(config) | {"task": task.name}, resume=config.resume) as run:
    variants.train([variant(*arm) for arm in arms.items()], run.folder, seeds=config.seeds, seed=config.seed)
    comparison.show(run.folder)
    return variants.load(run.folder)


class Claim(NamedTuple):
  """That one arm ends with a higher value of a metric than another, over seeds."""

  higher: str
  lower: str
  metric: str


def verdict(results: comparison.Results, claims: Sequence[Claim]) -> None:
  """Prints the difference of each claim, paired by seed, and whether all of them are above 0 beyond their intervals."""
  held = []
  for higher, lower, metric in claims:
    x, y = (comparison.final(np.asarray(results[name][metric]), metric) for name in (higher, lower))
    low, high = bootstrap_interval(x - y)
    outcome = "holds" if low > 0 else "the opposite holds" if high < 0 else "undecided"
    held.append(low > 0)
    values = f"{comparison.cell(x, 3)} and {comparison.cell(y, 3)}"
    chance = probability_of_improvement(x, y)[0]
    difference = comparison.cell(x - y, 3)
    print(f"{metric}, {higher!r} and {lower!r}: {values}; difference {difference}, P {chance:.2f}: {outcome}")
  print("REPRODUCED" if all(held) else "NOT REPRODUCED" if not any(held) else "REPRODUCED IN PART")


def run(main: Callable[[Config], None], module: str, **defaults: Any) -> None:
  """The command line of a study; keyword arguments replace the defaults of `Config`."""
  name = module.rpartition(".")[2]
  run_script(
    main,
    Config,
    module=module,
    description=main.__doc__,
    default=Config(run_dir=f"runs/findings/{name}", **defaults),
    kept="finished variants are kept, and --resume goes on with the others",
  )
