"""Plots, tables and reports of runs, from what they wrote to disk; nothing else imports it."""

from rl_jax import lazy

__getattr__ = lazy.submodules(__name__, __path__)
