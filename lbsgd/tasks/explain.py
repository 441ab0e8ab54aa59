"""Explains a run's task."""

import ml_collections

from lbsgd.tasks.task import Task


def explain_task(c: ml_collections.ConfigDict, task: Task) -> str:
    """Says what is learned, by which loss, and what a run is judged by.

    Args:
      c: the config of the run.
    """
    best = task.best
    judged = f"judged by validation {best.words or task.headline}, which is to "
    judged += "rise" if best.rises else "fall"
    if c.task.name != "classification":
        return f"task: {c.task.name}, {judged}"
    smoothing = f", label smoothing {c.label_smoothing:g}" if c.label_smoothing else ""
    return f"task: {c.task.name} by {c.task.loss.replace('_', ' ')}{smoothing}; {judged}"
