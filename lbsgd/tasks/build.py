"""Builds the task that a config names."""

import dataclasses

import ml_collections

from lbsgd.config.dotted import Named, is_dotted, load
from lbsgd.tasks.classification import classification
from lbsgd.tasks.losses import cross_entropy
from lbsgd.tasks.task import Task


def build_task(config: ml_collections.ConfigDict, classes: int) -> Task:
    """Builds the task of a resolved config, for data of so many classes.

    Raises:
      ConfigError: a task or a loss of one's own that cannot be had.
    """
    c = config.task
    if is_dotted(c.name):
        named = load("task.name", c.name)
        return _guarded(named, named.call(c.options.to_dict(), classes=classes))
    loss = cross_entropy
    if is_dotted(c.loss):
        loss = load("task.loss", c.loss).bind(c.loss_options.to_dict(), ("logits", "labels"))
    return classification(classes, loss=loss, label_smoothing=config.label_smoothing)


def _guarded(named: Named, task: object) -> Task:
    """Makes errors in its functions errors of their file, and line."""
    if not isinstance(task, Task):
        raise named.error(f"must give a lbsgd.tasks.Task, not {type(task).__name__}")
    return dataclasses.replace(
        task,
        loss=named.guarded(task.loss),
        evaluate=named.guarded(task.evaluate),
        summarize=named.guarded(task.summarize),
        targets=named.guarded(task.targets),
    )
