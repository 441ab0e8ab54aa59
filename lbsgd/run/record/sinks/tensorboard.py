"""TensorBoard's event files, written without tensorflow.

tensorboardX gives the messages and the checksums. Its writer is not used: that writes in a thread
which ends at the first error, on a full disk for example, and its full queue would block the run.
"""

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from lbsgd.system.appending import open_appended
from lbsgd.system.files import AnyPath


def open_sink(folder: AnyPath, start: int) -> "EventFile":
    """Opens an event file in the folder `tensorboard` of a workdir."""
    return EventFile(folder / "tensorboard", start)


class EventFile:
    """Writes scalars into an event file, each line at once."""

    def __init__(self, folder: AnyPath, start: int) -> None:
        """Begins the file of a run that resumes.

        Args:
          start: updates done before; what files of before have of later ones is not shown.
        """
        with _without_torch():
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import masked_crc32c
        self._event, self._summary, self._checksum = event_pb2.Event, summary_pb2, masked_crc32c
        folder.mkdir(exist_ok=True)
        now = time.time_ns()
        # Files are read in the order of their names; with nanoseconds no two are the same.
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
        self._file = open_appended(folder / name)
        self._write(file_version="brain.Event:2")
        log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=start + 1, session_log=log)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars after `step` updates, by name."""
        of_name = self._summary.Summary.Value
        scalars = [of_name(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary.Summary(value=scalars))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, **event: Any) -> None:
        """Writes an event as a record: length, its checksum, data, their checksum."""
        data = self._event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        record = length + self._sum(length) + data + self._sum(data)
        while record:
            record = record[self._file.write(record) :]

    def _sum(self, data: bytes) -> bytes:
        return struct.pack("<I", self._checksum(data))


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch, which tensorboardX would import: seconds, and GPU libraries of its own."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
