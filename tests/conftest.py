"""Four virtual devices, no silent rank promotion, threads for collectives, a cache of programs, checked annotations."""

import atexit
import os
import shutil
import tempfile

# Read by the CPU client before jax is imported: with fewer threads than devices, collectives can wait for each other.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Most of the time goes to compiling programs that run once: LLVM's optimizer is left out, unless a level is given.
if "--xla_backend_optimization_level" not in (flags := os.environ.get("XLA_FLAGS", "")):
  os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()

# A program that several tests need is compiled once; processes that tests start inherit this.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  cache = tempfile.mkdtemp(prefix="rl_jax-tests-")
  atexit.register(shutil.rmtree, cache, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import jaxtyping
import pytest

from tests import typechecker

# Before any of these is imported.
jaxtyping.install_import_hook(["rl_jax.ops", "rl_jax.objectives", "rl_jax.sampling"], f"{typechecker.__name__}.check")

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
  parser.addoption(
    "--objective",
    action="append",
    metavar="MODULE:OBJECTIVE",
    help="test this objective in tests/conformance, not those of rl_jax; repeatable, found in the working directory",
  )


@pytest.fixture(autouse=True, scope="module")
def _programs_of_a_module_alone():
  """Lets go of compiled programs: each holds hundreds of memory maps, of which a process may have 65,530."""
  yield
  jax.clear_caches()


@pytest.fixture
def x64():
  """Runs a test in float64."""
  with jax.enable_x64(True):
    yield
