"""Checkpoints of a run: its state, labelled by its update index. Nothing else needs saving."""

from lbsgd.checkpoint.saving import Checkpoints, Costs

__all__ = ["Checkpoints", "Costs"]
