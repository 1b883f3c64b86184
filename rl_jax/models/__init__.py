"""Flax policies and their weights. Other layers use them through two Callables, `apply` and `unembed`."""

from rl_jax import lazy

__getattr__ = lazy.submodules(__name__, __path__)
