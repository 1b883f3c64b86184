"""What a run takes of the machine, for logs and benchmarks."""

import resource
import sys
from typing import Any

import jax


def peak_gib() -> float:
  """Returns the peak memory so far in GiB: of the first device where it tells, else of this process.

  >>> peak_gib() > 0
  True
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"] / 2**30
  unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def needed_gib(compiled: Any) -> float:
  """Returns the memory in GiB that a compiled program needs while it runs, known before it does.

  Args:
    compiled: What `jax.jit(f).lower(*args).compile()` returns.

  >>> program = jax.jit(lambda x: x + 1).lower(jax.numpy.ones(2**18)).compile()
  >>> round(needed_gib(program) * 1024)  # a megabyte in, one out
  2
  """
  sizes = compiled.memory_analysis()
  used = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
  return (used - sizes.alias_size_in_bytes) / 2**30
