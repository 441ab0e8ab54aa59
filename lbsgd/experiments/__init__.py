"""Sweeps: a table of runs from one config file, its results, reports and comparisons."""

<<<<<<< HEAD
from lbsgd.experiments.settings import Settings
from lbsgd.experiments.sweep import Row
=======
from lbsgd.experiments.loading import load
from lbsgd.experiments.sweep import Row, Settings
>>>>>>> report

__all__ = ["Row", "Settings", "load"]
