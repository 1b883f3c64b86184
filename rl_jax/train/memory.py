"""Peak memory, for logs and benchmarks."""

import resource
import sys

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
