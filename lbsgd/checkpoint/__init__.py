"""Checkpoints of a run: its state, labelled by its update index. Nothing else needs saving."""
