"""Scripts that read top to bottom: `python -m experiments.grpo --help`."""
