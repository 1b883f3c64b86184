"""Published objectives, one file each: `rl_jax.objectives.<name>.objective(...)` returns a `base.Objective`.

The module path is the registry: `names()` lists the files of this package.
"""

import pkgutil


def names() -> list[str]:
  """Returns the names of the objectives, which are the modules of this package other than `base`.

  >>> "grpo" in names()
  True
  """
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
