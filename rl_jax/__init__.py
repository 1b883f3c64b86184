"""Reinforcement learning on language models as a functional JAX library.

The layers, from the bottom: `ops` (pure array maths), `objectives` (compositions of ops), `models`, `sampling`,
`tasks`, and `train`, which joins them. Import the module you need: `from rl_jax.objectives import grpo`.
"""
