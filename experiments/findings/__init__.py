"""Published findings on losses, tried again on small tasks with many seeds: `python -m experiments.findings.NAME`.

Each script says what was claimed, trains its variants from the same warm starts, prints the measured numbers with
intervals, and says whether the claim was reproduced. The results stand in docs/findings.md.
"""
