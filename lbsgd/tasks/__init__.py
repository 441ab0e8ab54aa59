"""Tasks: what a batch holds, its loss and its metrics, and what evaluation sums up.

`from lbsgd.tasks import Metric, Reduction, Task` is what a task of one's own is made of.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbsgd.tasks.task import Metric, Task
    from lbsgd.workers.reductions import Reduction

__all__ = ["Metric", "Reduction", "Task"]


def __getattr__(name: str) -> Any:
    """Imports them when they are asked for: who reads a config needs no JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lbsgd.tasks import task
    from lbsgd.workers import reductions

    return getattr(reductions if name == "Reduction" else task, name)


def __dir__() -> list[str]:
    """Lists them too, before they are imported."""
    return sorted({*globals(), *__all__})
