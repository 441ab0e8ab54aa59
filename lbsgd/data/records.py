"""ArrayRecord files: records with checksums, each of which can be read on its own."""

import pathlib
import threading
from collections.abc import Callable
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from lbsgd.data.images.decode import CorruptError
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath

# One record per group, so that reading one reads no other; images are already compressed.
WRITER_OPTIONS = "group_size:1,uncompressed"
# No read-ahead: records are read one by one, in random order.
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class RecordFile:
    """An ArrayRecord file, opened at the first read; several threads may read at the same time.

    Attributes:
      records: how many records it must have.
    """

    def __init__(
        self, path: AnyPath, records: int, local: Callable[[], pathlib.Path] | None = None
    ) -> None:
        """Takes the path of a file, to be opened later.

        Args:
          local: brings the file to the disk and says where, if it lies in a bucket.
        """
        self.path, self.records = path, records
        self._local = local or (lambda: pathlib.Path(str(path)))
        self._lock = threading.Lock()
        self._reader: Any = None

    def _open(self) -> Any:
        with self._lock:
            if self._reader is None:
                local = self._local()
                reader = ArrayRecordReader(str(local), READER_OPTIONS)
                if reader.num_records() != self.records:
                    local.open("rb").close()  # says why, where the file cannot be opened
                    raise CorruptError(
                        f"{self.path.name} has {reader.num_records()} records, not {self.records}"
                    )
                self._reader = reader
            return self._reader

    def read(self, start: int, stop: int) -> list[bytes]:
        """Reads the records start..stop-1.

        Even one record is read as a range: `read()` after `seek()` would need a lock, and the time
        of `read([i])` grows with the size of the file.

        Raises:
          ConfigError: the file cannot be opened.
          CorruptError: a record or the whole file is damaged.
        """
        try:
            return (self._reader or self._open()).read(start, stop)
        except OSError as error:
            raise ConfigError(f"cannot open {self.path} ({error.strerror})") from error
        except RuntimeError as error:
            raise CorruptError(str(error)) from error
