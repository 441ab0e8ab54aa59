"""Examples that cannot be read: the run stops, or they are named, counted and replaced."""

import json
import pathlib
import threading

from lbsgd.data.images.decode import CorruptError
from lbsgd.system.errors import ConfigError


def refusal(name: str, error: CorruptError) -> str:
    """The line that says that an example must not be as it is, and what to do."""
    if str(error).startswith("cannot be read"):  # the file system says so, and knows why
        return f"{name} {error}; bring it back, or set data.on_corrupt='skip'"
    return f"{name} is corrupt: {error}; mend it, or set data.on_corrupt='skip'"


class Corrupt:
    """The corrupt examples that this process has met.

    Attributes:
      policy: "error" stops at the first, "skip" at the first past `most`.
      most: different examples.
      names: of those met so far.
    """

    def __init__(self, policy: str = "error", most: int = 0) -> None:
        self.policy, self.most = policy, most
        self.names: set[str] = set()
        self._path: pathlib.Path | None = None
        self._lock = threading.Lock()

    def record(self, path: pathlib.Path) -> None:
        """Lists them in this file from now on, a JSON object a line; those in it count.

        Raises:
          ConfigError: it is damaged.
        """
        self._path = path
        try:
            # A last line without an end was cut short by whatever ended the run.
            lines = path.read_text().split("\n")[:-1] if path.exists() else []
            self.names |= {json.loads(line)["name"] for line in lines}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path} is damaged; mend or remove it") from error

    def note(self, name: str, error: CorruptError) -> None:
        """Takes note of an example that cannot be read.

        Raises:
          ConfigError: that is one too many.
        """
        if self.policy == "error":
            raise ConfigError(refusal(name, error)) from error
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
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
