"""A process that compares answers by math-verify: a line of JSON in, a line out. It is run as a file, by itself.

Parsing may hang, and then nothing but the end of the process ends it. It imports nothing of this library.
"""

import json
import signal
import sys


def verify(gold: str, text: str) -> float | None:
  """1 for equal, 0 for not, None where what is right is no mathematics."""
  from math_verify import parse
  from math_verify import verify as equal

  right = parse(gold if "$" in gold or "\\boxed" in gold else f"${gold}$") or parse(gold)
  return float(equal(right, parse(text))) if right else None


def main() -> None:
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)  # it ends with its input
  import math_verify as math_verify

  print(json.dumps("ready"), flush=True)
  for line in sys.stdin:
    try:
      reward = verify(*json.loads(line))
    except Exception:  # whatever a model wrote, it is not right
      reward = 0.0
    print(json.dumps(reward), flush=True)


if __name__ == "__main__":
  main()
