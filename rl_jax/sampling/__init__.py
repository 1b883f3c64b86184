"""Prefill, decode and token samplers. Models come in as Callables; nothing here imports one."""

from rl_jax import lazy

__getattr__ = lazy.submodules(__name__, __path__)
