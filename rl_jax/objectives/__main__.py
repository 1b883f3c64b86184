"""The table of objectives, built from their modules: `python -m rl_jax.objectives`."""

import inspect
import re

from rich.console import Console
from rich.table import Table

from rl_jax.objectives import find, names
from rl_jax.objectives.base import Objective

COLUMNS = ("ratio", "surrogate", "aggregation", "kl")


def build(name: str) -> Objective:
  """Returns an objective with its defaults; a module whose factory requires arguments gives an `example` of them.

  >>> sorted(build("dr_grpo").needs)
  ['advantages', 'logp', 'old_logp']
  """
  module, factory = find(name)
  return factory(**getattr(module, "example", {}))


def row(name: str) -> list[str]:
  """Returns the cells of one objective: name, paper, what it is made of, and what it needs.

  >>> row("grpo")
  ['grpo', '2402.03300', 'token', 'clip', 'sequence_mean', 'k3 to ref', 'advantages, old_logp, ref_logp']
  """
  module, _ = find(name)
  source = inspect.getdoc(module) or ""
  reference = source.partition("Reference:")[2]
  paper = re.search(r"arXiv:(\d+\.\d+)", reference) or re.search(r"\((\d{4})\)", reference)
  objective = build(name)
  cells = [", ".join(dict.fromkeys(value for key, value in objective.parts if key == column)) for column in COLUMNS]
  return [name, paper[1] if paper else "", *cells, ", ".join(sorted(objective.needs - {"logp"}))]


def main() -> None:
  table = Table("name", "paper", *COLUMNS, "needs besides logp")
  for name in names():
    table.add_row(*row(name))
  Console(width=150).print(table)


if __name__ == "__main__":
  main()
