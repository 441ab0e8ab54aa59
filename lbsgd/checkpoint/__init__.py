"""Checkpoints: the state of a run and its update index, which is all that a resume needs."""
