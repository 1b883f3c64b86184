"""Speed and memory, one file a subject: `python -m benchmarks.grpo_step`. They report; they never fail on a time."""
