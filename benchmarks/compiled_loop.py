"""Whole GRPO steps in one compiled program: `python -m benchmarks.compiled_loop`.

For each size: seconds a step (rollout and update) as the median over runs of many steps, steps and new tokens a second,
what compiling took, the memory that the program needs, and the share of the matrix-product peak that its arithmetic
amounts to. The peak is measured before and after each size, as one product of two square matrices. The smallest size is
so small that its time is the fixed cost of a step; the last row trains several seeds side by side.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

from rl_jax import objectives
from rl_jax.models import presets
from rl_jax.models.transformer import policy
from rl_jax.runs import resources
from rl_jax.tasks import on_device
from rl_jax.train.compiled import Config, compiled

PROMPT_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class Size:
  layers: int
  width: int
  prompts: int
  group_size: int
  new_tokens: int
  seeds: int = 1

  @property
  def name(self) -> str:
    seeds = f", {self.seeds} seeds" if self.seeds > 1 else ""
    completions = f"{self.prompts} x {self.group_size} x {self.new_tokens}"
    return f"{self.layers} x {self.width}, {completions}{seeds}"


SIZES = (Size(1, 32, 1, 1, 8), Size(1, 64, 4, 8, 8), Size(2, 128, 8, 8, 16), Size(1, 64, 4, 8, 8, seeds=8))


def build(size: Size, steps: int) -> tuple[Callable[[], Any], float, float, float]:
  """Returns a call of `steps` steps, the compile time, the memory in GiB, and the matrix products' FLOPs a step."""
  # Copying words: prompts of 8 tokens, and completions as long as the size says (a cut-off answer is judged too).
  task = on_device.load("copying", length=PROMPT_TOKENS - 1)._replace(max_new_tokens=size.new_tokens)
  shape = presets.small(task.vocab_size, layers=size.layers, width=size.width)
  config = Config(steps=steps, num_prompts=size.prompts, group_size=size.group_size)
  run = compiled(task, policy(shape), objectives.load("grpo", kl_coef=0), optax.adam(1e-3), config)
  states, _ = jax.jit(jax.vmap(run.start))(jax.random.split(jax.random.key(0), size.seeds))
  if size.seeds == 1:
    states, advance = jax.tree.map(lambda x: x[0], states), run.advance
  else:
    advance = jax.vmap(run.advance)
  start = time.perf_counter()
  program = jax.jit(advance).lower(states).compile()
  took = time.perf_counter() - start
  weights = size.layers * (4 * shape.embed_dim**2 + 3 * shape.embed_dim * shape.mlp_dim)
  weights += shape.embed_dim * shape.vocab_size
  tokens = size.prompts * PROMPT_TOKENS + size.prompts * size.group_size * size.new_tokens
  # Two operations a weight and token to sample, two for the forward pass, four for the backward pass.
  flops = 8 * weights * tokens * size.seeds
  return lambda: program(states), took, resources.needed_gib(program), flops


def seconds(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def make_peak(side: int = 1024) -> Callable[[], float]:
  """Returns a measurement of the FLOPs a second of one square matrix product."""
  x = jnp.ones((side, side))
  product = jax.jit(lambda x: x @ x)
  jax.block_until_ready(product(x))
  return lambda: 2 * side**3 / min(seconds(lambda: product(x)) for _ in range(5))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=50, help="steps a run")
  parser.add_argument("--runs", type=int, default=9, help="timed runs, of which the median counts")
  arguments = parser.parse_args()
  titles = ("ms a step", "steps/s", "new tokens/s", "compile [s]", "memory [GiB]", "share of peak")
  peak = make_peak()
  table = Table("layers x width, prompts x completions x new tokens", *titles)
  for size in SIZES:
    call, took, needed, flops = build(size, arguments.steps)
    seconds(call)
    before = peak()
    step = statistics.median(seconds(call) / arguments.steps for _ in range(arguments.runs))
    tokens = size.seeds * size.prompts * size.group_size * size.new_tokens / step
    share = flops / step / ((before + peak()) / 2)
    table.add_row(
      size.name,
      f"{step * 1e3:.2f}",
      f"{size.seeds / step:.0f}",
      f"{tokens:.0f}",
      f"{took:.1f}",
      f"{needed:.3f}",
      f"{share:.0%}",
    )
  console = Console(width=150)
  console.print(f"GRPO steps, float32, jax {jax.__version__}, {jax.devices()[0].device_kind}", markup=False)
  console.print(table)


if __name__ == "__main__":
  main()
