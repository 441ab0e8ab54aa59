"""Corrupt examples: the run stops at them, or logs, counts and replaces them."""

import json
import threading

from lbsgd.data.images.decode import CorruptError
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, append_line


def corrupt_message(name: str, error: CorruptError) -> str:
    """Returns the line that says why an example cannot be used, and what to do."""
    if str(error).startswith("cannot be read"):  # an error of the file system
        return f"{name} {error}; bring it back, or set data.on_corrupt='skip'"
    return f"{name} is corrupt: {error}; mend it, or set data.on_corrupt='skip'"


class CorruptExamples:
    """The corrupt examples that this process has found.

    Attributes:
      policy: "error" stops the run at the first one, "skip" once there are more than `most`.
      most: how many different corrupt examples "skip" allows.
      names: the names of those found so far.
    """

    def __init__(self, policy: str = "error", most: int = 0) -> None:
        self.policy, self.most = policy, most
        self.names: set[str] = set()
        self._path: AnyPath | None = None
        self._lock = threading.Lock()

    def log_to(self, path: AnyPath) -> None:
        """Logs corrupt examples to a file, one JSON object per line; those already in it count.

        Raises:
          ConfigError: the file is damaged.
        """
        self._path = path
        try:
            # A last line without a newline was cut short when a run was killed.
            lines = path.read_text().split("\n")[:-1] if path.exists() else []
            self.names |= {json.loads(line)["name"] for line in lines}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path} is damaged; mend or remove it") from error

    def note(self, name: str, error: CorruptError) -> None:
        """Records a corrupt example.

        Raises:
          ConfigError: the policy does not allow it, or there are now more than `most`.
        """
        if self.policy == "error":
            raise ConfigError(corrupt_message(name, error)) from error
        with self._lock:
            if name not in self.names:
                self.names.add(name)
                self._write({"name": name, "reason": str(error)})
            if len(self.names) > self.most:
                raise ConfigError(
                    f"{name} is corrupt: {error}; it is number {len(self.names)}, more than "
                    f"data.max_corrupt={self.most}"
                ) from error

    def _write(self, line: dict[str, str]) -> None:
        if self._path:
            append_line(self._path, json.dumps(line))
