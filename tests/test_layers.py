"""The direction of imports: a room is built from the rooms before it alone, and files of a room form no circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rl_jax

ROOT = Path(rl_jax.__file__).parent
# From the ground up; a room is a package or a single file.
FLOORS = (
  "ops",
  "objectives",
  "models",
  "devices",
  "sampling",
  "state",
  "tasks",
  "environments",
  "runs",
  "rollouts",
  "train",
  "analysis",
)
GROUND = {"errors", "dotted", "hub", "lazy", "options"}  # under all of them
FURTHER = {"models": {"ops", "objectives"}}  # rooms that one before them is not built from
OPS_LIBRARIES = {
  "math",
  "jax",
  "chex",
  "jaxtyping",
  "numpy",
  "typing",
  "collections",
  "functools",
  "itertools",
  "rl_jax",
}
FILES = {path.relative_to(ROOT): path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}


def room(module: str) -> str:
  return module.split(".")[1]


def dotted_name(path: Path) -> str:
  parts = path.with_suffix("").parts
  return ".".join(["rl_jax", *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = {dotted_name(path): path for path in FILES}


def imported(source: str, package: str) -> Iterator[str]:
  """The dotted names that a file imports, those inside functions too, such as `rl_jax.ops.kl.k1`."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
      base = ".".join([*above, *filter(None, [node.module])])
      yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
  package = dotted_name(path) if path.name == "__init__.py" else dotted_name(path).rpartition(".")[0]
  return set(imported(FILES[path].read_text(), package))


def test_imports_are_found_wherever_they_are_written():
  source = '''
"""
>>> import rl_jax.train
"""
import jax
from rl_jax import ops
def f():
  from rl_jax.ops.kl import k1, k2
  from . import moments
  from ..models import rope as turned
'''
  found = sorted(imported(source, "rl_jax.ops"))
  assert found == [
    "jax",
    "rl_jax.models.rope",
    "rl_jax.ops",
    "rl_jax.ops.kl.k1",
    "rl_jax.ops.kl.k2",
    "rl_jax.ops.moments",
  ]


def test_every_file_stands_on_a_floor():
  assert {room(name) for name in MODULES} == set(FLOORS) | GROUND


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_room_imports_only_what_is_below_it(path):
  own, names = room(dotted_name(path)), imports_of(path)
  assert "rl_jax" not in names and not any(name.startswith("rl_jax.__") for name in names)
  rooms = {room(name) for name in names if name.startswith("rl_jax.")}
  if own in GROUND:
    assert rooms <= GROUND
    return
  below = set(FLOORS[: FLOORS.index(own)]) - FURTHER.get(own, set())
  assert rooms <= below | {own} | GROUND
  if own == "ops":
    assert {name.split(".")[0] for name in names} <= OPS_LIBRARIES


def file_of(name: str) -> str | None:
  """The module that a dotted name is, or is in."""
  while name and name not in MODULES:
    name = name.rpartition(".")[0]
  return name or None


def circle(graph: dict[str, set[str]]) -> list[str]:
  """Some modules that import each other in a circle, in order; none where there is no circle."""
  done: set[str] = set()

  def visit(name: str, path: list[str]) -> list[str]:
    if name in path:
      return [*path[path.index(name) :], name]
    if name in done:
      return []
    for other in sorted(graph[name]):
      if found := visit(other, [*path, name]):
        return found
    done.add(name)
    return []

  return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_circles_are_found():
  assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
  assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("own", FLOORS)
def test_files_of_a_room_form_no_circle(own):
  names = [name for name in MODULES if room(name) == own]
  found = {name: {file_of(imported) for imported in imports_of(MODULES[name])} for name in names}
  graph = {name: {other for other in found[name] if other in names and other != name} for name in names}
  assert circle(graph) == []


def test_only_devices_uses_collectives_and_meshes():
  words = ("psum", "pmean", "all_gather", "PartitionSpec", "NamedSharding", "shard_map(", "pmap(", "Mesh(")
  users = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if any(word in p.read_text() for word in words)}
  assert users == {"devices.py"}
