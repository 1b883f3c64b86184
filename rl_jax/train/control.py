"""Controllers in the loop: coefficients of the objective or the reward that follow what was measured.

A controller moves numbers in `TrainState.coefficients`, after a rollout's last update. What it reads is a metric of the
rollout or of its updates, or the KL between the old policy and the new, which is measured once more at the end: metrics
average over a rollout's updates, and before the first of them that KL is 0.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from rl_jax.ops import controllers as rules
from rl_jax.ops import kl
from rl_jax.ops.masking import masked_mean
from rl_jax.state import Batch, Coefficients, Forward, TrainState
from rl_jax.train.schedule import Schedule
from rl_jax.train.step import in_parts

AFTER = "kl_update"  # KL(old || new) in nats a token, measured after a rollout's last update


class Controller(NamedTuple):
  """What moves coefficients.

  Attributes:
    reads: The metric that it follows.
    move: `(coefficients, metric) -> those that it moves`.
    moves: The names of the objective's or the reward's coefficients that it moves.
    kept: Initial values of coefficients of its own, which nothing else reads.
  """

  reads: str
  move: Callable[[Coefficients, Array], dict[str, Array]]
  moves: tuple[str, ...]
  kept: Mapping[str, float] = {}


Control = Callable[[TrainState, Batch, Mapping[str, Any]], tuple[TrainState, dict[str, Array]]]


def initial(controllers: tuple[Controller, ...], coefficients: Mapping[str, Any], schedule: Schedule) -> dict[str, Any]:
  """Returns the coefficients that a run begins with, those that controllers keep for themselves included.

  Args:
    controllers: What moves them.
    coefficients: Those of the objective and of the KL in the reward.
    schedule: What each rollout is used for.

  Raises:
    ValueError: If a controller moves a coefficient that is not there, or follows updates where there is but one.

  >>> initial((adaptive_beta(target=0.1),), {"kl_coef": 0.1}, Schedule(2, 2))
  Traceback (most recent call last):
  ...
  ValueError: a controller moves beta, which is no coefficient of this run; it has kl_coef
  """
  for controller in controllers:
    if missing := [name for name in controller.moves if name not in coefficients]:
      known = ", ".join(coefficients) or "none"
      raise ValueError(f"a controller moves {missing[0]}, which is no coefficient of this run; it has {known}")
    if controller.reads == AFTER and schedule.on_policy:
      raise ValueError(f"a controller of {controller.moves[0]} follows {AFTER}: it needs several updates a rollout")
  return {**coefficients, **{name: value for each in controllers for name, value in each.kept.items()}}


def make_control(forward: Forward, controllers: tuple[Controller, ...], *, microbatches: int = 1) -> Control:
  """Returns `control(policy, batch, metrics) -> (policy, what was measured besides)`, pure.

  A metric that is not finite moves nothing: a coefficient would not come back from it.

  Args:
    forward: The learner's forward pass; it runs once more only if a controller reads `kl_update`.
    controllers: Each moves coefficients of its own.
    microbatches: Slices that this pass is made in.
  """
  after = any(controller.reads == AFTER for controller in controllers)

  def control(policy: TrainState, batch: Batch, metrics: Mapping[str, Any]) -> tuple[TrainState, dict[str, Array]]:
    measured = {}
    if after:
      logp, _ = in_parts(forward, policy.params, batch.sequences, microbatches)
      divergence = kl.k3(jnp.asarray(batch.inputs.old_logp), logp)
      measured[AFTER] = masked_mean(divergence, batch.inputs.mask)
    coefficients = dict(policy.coefficients)
    for controller in controllers:
      metric = jnp.asarray((dict(metrics) | measured)[controller.reads], jnp.float32)
      moved = controller.move(coefficients, metric)
      coefficients |= {name: jnp.where(jnp.isfinite(metric), x, coefficients[name]) for name, x in moved.items()}
    return policy._replace(coefficients=coefficients), measured

  return control


def adaptive_kl(*, target: float, horizon: float, samples: int) -> Controller:
  """Ziegler's controller of the KL in the reward: `kl_coef` follows the nats a completion.

  Args:
    target: KL wanted, in nats a completion.
    horizon: Completions over which the weight may change by a fifth.
    samples: Completions a rollout.

  >>> controller = adaptive_kl(target=6.0, horizon=1000.0, samples=100)
  >>> f"{controller.move({'kl_coef': jnp.array(0.1)}, jnp.array(12.0))['kl_coef']:.4f}"
  '0.1020'
  """

  def move(coefficients: Coefficients, divergence: Array) -> dict[str, Array]:
    before = coefficients["kl_coef"]
    return {"kl_coef": rules.adaptive_kl(before, divergence, target=target, horizon=horizon, samples=samples)}

  return Controller("kl_completion", move, ("kl_coef",))


def kl_band(*, low: float, high: float) -> Controller:
  """Keeps the KL in the reward between two bounds: `kl_coef` doubles above, halves below.

  Args:
    low: Least KL wanted, in nats a completion.
    high: Largest KL wanted, in nats a completion.

  >>> float(kl_band(low=1.0, high=2.0).move({"kl_coef": jnp.array(0.5)}, jnp.array(3.0))["kl_coef"])
  1.0
  """
  return Controller("kl_completion", _within("kl_coef", low, high), ("kl_coef",))


def adaptive_beta(*, target: float) -> Controller:
  """PPO's adaptive penalty on the update: `beta` doubles where KL(old || new) is above 1.5 targets, halves below 1/1.5.

  Args:
    target: KL wanted, in nats a token.

  Reference: J. Schulman et al., "Proximal Policy Optimization Algorithms", arXiv:1707.06347 (section 4).

  >>> adaptive_beta(target=0.01).move({"beta": jnp.array(1.0)}, jnp.array(0.1))["beta"].tolist()
  2.0
  """
  return Controller(AFTER, _within("beta", target / 1.5, target * 1.5), ("beta",))


def adaptive_entropy(*, target: float, delta: float = 0.005, high: float = 1.0) -> Controller:
  """Raises the weight of the entropy bonus while the entropy is below its target; above, the bonus is off.

  The weight that is kept meanwhile is the coefficient `entropy_kept`.

  Args:
    target: The least entropy wanted, in nats a token.
    delta: Step a rollout.
    high: Largest weight.

  Reference: J. He et al., "Skywork Open Reasoner 1 Technical Report", arXiv:2505.22312.

  >>> coefficients = {"entropy_coef": jnp.array(0.0), "entropy_kept": jnp.array(0.01)}
  >>> moved = adaptive_entropy(target=0.2).move(coefficients, jnp.array(0.1))
  >>> [f"{x:.3f}" for x in moved.values()]
  ['0.015', '0.015']
  """

  def move(coefficients: Coefficients, entropy: Array) -> dict[str, Array]:
    before = coefficients["entropy_kept"]
    kept, applied = rules.adaptive_entropy(before, entropy, target=target, delta=delta, high=high)
    return {"entropy_coef": applied, "entropy_kept": kept}

  return Controller("entropy", move, ("entropy_coef",), {"entropy_kept": 0.0})


def _within(name: str, low: float, high: float) -> Callable[[Coefficients, Array], dict[str, Array]]:
  """A coefficient that doubles above a band and halves below it."""
  return lambda coefficients, metric: {name: rules.kl_band(coefficients[name], metric, low=low, high=high)}
