"""`python -m rl_jax.objectives` lists every objective with its paper and parts."""

import re

from rl_jax import objectives
from rl_jax.objectives.__main__ import main, row


def test_every_objective_is_in_the_table_with_a_paper(capsys):
  main()
  printed = capsys.readouterr().out
  for name in objectives.names():
    cells = row(name)
    assert name in printed and re.fullmatch(r"\d{4}(\.\d{5})?", cells[1]), name
    assert cells[3], name  # a surrogate
