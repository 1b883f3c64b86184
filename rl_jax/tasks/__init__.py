"""Where prompts and rewards come from, and what text is as tokens.

A `Task` is rows (a dict each, with a "prompt" and any other columns) and reward functions that get the columns back by
name. `load` finds one by name: "arithmetic", "reasoning_gym/<dataset>", a file of rows, or a data set on the hub;
`from_rows` makes one of your own rows.
"""

from rl_jax import lazy
from rl_jax.tasks.base import Task
from rl_jax.tasks.load import load, longest_answer
from rl_jax.tasks.rows import from_rows

__all__ = ["Task", "from_rows", "load", "longest_answer"]
__getattr__ = lazy.submodules(__name__, __path__)
