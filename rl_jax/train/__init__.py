"""How experience is learned from, the only room that sees both models and objectives: passes, updates, loops."""

from rl_jax import lazy

__getattr__ = lazy.submodules(__name__, __path__)
