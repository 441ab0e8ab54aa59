"""Where the time of an update goes on the GPU: a piece of benchmarks/gpu.py.

python gpu_profile.py JOB NETWORK PIXELS KN N DTYPE

Times are those of the profiler, of everything on the streams of the device; gpu.py has XLA launch
its kernels one by one, for those of a CUDA graph do not say of which operation they are. The bytes
of an operation are those of its operands and results, each once, by the compiled program: what it
has to move at least if nothing of it is in a cache.
"""

import math
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import step
from gpu_job import check_backend, given
from gpu_step import case_of, compile_in_turn

UPDATES, UPDATES_IN_TRIAL = 10, 2
MOST_OPERATIONS, MOST_KINDS = 60, 25


class Event(NamedTuple):
    """A stretch of work on the device.

    Attributes:
      operation: of the compiled program, or the kernel where that is not known.
      kernel: that ran.
    """

    operation: str
    kernel: str
    nanoseconds: float


def lines_of_device(names: Sequence[tuple[str, str]], trial: bool) -> set[tuple[str, str]]:
    """Those lines of a profile that have what the device did; in a trial, XLA's threads.

    Args:
      names: of the plane and of the line, of each.
    """
    if trial:
        return {(plane, line) for plane, line in names if "XLA" in line}
    device = [(plane, line) for plane, line in names if plane.startswith("/device:GPU")]
    streams = {(plane, line) for plane, line in device if line.startswith("Stream")}
    return streams or {(plane, line) for plane, line in device if line.startswith("XLA Ops")}


def read_events(trace: pathlib.Path, trial: bool) -> Iterator[Event]:
    """What the device did in a profile.

    Raises:
      RuntimeError: nothing.
    """
    (path,) = trace.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    seen = [(plane.name, line.name) for plane in planes for line in plane.lines]
    wanted, count = lines_of_device(seen, trial), 0
    for plane in planes:
        for line in plane.lines:
            if (plane.name, line.name) not in wanted:
                continue
            for event in line.events:
                stats = {str(key): value for key, value in event.stats}
                operation = str(stats.get("hlo_op") or event.name)
                count += 1
                yield Event(operation, event.name, event.duration_ns)
    if not count:
        raise RuntimeError(f"the profile has no events of the device; it has {sorted(set(seen))}")


def bytes_of(shape: str) -> int:
    """Counts the bytes of a shape as XLA writes it, or of a tuple: "(bf16[64]{0}, f32[])"."""
    total = 0
    for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        bits = 8 if kind == "pred" else int((re.search(r"\d+", kind) or "0")[0])
        total += math.prod(int(side) for side in sides.split(",") if side) * bits // 8
    return total


def traffic(program: str) -> dict[str, int]:
    """Bytes of operands and results by operation.

    Args:
      program: the text of a compiled one.
    """
    pattern = r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) [\w-]+\((.*)$"
    results, operands = {}, {}
    for name, shape, rest in re.findall(pattern, program, re.MULTILINE):
        results[name] = bytes_of(shape)
        operands[name] = set(re.findall(r"%([\w.-]+)", rest.split(")")[0]))
    return {
        name: size + sum(results.get(operand, 0) for operand in operands[name])
        for name, size in results.items()
    }


def origins(program: str) -> dict[str, str]:
    """Finds where the operations come from in the code, as JAX names it, by operation.

    Args:
      program: the text of a compiled one.
    """
    pattern = r'^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{[^}]*op_name="([^"]*)"'
    return dict(re.findall(pattern, program, re.MULTILINE))


def kind_of(operation: str) -> str:
    """An operation's name without its number."""
    return re.sub(r"[.\d]+$", "", operation) or operation


def table(events: Iterable[Event], program: str, updates: int) -> dict[str, object]:
    """Milliseconds, calls and bytes of an update by operation, and by kind of operation.

    Args:
      program: the text of the compiled one. "known" is the fraction of the time that is spent in
        operations that it names.
    """
    kernels: dict[str, dict[str, list[float]]] = {}
    moved, sources = traffic(program), origins(program)
    for event in events:
        times = kernels.setdefault(event.operation, {}).setdefault(event.kernel, [])
        times.append(event.nanoseconds / 1e6 / updates)
    rows = [
        {"operation": operation, "source": sources.get(operation, "")}
        | summed(times, moved.get(operation, 0), updates)
        for operation, times in kernels.items()
    ]
    kinds: dict[str, dict[str, object]] = {}
    for row in rows:
        kind = kind_of(row["operation"])
        into = kinds.setdefault(kind, {"kind": kind, "ms": 0.0, "calls": 0.0, "bytes": 0.0})
        for key in ("ms", "calls", "bytes"):
            into[key] += row[key]
    busy = sum(row["ms"] for row in rows)
    return {
        "busy_ms": busy,
        "known": sum(row["ms"] for row in rows if row["operation"] in moved) / (busy or 1.0),
        "kinds": longest(list(kinds.values()), MOST_KINDS),
        "operations": longest(rows, MOST_OPERATIONS),
    }


def summed(times: Mapping[str, list[float]], size: int, updates: int) -> dict[str, object]:
    """Sums up an operation: its longest kernel, time, executions and bytes in an update.

    Args:
      times: milliseconds of every run of each of its kernels.
      size: bytes that an execution moves. One may be of several kernels.
    """
    calls = min(map(len, times.values())) / updates
    return {
        "kernel": max(times, key=lambda kernel: sum(times[kernel])),
        "ms": sum(map(sum, times.values())),
        "calls": calls,
        "bytes": calls * size,
    }


def longest(rows: list[dict[str, object]], most: int) -> list[dict[str, object]]:
    """The rows that take the most time, in order."""
    return sorted(rows, key=lambda row: -row["ms"])[:most]


def profiled(run: step.Running, updates: int, folder: pathlib.Path) -> float:
    """Seconds of some updates, whose profile is written."""
    shutil.rmtree(folder, ignore_errors=True)
    with jax.profiler.trace(str(folder)):
        return run.seconds(updates)


def main() -> None:
    """Profiles lbsgd's step, and only then compiles the plain one."""
    job, arguments = given()
    check_backend(job, jax.default_backend())
    case = case_of(arguments, job.trial)
    updates = UPDATES_IN_TRIAL if job.trial else UPDATES
    for key, run in compile_in_turn(*case):
        run.seconds(3)
        trace = pathlib.Path(job.scratch, "trace")
        seconds = profiled(run, updates, trace)
        rows = table(read_events(trace, job.trial), run.compiled.as_text(), updates)
        wall = 1e3 * seconds / updates
        job.put(f"profile of {key}", updates, case=case, wall_ms=wall, **rows)


if __name__ == "__main__":
    main()
