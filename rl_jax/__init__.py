"""Reinforcement learning on language models as a functional JAX library.

The rooms, from the ground up: `ops` (pure array maths), `objectives` (compositions of ops), `models`, `devices`,
`sampling`, `state` (the pytrees that everything passes on), `tasks`, `runs` (what keeps a run), `rollouts` (how
experience is made), `train` (how it is learned from), `analysis`. Each is imported when it is first asked for:

    import rl_jax as rl

    algorithm = rl.objectives.load("grpo", kl_coef=0.01)
"""

import importlib.metadata

from rl_jax import lazy

try:
  __version__ = importlib.metadata.version("rl-jax")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
  __version__ = "unknown"
__getattr__ = lazy.submodules(__name__, __path__)
