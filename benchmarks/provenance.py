"""Records what figures were measured on: for the results, and in a line below each table."""

import datetime
import pathlib
import platform
import subprocess
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

from lbsgd.system.machine import describe_machine

ROOT = pathlib.Path(__file__).parent.parent
# Named below a table where they were there.
NAMED = ("jax", "flax", "torch")


def measured_on() -> dict[str, Any]:
    """Records the machine as runs do, with processor, date, and the version of the peer PyTorch.

    A commit is that of the code: documents, and results that were measured before, may differ.
    """
    machine = describe_machine()
    if machine["git_commit"] and not code_changed():
        machine["git_commit"] = machine["git_commit"].removesuffix("-dirty")
    try:
        machine["packages"]["torch"] = metadata.version("torch")
    except metadata.PackageNotFoundError:
        machine["packages"]["torch"] = None
    return dated(machine)


def code_changed() -> bool:
    """Tells whether git knows of changes outside of docs/."""
    command = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!docs"]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode != 0


def dated(machine: dict[str, Any]) -> dict[str, Any]:
    """Adds processor and date to the record of a machine, as a run leaves it."""
    return {**machine, "processor": processor(), "date": datetime.date.today().isoformat()}


def processor() -> str:
    """Names the CPU."""
    described = pathlib.Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def records(results: Any) -> Iterator[dict[str, Any]]:
    """Finds the records of machines in results, however deep."""
    if isinstance(results, dict) and "git_commit" in results:
        yield results
    elif isinstance(results, dict | list):
        for value in results.values() if isinstance(results, dict) else results:
            yield from records(value)


def provenance(results: Any, *counts: int, packages: Iterable[str] = NAMED) -> str:
    """Names hardware, versions, commits and dates of the results of a table.

    Args:
      counts: n, how many rounds or runs a figure is of, where it is told here.
      packages: of which the versions count.
    """
    machines = list(records(results))
    devices = {m["device"] if m["backend"] != "cpu" else m.get("processor") for m in machines}
    cores = {f"{m['cpus']} CPU cores" for m in machines}
    versions = [
        f"{name} {', '.join(found)}"
        for name in packages
        if (found := sorted({m["packages"].get(name) for m in machines} - {None}))
    ]
    commits = sorted({commit(m["git_commit"]) for m in machines})
    parts = [
        ", ".join([*sorted(devices - {None}), *sorted(cores)]),
        ", ".join(versions),
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}",
        ", ".join(sorted({m["date"] for m in machines})),
    ]
    parts += [f"n={', '.join(map(str, sorted(set(counts))))}"] if counts else []
    return "; ".join(parts) + "."


def commit(name: str | None) -> str:
    """Gives a commit's first ten digits, and says so where its code was changed."""
    if name is None:
        return "unknown"
    return name[:10] + "-dirty" * name.endswith("-dirty")
