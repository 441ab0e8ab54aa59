"""The target that a run ends at: `stop_at`, a metric of its evaluations and a number."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lbsgd.schedule.timeline import exact
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

# What is at most so many percent.
WHOLE = 100


class Metric(NamedTuple):
    """Describes a metric of evaluations, which is to fall to a target, or to rise to it.

    Attributes:
      logged: the metric in metrics.jsonl that it follows from.
      rises: whether more is better: then it is 100 less what is logged.
    """

    logged: str
    rises: bool = False


METRICS = {
    "val_error": Metric("val_error"),
    "val_accuracy": Metric("val_error", rises=True),
    "val_error_top5": Metric("val_error_top5"),
    "val_accuracy_top5": Metric("val_error_top5", rises=True),
    "val_loss": Metric("val_loss"),
}


def check(stop_at: tuple[Any, ...]) -> None:
    """Checks that `stop_at` is () or a target.

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
    if metric not in METRICS:
        raise ConfigError(
            f"unknown metric {short_repr(metric)} in stop_at; known: {', '.join(METRICS)}"
        )
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 <= value < float("inf"):
        raise ConfigError(
            f"stop_at: the target of {metric} must be a number, finite and not negative, not "
            f"{short_repr(value)}"
        )
    if METRICS[metric].logged != "val_loss" and value > WHOLE:
        raise ConfigError(f"stop_at: {metric} is in percent, so it cannot be {short_repr(value)}")


class Target(NamedTuple):
    """Holds a metric and the number that it is to reach; equal to it is there.

    Attributes:
      metric: of `METRICS`.
    """

    metric: str
    value: float

    @classmethod
    def of(cls, stop_at: tuple[Any, ...]) -> "Target | None":
        """Takes the target from a checked `stop_at`; None for ()."""
        return cls(*stop_at) if stop_at else None

    @property
    def logged(self) -> str:
        """Names the metric in metrics.jsonl that it is read from."""
        return METRICS[self.metric].logged

    @property
    def most(self) -> float:
        """Returns what `logged` may be at most, in the float nearest to the number as written."""
        if METRICS[self.metric].rises:
            return float(WHOLE - exact(self.value))
        return float(self.value)

    def __str__(self) -> str:
        bound = "least" if METRICS[self.metric].rises else "most"
        return f"{self.metric} of at {bound} {self.value:g}"

    def reached(self, evaluation: Mapping[str, float | None]) -> bool:
        """Tells whether an evaluation is as good as the target; one that is not finite is not."""
        found = evaluation.get(self.logged)
        return found is not None and found <= self.most

    def first(self, lines: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Finds the first line of the metrics that reaches the target; None if none does."""
        return next((line for line in lines if self.reached(line)), None)

    def best(self, lines: Iterable[Mapping[str, Any]]) -> float | None:
        """Finds the metric where it came nearest to the target; None if there was no evaluation."""
        found = [line[self.logged] for line in lines if line.get(self.logged) is not None]
        return self._own(min(found)) if found else None

    def own_of(self, line: Mapping[str, Any]) -> float:
        """Computes the metric from a line that holds what it follows from."""
        return self._own(line[self.logged])

    def _own(self, logged: float) -> float:
        return WHOLE - logged if METRICS[self.metric].rises else logged
