"""matplotlib's figures, drawn into files: whatever backend and folders it is told of."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """A figure that draws with Agg.

    Args:
      width: in inches, as is the height.
    """
    with undisturbed():
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """In this context importing matplotlib neither fails nor talks for what the user has set.

    MPLBACKEND may name what is not installed here, as that of a notebook does; a home that cannot
    be written is no news.
    """
    if "matplotlib" in sys.modules:
        yield
        return
    chosen = os.environ.pop("MPLBACKEND", None)
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    if chosen:
        _choose(chosen)


def _choose(backend: str) -> None:
    """Leaves the user's backend to others in this process, as importing matplotlib would have."""
    import matplotlib

    with contextlib.suppress(ValueError):  # it is none
        matplotlib.rcParams["backend"] = backend
