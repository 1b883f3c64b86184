"""Plots and statistics of runs, from what they wrote to disk."""
