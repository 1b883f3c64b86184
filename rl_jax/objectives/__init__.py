"""Published objectives, one file each: `rl_jax.objectives.<name>.objective(...)` returns a `base.Objective`.

The module path is the registry: `names()` lists the files of this package, `python -m rl_jax.objectives` shows them.
"""

import pkgutil

_PARTS = ("base", "pairs", "__main__")  # what objectives are made of


def names() -> list[str]:
  """Returns the names of the objectives, which are the modules of this package other than those they are made of.

  >>> "grpo" in names()
  True
  """
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _PARTS)
