"""Sweeps: a table of runs from one config file, its results, reports and comparisons.

`from lbsgd.experiments import Settings` is what the config file of a sweep asks for; `load` reads
results.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbsgd.experiments.loading import load
    from lbsgd.experiments.settings import Settings
    from lbsgd.experiments.sweep import Row

__all__ = ["Row", "Settings", "load"]


def __getattr__(name: str) -> Any:
    """Imports them when they are asked for: the commands check their arguments before that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "load":  # which needs numpy
        from lbsgd.experiments.loading import load

        return load
    from lbsgd.experiments import settings, sweep

    return sweep.Row if name == "Row" else settings.Settings


def __dir__() -> list[str]:
    """Lists them too, before they are imported."""
    return sorted({*globals(), *__all__})
