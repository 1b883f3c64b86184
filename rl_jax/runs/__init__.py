"""What keeps a run: its directory, checkpoints, settings and live view. Nothing here knows a model or an objective."""

from rl_jax import lazy

__getattr__ = lazy.submodules(__name__, __path__)
