"""Where prompts and rewards come from.

A `Task` is rows (a dict each, with a "prompt" and any other columns) and reward functions that get the columns back by
name. `load` finds one by name: "arithmetic", "reasoning_gym/<dataset>", or a path to a .jsonl or .parquet file.
"""

from rl_jax.tasks.base import Task
from rl_jax.tasks.load import load

__all__ = ["Task", "load"]
