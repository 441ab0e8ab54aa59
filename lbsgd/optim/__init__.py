"""Optimizes: optax transformations, of a network in whose parameters roles are known."""
