"""Pure array functions on `[..., T]`, time last. They import jax, chex and jaxtyping, and never touch a model."""

from rl_jax import lazy

__getattr__ = lazy.submodules(__name__, __path__)
