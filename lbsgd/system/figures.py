"""Figures of matplotlib that are drawn into files, whichever backend the user has set."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lbsgd.system.files import AnyPath

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Creates a figure that is drawn by the Agg backend.

    Args:
      width: in inches.
      height: in inches.
    """
    with quiet_matplotlib():
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: AnyPath) -> None:
    """Writes a figure as a PNG, on a disk or into a bucket.

    Raises:
      OSError: it cannot be written.
      Exception: of any kind, from matplotlib.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    path.write_bytes(drawn.getvalue())


@contextlib.contextmanager
def quiet_matplotlib() -> Iterator[None]:
    """Lets matplotlib be imported quietly, whatever the user's settings are.

    MPLBACKEND may name a backend that is not installed here, as a notebook's does, and matplotlib
    would warn of a home folder that cannot be written.
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
        _restore_backend(chosen)


def _restore_backend(backend: str) -> None:
    """Sets the user's backend for other code in this process, as importing matplotlib would."""
    import matplotlib

    with contextlib.suppress(ValueError):  # there is no such backend
        matplotlib.rcParams["backend"] = backend
