"""Flax policies and their weights. Other layers use them through Callables: `apply`, `unembed` and `empty_cache`."""

from rl_jax import lazy

__getattr__ = lazy.submodules(__name__, __path__)
