"""Public functions of ops and objectives explain themselves: what they do, and an example that runs."""

import ast
from pathlib import Path

import pytest

import rl_jax

ROOT = Path(rl_jax.__file__).parent
FILES = sorted(path for layer in ("ops", "objectives", "sampling") for path in (ROOT / layer).glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_function_has_an_example(path):
  module = ast.parse(path.read_text())
  assert ast.get_docstring(module)
  public = [node for node in module.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
  without = [node.name for node in public if ">>>" not in (ast.get_docstring(node) or "") and node.name != "main"]
  assert not without
