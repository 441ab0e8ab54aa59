"""Sweeps: a table of runs from one config file, its results, reports and comparisons."""

from lbsgd.experiments.loading import load
from lbsgd.experiments.settings import Settings
from lbsgd.experiments.sweep import Row

__all__ = ["Row", "Settings", "load"]
