"""Scripts that read top to bottom: `python -m experiments.grpo --help`."""

import os
import signal
import sys

# transformers would otherwise announce at every start that there is no torch.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if sys.argv[0] == "-m":  # a script begins to import: Ctrl-C ends it, and shows no traceback of an import
  signal.signal(signal.SIGINT, signal.SIG_DFL)
