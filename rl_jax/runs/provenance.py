"""What a run was started with besides its settings: the command, versions, the commit, the machine."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("rl-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def describe() -> dict[str, Any]:
  """Returns it as JSON values; what cannot be found out is None.

  >>> described = describe()
  >>> sorted(described)
  ['command', 'commit', 'devices', 'folder', 'packages', 'python', 'started', 'system']
  >>> described["packages"]["jax"] == jax.__version__
  True
  """
  devices = jax.devices()
  return {
    "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": shlex.join(sys.orig_argv),
    "folder": os.getcwd(),
    "commit": commit(Path(__file__).parent),
    "python": platform.python_version(),
    "packages": {name: _version(name) for name in PACKAGES},
    "system": platform.platform(),
    "devices": f"{len(devices)} x {devices[0].device_kind}",
  }


def commit(folder: Path) -> str | None:
  """Returns the commit that a folder's files are of, with "+" where tracked files differ; None outside of git.

  >>> commit(Path("/")) is None
  True
  """
  head = _git(folder, "rev-parse", "HEAD")
  if head is None:
    return None
  return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *words: str) -> str | None:
  try:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None
