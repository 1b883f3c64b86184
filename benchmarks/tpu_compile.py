"""Compiles a whole run of the biped in MJX for TPUs, ahead of time, on a machine without one.

    pip install 'rl-jax[mjx,tpu]'
    python -m benchmarks.tpu_compile --topology v5e:2x2 --num-starts 4096

One rollout and its updates are one program: MJX's step, the policy, advantages, and the same update step as everywhere.
Starts are split over all devices of the topology. Printed is what the program needs of each device.
"""

import argparse
import os
import time
from typing import Any

# Read by libtpu, before jax is imported: there is no TPU here to ask.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rl_jax import environments, objectives
from rl_jax.environments import agents
from rl_jax.train.compiled_episodes import Config, compiled_episodes


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topology", default="v5e:2x2", help="generation and shape, such as v5e:2x2 or v6e:4x4")
  parser.add_argument("--num-starts", type=int, default=4096, help="robots, over all devices")
  parser.add_argument("--seconds", type=float, default=10.0, help="longest episode")
  arguments = parser.parse_args()
  devices = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices
  mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
  whole, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
  environment = environments.load("biped", backend="mjx", seconds=arguments.seconds)
  reset = environment.reset
  environment = environment._replace(reset=lambda keys: reset(jax.lax.with_sharding_constraint(keys, by_row)))
  agent = agents.for_environment(environment)
  config = Config(steps=1, num_starts=arguments.num_starts, epochs=6, minibatches=8)
  optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(6e-4))
  run = compiled_episodes(environment, agent, objectives.load("ppo", gamma=0.99, value_clip=None), optimizer, config)

  state = jax.eval_shape(lambda key: run.start(key)[0], jax.random.key(0))
  state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), state)
  start = time.perf_counter()
  program = jax.jit(run.advance, out_shardings=whole).lower(state).compile()
  took = time.perf_counter() - start
  memory: Any = program.memory_analysis()
  gib = (memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes) / 2**30
  print(f"{arguments.topology}: {len(devices)} devices, {arguments.num_starts} robots of {environment.max_steps} steps")
  print(f"compiled in {took:.0f} s; needs {gib:.2f} GiB of each device")


if __name__ == "__main__":
  main()
