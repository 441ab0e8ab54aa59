"""The metrics of a run: metrics.jsonl, and diagnostics.jsonl beside it."""

import bisect
import contextlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from lbsgd.system.appending import open_appended
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, replace_file

# Points of a metric of training where there are no evaluations between which to average it.
STRETCHES = 20


class MetricsFile:
    """Writes metrics.jsonl: one object a line with `step` (updates done), `epoch` and values.

    What a full disk refuses waits in memory, to be written with the next line. diagnostics.jsonl is
    a file of this kind too; its values may be lists, or numbers by name.
    """

    def __init__(self, path: AnyPath, *, keep_until: int = 0, lists: bool = False) -> None:
        """Opens the file for appending, dropping what a run that resumes will write again.

        Args:
          keep_until: lines of later steps are dropped, as is a last line cut short.
          lists: whether values may be more than numbers.

        Raises:
          ConfigError: the file cannot be written, or is damaged.
        """
        self.kept = [line for line in read_metrics(path, lists) if line["step"] <= keep_until]
        self._path, self._waiting = path, b""
        try:
            replace_file(path, "".join(json.dumps(line) + "\n" for line in self.kept))
            self._file = open_appended(path)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror or error}); make room there, or choose "
                "another --workdir"
            ) from error

    def write(self, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Appends a line; a number that is not finite becomes null, as JSON has no word for it."""
        line = json.dumps({"step": step, "epoch": round(epoch, 6), **_finite(values)}) + "\n"
        self._waiting += line.encode()
        with contextlib.suppress(OSError):  # `flush` tells
            self._write()

    def flush(self) -> str:
        """Brings all lines to the disk or into the bucket: "", or why that cannot be."""
        try:
            self._write()
            self._file.sync()
        except FileNotFoundError:
            return f"{self._path} was removed"
        except OSError as error:
            return f"{self._path} cannot be written ({error.strerror or error})"
        return ""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self) -> None:
        while self._waiting:
            # Of a line that is written in part only the rest waits.
            self._waiting = self._waiting[self._file.write(self._waiting) :]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_finite(inside) for inside in value]
    return value if math.isfinite(value) else None


def read_metrics(path: AnyPath, lists: bool = False) -> list[dict[str, Any]]:
    """Reads the lines of a metrics.jsonl, without a last line cut short; none if there is no file.

    Args:
      lists: whether values may be lists, or numbers by name, as in diagnostics.jsonl.

    Raises:
      ConfigError: a line that is not the last is damaged.
    """
    lines, damaged = _read(path, lists)
    if damaged:
        raise ConfigError(
            f"{path}, line {damaged[0]} is damaged; mend it or choose another --workdir"
        )
    return lines


def read_whole_lines(path: AnyPath) -> tuple[list[dict[str, Any]], str]:
    """Reads the lines of a metrics.jsonl that can be read; and "", or what is wrong with others."""
    try:
        lines, damaged = _read(path, lists=False)
    except ConfigError as error:
        return [], str(error)
    if not damaged:
        return lines, ""
    more = f" and {len(damaged) - 1} more are" if len(damaged) > 1 else " is"
    return lines, f"{path}, line {damaged[0]}{more} damaged, and left out here"


def _read(path: AnyPath, lists: bool) -> tuple[list[dict[str, Any]], list[int]]:
    """Reads the lines, and the numbers of those that are damaged."""
    try:
        if not path.is_file():
            return [], []
        *whole, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})") from error
    lines, damaged = [], []
    for number, text in enumerate(whole, 1):
        try:
            lines.append(_checked(json.loads(text), lists))
        except (ValueError, RecursionError):
            damaged.append(number)
    return lines, damaged


def _checked(line: Any, lists: bool) -> dict[str, Any]:
    """Checks a line to be as `MetricsFile` writes it; raises ValueError where it is not."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise ValueError("no step")
    for value in line.values():
        inside = [value]
        if lists and isinstance(value, (list, dict)):
            inside = list(value.values()) if isinstance(value, dict) else value
        if not all(x is None or isinstance(x, (int, float)) for x in inside):
            raise ValueError("not a number")
    return line


def evaluations(metrics: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Selects the lines that hold an evaluation."""
    return (line for line in metrics if any(name.startswith("val_") for name in line))


def best_first(metrics: list[dict[str, Any]], name: str, rises: bool) -> dict[int, float]:
    """Sorts the evaluations of a metric, the best first, of equals the later.

    Returns:
      values by update index, in that order; those that are not finite are left out.
    """
    found = {line["step"]: line[name] for line in metrics if line.get(name) is not None}
    order = sorted(found, key=lambda t: (found[t] if rises else -found[t], t), reverse=True)
    return {update: found[update] for update in order}


def training_means(metrics: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Averages a metric of training from each epoch to the next: pairs of an epoch and a mean.

    Epochs are those of the evaluations and of the end. Where there are fewer than two evaluations,
    the run is cut into `STRETCHES` of the same length.
    """
    lines = [line for line in metrics if line.get(name) is not None]
    ends = [line["epoch"] for line in evaluations(metrics)]
    end = lines[-1]["epoch"] if lines else 0.0
    if len(ends) < 2 and lines:
        ends = [end * i / STRETCHES for i in range(1, STRETCHES)] + [end]
    elif lines and end > ends[-1]:  # stopped between two evaluations
        ends.append(end)
    stretches: dict[float, list[float]] = {}
    for line in lines:
        at = bisect.bisect_left(ends, line["epoch"])
        if at < len(ends):
            stretches.setdefault(ends[at], []).append(line[name])
    return [(end, statistics.fmean(errors)) for end, errors in sorted(stretches.items())]
