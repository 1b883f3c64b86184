"""How experience is made: sampled, judged and turned into a batch, once for tasks on the host and on the device."""

from rl_jax import lazy

__getattr__ = lazy.submodules(__name__, __path__)
