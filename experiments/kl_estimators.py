"""What k1, k2 and k3 are worth as estimates of a KL, and as loss terms: numbers and a figure.

    python -m experiments.kl_estimators --figure docs/kl_estimators.png     # seconds

A policy over ten tokens, a reference, and tokens sampled from the policy. The value of each estimator is compared with
the exact KL; the gradient of its mean in the policy's logits with the exact gradient of the KL.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from rl_jax.analysis.figures import pyplot
from rl_jax.ops import kl
from rl_jax.runs.settings import run_script

ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3, "k3 with the gradient of k2": kl.straight_through(kl.k3)}


@dataclasses.dataclass(frozen=True)
class Config:
  figure: str | None = None  # path of a PNG; none is drawn without it
  tokens: int = 10  # size of the vocabulary
  distance: float = 1.0  # standard deviation of the difference of the logits
  samples: int = 100_000  # tokens drawn from the policy
  seed: int = 0


def measure(config: Config) -> tuple[list[tuple[str, float, float, float, float]], float]:
  """Returns (name, mean, standard deviation, gradient's size along the exact one, and across it), and the exact KL."""
  keys = jax.random.split(jax.random.key(config.seed), 3)
  logits = jax.random.normal(keys[0], (config.tokens,))
  ref_logits = logits + config.distance * jax.random.normal(keys[1], (config.tokens,))
  drawn = jax.random.categorical(keys[2], logits, shape=(config.samples,))
  ref_logp = jax.nn.log_softmax(ref_logits)[drawn]
  exact, target = jax.value_and_grad(lambda x: kl.categorical(x, ref_logits))(logits)
  rows = []
  for name, estimator in ESTIMATORS.items():

    def estimates(x: Array, estimator: kl.Estimator = estimator) -> Array:
      return estimator(jax.nn.log_softmax(x)[drawn], ref_logp)

    values, gradient = estimates(logits), jax.grad(lambda x: estimates(x).mean())(logits)
    along = jnp.vdot(gradient, target) / jnp.vdot(target, target)
    across = jnp.linalg.norm(gradient - along * target) / jnp.linalg.norm(target)
    rows.append((name, float(values.mean()), float(values.std()), float(along), float(across)))
  return rows, float(exact)


def draw(path: str) -> None:
  """Draws values and gradients of the estimators over the log-ratio."""
  plt = pyplot()
  log_ratio = jnp.linspace(-2, 2, 201)  # log policy - log reference
  figure, axes = plt.subplots(1, 2, figsize=(8, 3))
  for name in ("k1", "k2", "k3"):
    estimator = ESTIMATORS[name]
    slope = jax.vmap(jax.grad(lambda x, f=estimator: f(x, jnp.zeros(()))))(log_ratio)
    for axis, values in zip(axes, (estimator(log_ratio, jnp.zeros_like(log_ratio)), slope), strict=True):
      axis.plot(log_ratio, values, label=name)
  for axis, title in zip(axes, ("value", "derivative in log policy"), strict=True):
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("log policy - log reference", fontsize=9)
    axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
  figure.tight_layout()
  figure.savefig(path, dpi=120)


def main(config: Config) -> None:
  rows, exact = measure(config)
  table = Table("estimator", "mean", "standard deviation", "gradient along the exact one", "across it")
  for name, *numbers in rows:
    table.add_row(name, *(f"{number:.3f}" for number in numbers))
  console = Console()
  console.print(f"exact KL(policy || reference): {exact:.3f} nats", highlight=False)
  console.print(table)
  if config.figure:
    draw(config.figure)


if __name__ == "__main__":
  run_script(main, Config, module="experiments.kl_estimators", description=__doc__, kept="nothing is kept")
