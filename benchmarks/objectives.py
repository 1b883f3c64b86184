"""Loss and gradient of every objective as a multiple of REINFORCE's, and GAE: `python -m benchmarks.objectives`.

Each objective is compiled for log-probs `[rows, tokens]` and timed in turn with REINFORCE, in the same process: its
`ratio` is the median over turns of the two times' ratio. Losses, gradients and weights are included, models are not.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from rl_jax import objectives
from rl_jax.objectives.__main__ import build
from rl_jax.objectives.base import LEARNER, Inputs
from rl_jax.ops import returns

ROW_FIELDS = ("reward_scores", "ratings", "kl_baseline")


def batch(rows: int, tokens: int) -> Inputs:
  """Random inputs `[rows / 2, 2, tokens]`, so that preference objectives can read them too."""
  rng = np.random.default_rng(0)
  shape = (rows // 2, 2, tokens)
  mask = np.arange(tokens) < rng.integers(tokens // 2, tokens + 1, size=(*shape[:-1], 1))
  old = -rng.random(shape)
  fields = {name: old + 0.1 * rng.normal(size=shape) for name in Inputs._fields if name not in ROW_FIELDS}
  fields |= {name: rng.normal(size=shape[:-1]) for name in ROW_FIELDS}
  fields |= dict(mask=mask, target_mask=mask, noise=rng.random(shape), old_logp=old)
  return Inputs(**{name: jnp.asarray(value, jnp.float32) for name, value in fields.items()})


def compile_objective(name: str, inputs: Inputs) -> Callable[[], Any]:
  """Returns a call of the compiled loss and gradient, weights included."""
  objective = build(name)
  learner = {field: getattr(inputs, field) for field in LEARNER if field in objective.needs}
  given = inputs._replace(**{field: None for field in LEARNER})
  given = given._replace(**{field: None for field in set(Inputs._fields) - objective.needs - {"mask"}})

  def loss(learner: dict, given: Inputs) -> Any:
    return objective.loss(given._replace(**learner), objective.weight(given))

  compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(learner, given).compile()
  return lambda: compiled(learner, given)


def seconds(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def compare(call: Callable[[], Any], base: Callable[[], Any], turns: int) -> tuple[float, float]:
  """Returns the median time of `call`, and the median of its ratio to `base`, timed in turns."""
  pairs = [(seconds(call), seconds(base)) for _ in range(turns + 1)][1:]
  return statistics.median(one for one, _ in pairs), statistics.median(one / other for one, other in pairs)


def numpy_gae(rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
  """The loop over time that GAE is compared with."""
  advantages, following = np.zeros_like(rewards), np.zeros((len(rewards), 2))
  for t in reversed(range(rewards.shape[1])):
    delta = rewards[:, t] + 0.99 * following[:, 0] - values[:, t]
    following[:, 1] = delta + 0.99 * 0.95 * following[:, 1]
    following[:, 0] = values[:, t]
    advantages[:, t] = following[:, 1]
  return advantages


def python_gae(rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
  """The loop over rows and time, one number at a time."""
  advantages = np.zeros_like(rewards)
  for row in range(len(rewards)):
    value = advantage = 0.0
    for t in reversed(range(rewards.shape[1])):
      advantage = rewards[row, t] + 0.99 * value - values[row, t] + 0.99 * 0.95 * advantage
      value = values[row, t]
      advantages[row, t] = advantage
  return advantages


def show_gae(console: Console, rows: int, tokens: int, turns: int) -> None:
  rng = np.random.default_rng(0)
  rewards, values = rng.normal(size=(2, rows, tokens)).astype(np.float32)
  arrays = jnp.asarray(rewards), jnp.asarray(values), jnp.ones((rows, tokens))
  expected = numpy_gae(rewards, values)
  loop = statistics.median(seconds(lambda: numpy_gae(rewards, values)) for _ in range(turns))
  single = seconds(lambda: python_gae(rewards, values))
  console.print(f"GAE on [{rows}, {tokens}]: how many times as fast as loops in numpy", markup=False)
  table = Table("GAE", "ms", "loop over time", "loop over rows and time")
  table.add_row("numpy, all rows at a time", f"{loop * 1e3:.1f}", "1.0", f"{single / loop:.0f}")
  for form, holes in itertools.product((returns.gae, returns.gae_associative), ("carry", "zero")):
    jitted = jax.jit(lambda *xs, form=form, holes=holes: form(*xs, gamma=0.99, lam=0.95, holes=holes))
    np.testing.assert_allclose(jitted(*arrays)[0], expected, rtol=1e-3, atol=1e-3)
    took = statistics.median(seconds(lambda jitted=jitted: jitted(*arrays)) for _ in range(turns))
    name = f"{form.__name__}, {holes!r}"
    table.add_row(name, f"{took * 1e3:.1f}", f"{loop / took:.1f}", f"{single / took:.0f}")
  console.print(table)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rows", type=int, default=64)
  parser.add_argument("--tokens", type=int, default=4096)
  parser.add_argument("--turns", type=int, default=15)
  arguments = parser.parse_args()
  inputs = batch(arguments.rows, arguments.tokens)
  base = compile_objective("reinforce", inputs)
  table = Table("objective", "ms", "ratio to reinforce")
  console = Console()
  for name in objectives.names():
    took, ratio = compare(compile_objective(name, inputs), base, arguments.turns)
    table.add_row(name, f"{took * 1e3:.2f}", f"{ratio:.2f}")
  console.print(f"[{arguments.rows}, {arguments.tokens}] tokens, float32, {jax.devices()[0].device_kind}", markup=False)
  console.print(table)
  show_gae(console, 512, 4096, arguments.turns)


if __name__ == "__main__":
  main()
