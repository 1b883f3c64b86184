"""State, rollouts, update steps, loops: the only layer that sees both models and objectives."""
