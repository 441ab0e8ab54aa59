"""The target that a run ends at: `stop_at`, a metric of its evaluations and a number."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lbsgd.schedule.timeline import exact
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import is_number, short_repr

if TYPE_CHECKING:  # the keys of a run are there before any library is
    from lbsgd.tasks.task import Metric, Task

# What is at most so many percent.
WHOLE = 100
# After the name of a metric: of the averaged weights.
OF_AVERAGE = "_ema"


def check(stop_at: tuple[Any, ...]) -> None:
    """Checks that `stop_at` is () or a name and a number.

    Raises:
      ConfigError: it is neither.
    """
    if not stop_at:
        return
    if len(stop_at) != 2 or not isinstance(stop_at[0], str):
        raise ConfigError(
            "stop_at must be a metric and a number, like ('val_error', 24.1), not "
            f"{short_repr(stop_at)}"
        )
    metric, value = stop_at
    if not is_number(value) or not math.isfinite(value):
        raise ConfigError(
            f"stop_at: the target of {short_repr(metric)} must be a number, and finite, not "
            f"{short_repr(value)}"
        )


class Target(NamedTuple):
    """Holds a metric and the number that it is to reach; equal to it is there.

    Attributes:
      metric: as `stop_at` names it.
      value: in its unit.
      logged: the metric in metrics.jsonl that it follows from.
      rises: whether what is logged is to rise.
      complement: whether the metric is 100 less what is logged.
    """

    metric: str
    value: float
    logged: str
    rises: bool = False
    complement: bool = False

    @property
    def bound(self) -> float:
        """Returns what is to be logged, in the float nearest to the number as written."""
        return float(WHOLE - exact(self.value)) if self.complement else float(self.value)

    def __str__(self) -> str:
        bound = "least" if self.rises != self.complement else "most"
        return f"{self.metric} of at {bound} {self.value:g}"

    def reached(self, evaluation: Mapping[str, float | None]) -> bool:
        """Tells whether an evaluation is as good as the target; one that is not finite is not."""
        found = evaluation.get(self.logged)
        if found is None:
            return False
        return found >= self.bound if self.rises else found <= self.bound

    def first(self, lines: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Finds the first line of the metrics that reaches the target; None if none does."""
        return next((line for line in lines if self.reached(line)), None)

    def best(self, lines: Iterable[Mapping[str, Any]]) -> float | None:
        """Finds the metric where it came nearest to the target; None if there was no evaluation."""
        found = [line[self.logged] for line in lines if line.get(self.logged) is not None]
        return self._own((max if self.rises else min)(found)) if found else None

    def own_of(self, line: Mapping[str, Any]) -> float:
        """Computes the metric from a line that holds what it follows from."""
        return self._own(line[self.logged])

    def _own(self, logged: float) -> float:
        return WHOLE - logged if self.complement else logged


def find_target(stop_at: tuple[Any, ...], task: "Task", *, averaged: bool = False) -> Target | None:
    """Finds the target that a checked `stop_at` names; None for ().

    Args:
      averaged: whether the averaged weights are evaluated too.

    Raises:
      ConfigError: the task has no such metric, or it cannot have that value.
    """
    if not stop_at:
        return None
    (name, value), known = stop_at, _metrics(task, averaged)
    if name not in known:
        raise ConfigError(
            f"unknown metric {short_repr(name)} in stop_at; known: {', '.join(known)}"
        )
    metric, target = known[name]
    if metric.unit == "%" and not 0 <= value <= WHOLE:
        raise ConfigError(f"stop_at: {name} is in percent, so it cannot be {short_repr(value)}")
    return target._replace(value=value)


def _metrics(task: "Task", averaged: bool) -> dict[str, tuple["Metric", Target]]:
    """Lists what evaluations give, by the name that a target may have."""
    known = {}
    for name, metric in task.validation.items():
        for end in ("", OF_AVERAGE)[: 1 + averaged]:
            logged = f"val_{name}{end}"
            known[logged] = metric, Target(logged, 0.0, logged, metric.rises)
            if metric.complement:
                other = f"val_{metric.complement}{end}"
                known[other] = metric, Target(other, 0.0, logged, metric.rises, True)
    return known
