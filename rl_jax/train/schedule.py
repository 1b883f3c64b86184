"""How often a rollout is used: epochs over it, minibatches of it, in an order that both loops share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from rl_jax.objectives.loading import Algorithm
from rl_jax.ops import metrics as metrics_lib
from rl_jax.ops.metrics import Metrics
from rl_jax.rollouts.experience import check_group_size, check_needs

# How far the sampler is from the learner: of a rollout's first update, before the learner has moved on purpose.
FIRST_UPDATE = ("mismatch_mean", "mismatch_max", "mismatch_kl", "ess")


class Schedule(NamedTuple):
  """What one rollout is used for.

  Attributes:
    epochs: Passes over a rollout.
    minibatches: Parts of a rollout, split by prompts; each is one update.
  """

  epochs: int = 1
  minibatches: int = 1

  @property
  def updates(self) -> int:
    """Updates a rollout."""
    return self.epochs * self.minibatches

  @property
  def on_policy(self) -> bool:
    """Whether a rollout is used for a single update, so that the learner's own log-probs are the old ones."""
    return self.updates == 1


def check(schedule: Schedule) -> Schedule:
  """Returns a schedule whose numbers are at least 1.

  Raises:
    ValueError: For others.

  >>> check(Schedule(0, 1))
  Traceback (most recent call last):
  ...
  ValueError: epochs and minibatches must be at least 1, got 0 and 1
  """
  if min(schedule) < 1:
    raise ValueError(f"epochs and minibatches must be at least 1, got {schedule.epochs} and {schedule.minibatches}")
  return schedule


def check_updates(algorithm: Algorithm, schedule: Schedule) -> None:
  """Raises ValueError if an algorithm makes sense only with more updates a rollout than it gets.

  >>> from rl_jax import objectives
  >>> check_updates(objectives.load("ppo_kl"), Schedule())
  Traceback (most recent call last):
  ...
  ValueError: objective 'ppo_kl' needs more than one update a rollout: raise epochs or minibatches
  """
  if algorithm.several_updates and schedule.on_policy:
    raise ValueError(f"objective {algorithm.name!r} needs more than one update a rollout: raise epochs or minibatches")


def check_ratio(algorithm: Algorithm, schedule: Schedule) -> None:
  """Raises ValueError if a rollout is used for several updates by an objective without a ratio to the old policy.

  >>> from rl_jax import objectives
  >>> check_ratio(objectives.load("rloo"), Schedule(1, 2))
  Traceback (most recent call last):
  ...
  ValueError: objective 'rloo' has no ratio to correct for older samples: epochs and minibatches must be 1
  """
  if "advantages" in algorithm.needs and "old_logp" not in algorithm.needs and not schedule.on_policy:
    raise ValueError(
      f"objective {algorithm.name!r} has no ratio to correct for older samples: epochs and minibatches must be 1"
    )


def reads_old_logp(algorithm: Algorithm, schedule: Schedule, *, kl_in_reward: bool) -> bool:
  """Whether anything reads the old policy's log-probs; where one update follows, the objective does not.

  >>> from rl_jax import objectives
  >>> reads_old_logp(objectives.load("grpo"), Schedule(), kl_in_reward=False)
  False
  """
  return not schedule.on_policy or kl_in_reward or "old_logp" in algorithm.from_rewards().needs


def orders(schedule: Schedule, key: Array, rows: int, extra_rows: int = 0) -> Int[Array, "updates rows"]:
  """Returns the rows of each update: shuffled anew in every epoch, with the same number of each kind of row.

  Args:
    schedule: How many updates.
    key: PRNG key of the rollout.
    rows: Number of rows in the batch.
    extra_rows: How many of its last ones are of another kind.

  >>> print(orders(Schedule(1, 2), jax.random.key(0), 4).shape)
  (2, 2)
  """
  kinds = ((0, rows - extra_rows), (rows - extra_rows, extra_rows))

  def of_epoch(epoch: Array) -> Array:
    parts = []
    for kind, (first, size) in enumerate(kinds):
      kind_key = jax.random.fold_in(key, epoch + schedule.epochs * kind)
      order = first + jax.random.permutation(kind_key, size)
      parts.append(order.reshape(schedule.minibatches, size // schedule.minibatches))
    return jnp.concatenate(parts, axis=1)

  return jax.vmap(of_epoch)(jnp.arange(schedule.epochs)).reshape(schedule.updates, -1)


def over_updates(stacked: Metrics) -> Metrics:
  """Combines the metrics of a rollout's updates, stacked on their leading axis; some are those of the first update.

  >>> from rl_jax.ops.metrics import Mean, results
  >>> two = Mean(jnp.array([1.0, 5.0]), jnp.array([1.0, 1.0]))
  >>> results(over_updates({"loss": two, "mismatch_mean": two}))
  {'loss': 3.0, 'mismatch_mean': 1.0}
  """
  first = {name: jax.tree.map(lambda x: x[0], stacked[name]) for name in FIRST_UPDATE if name in stacked}
  return metrics_lib.reduce(stacked) | first


def check_algorithm(algorithm: Algorithm, schedule: Schedule, group_size: int) -> None:
  """Asks whether an algorithm goes with rollouts; for scripts too, which ask before they load a model.

  Raises:
    ValueError: If it does not, or not with groups of that size, or with so many updates.

  >>> from rl_jax import objectives
  >>> check_algorithm(objectives.load("rloo"), Schedule(), 2)
  """
  check_needs(algorithm)
  check_updates(algorithm, schedule)
  check_ratio(algorithm, schedule)
  check_group_size(algorithm, group_size)
