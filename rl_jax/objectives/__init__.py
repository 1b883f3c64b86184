"""Published objectives, one file each: `rl_jax.objectives.<name>.objective(...)` returns a `base.Objective`.

The module path is the registry: `names()` lists the files of this package, `python -m rl_jax.objectives` shows them,
and `load(name, **settings)` gives an objective with its advantage, ready for a loop. A module of yours is found by its
path, `load("my_module:objective")`, and nothing else has to be edited. What a module of an objective holds:

    objective(*, ...)             returns the `Objective`; its hyperparameters are keyword-only
    advantage(*, ...)             returns the `ops.estimates.Advantage` that belongs to it; without one the objective
                                  does not learn from rewards
    example = {"length": 512}     arguments for a factory that requires some, for tables and tests
    is_policy_gradient = False    if its on-policy gradient is not that of `-A log pi`
    several_updates = True        if it makes sense only where a rollout is used for more than one update

and a docstring with the formula of the loss, how defaults differ elsewhere, and the reference.
"""

from rl_jax import lazy
from rl_jax.objectives.loading import Algorithm, algorithm, find, load, names, settings_of

__all__ = ["Algorithm", "algorithm", "find", "load", "names", "settings_of"]


__getattr__ = lazy.submodules(__name__, __path__)
