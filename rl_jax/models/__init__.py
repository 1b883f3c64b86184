"""Flax policies and their weights. Other layers use them through two Callables, `apply` and `unembed`."""
