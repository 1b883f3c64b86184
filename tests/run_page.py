"""Runs the Python blocks of a page in an empty folder: `python tests/run_page.py docs/library.md`."""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any


def blocks(path: Path) -> list[str]:
  """Returns the page's blocks of Python."""
  return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def run(*sources: str, path: Path) -> dict[str, Any]:
  """Returns what the blocks define."""
  scope: dict[str, Any] = {}
  for source in sources:
    exec(compile(source, str(path), "exec"), scope)
  return scope


if __name__ == "__main__":
  page = Path(sys.argv[1]).resolve()
  with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    run(*blocks(page), path=page)
  print(f"{page.name} runs")
