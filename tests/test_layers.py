"""The direction of imports: ops <- objectives <- train -> sampling -> models, tasks and analysis beside train."""

import ast
from pathlib import Path

import pytest

import rl_jax

ROOT = Path(rl_jax.__file__).parent
ALLOWED = {
  "ops": {"ops"},
  "objectives": {"objectives", "ops"},
  "models": {"models"},
  "sampling": {"sampling"},
  "tasks": {"tasks"},
  "train": {"train", "objectives", "ops", "sampling", "tasks", "analysis"},
  "analysis": {"analysis", "train"},
}
OPS_LIBRARIES = {"math", "jax", "chex", "jaxtyping", "numpy", "typing", "collections", "rl_jax"}
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imported(path: Path) -> set[str]:
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_layer_imports_only_what_is_below_it(module):
  names = imported(ROOT / module)
  layers = {name.split(".")[1] for name in names if name.startswith("rl_jax.")}
  assert layers <= ALLOWED[module.parts[0]] | {"errors"}
  if module.parts[0] == "ops":
    assert {name.split(".")[0] for name in names} <= OPS_LIBRARIES


def test_only_parallel_uses_collectives_and_meshes():
  words = ("psum", "pmean", "all_gather", "PartitionSpec", "NamedSharding", "shard_map(", "pmap(", "Mesh(")
  users = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if any(word in p.read_text() for word in words)}
  assert users == {"train/parallel.py"}
