"""Checkpoints: the state of a run and its update index, which is all that a resume needs."""

from lbsgd.checkpoint.saving import Checkpoints, Costs

__all__ = ["Checkpoints", "Costs"]
