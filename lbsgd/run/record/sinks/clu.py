"""TensorBoard's event files as clu's metric writers write them, with tensorflow.

Where a run resumes they have some steps twice; TensorBoard shows the later ones.
"""

from collections.abc import Mapping
from typing import Any

from lbsgd.system.figures import quiet_matplotlib
from lbsgd.system.files import AnyPath


def open_sink(folder: AnyPath) -> "Writer":
    """Opens a writer in the folder `clu` of a workdir."""
    with quiet_matplotlib():  # for tensorflow imports matplotlib
        from clu import metric_writers
    return Writer(metric_writers.SummaryWriter(str(folder / "clu")))


class Writer:
    """Writes scalars by clu's `SummaryWriter`."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars after `step` updates, by name."""
        self._writer.write_scalars(step, values)

    def close(self) -> None:
        """Brings them to the disk."""
        self._writer.close()
