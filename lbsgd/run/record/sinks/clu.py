"""TensorBoard's event files as clu's metric writers write them, with tensorflow."""

import pathlib
from collections.abc import Mapping

from lbsgd.run.record.sinks.tensorboard import EventFile
from lbsgd.system.figures import quiet_matplotlib


def open_sink(folder: pathlib.Path, start: int) -> "Writer":
    """Opens a writer in the folder `clu` of a workdir."""
    return Writer(folder / "clu", start)


class Writer:
    """Writes scalars by clu's `SummaryWriter`."""

    def __init__(self, folder: pathlib.Path, start: int) -> None:
        """Opens the writer of a run that resumes after `start` updates."""
        with quiet_matplotlib():  # for tensorflow imports matplotlib
            from clu import metric_writers
        # tensorflow's has no way to say that what files of before have of later updates is void.
        EventFile(folder, start).close()
        self._writer = metric_writers.SummaryWriter(str(folder))

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars after `step` updates, by name."""
        self._writer.write_scalars(step, values)

    def close(self) -> None:
        """Brings them to the disk."""
        self._writer.close()
