"""Four virtual devices, no silent rank promotion, and enough threads for their collectives on a small machine."""

import os

# Read by the CPU client before jax is imported: with fewer threads than devices, collectives can wait for each other.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
  """Runs a test in float64."""
  with jax.enable_x64(True):
    yield
