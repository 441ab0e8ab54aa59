"""lbsgd: train networks with large minibatches, exactly and on any number of devices.

`lbsgd.load(run)` gives a trained network, to predict with.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports `load` when it is asked for: it needs JAX, which takes its time."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return importlib.import_module("lbsgd.use.loading").load


def __dir__() -> list[str]:
    """Lists `load` too, before it is imported."""
    return sorted({*globals(), "load"})
