"""Scripts that read top to bottom: `python -m experiments.grpo --help`."""

import os

# transformers would otherwise announce at every start that there is no torch.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
