"""TensorBoard summaries of a run, where tensorflow is installed."""

import importlib.util
from collections.abc import Callable
from typing import Protocol

from lbsgd.run.record.progress import Values
from lbsgd.system.errors import first_line
from lbsgd.system.figures import quiet_matplotlib
from lbsgd.system.files import AnyPath


class Summaries(Protocol):
    """Takes scalars that people look at."""

    def write_scalars(self, step: int, scalars: Values) -> None:
        """Writes scalars after `step` updates, by name."""

    def close(self) -> None:
        """Brings them to the disk."""


class NoSummaries:
    """Takes scalars nowhere, where tensorflow is missing."""

    def write_scalars(self, step: int, scalars: Values) -> None:
        pass

    def close(self) -> None:
        pass


class DispensableSummaries:
    """Summaries that end where they cannot be written, as on a full disk; training goes on."""

    def __init__(self, summaries: Summaries, say: Callable[[str], None]) -> None:
        self._summaries, self._say = summaries, say

    def write_scalars(self, step: int, scalars: Values) -> None:
        self._try(lambda: self._summaries.write_scalars(step, scalars))

    def close(self) -> None:
        self._try(self._summaries.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # tensorflow's own, which cannot be named without it
            self._summaries = NoSummaries()
            reason = first_line(error).rpartition("; ")[2]  # after names of its kernels
            self._say(f"TensorBoard summaries end here, they cannot be written ({reason})")


def open_summaries(folder: AnyPath, say: Callable[[str], None]) -> Summaries:
    """Opens clu's TensorBoard writer, or a writer of nothing and a line that says why."""
    missing = [m for m in ("tensorflow", "tensorboard") if importlib.util.find_spec(m) is None]
    if missing:
        say(
            f"TensorBoard summaries are off ({missing[0]} is not installed); "
            "pip install 'lbsgd[tensorboard]' turns them on"
        )
        return NoSummaries()
    try:
        with quiet_matplotlib():  # for tensorflow imports matplotlib
            from clu import metric_writers
        return DispensableSummaries(metric_writers.SummaryWriter(str(folder)), say)
    except Exception as error:
        say(f"TensorBoard summaries are off ({first_line(error)})")
        return NoSummaries()
