"""Tells from its workdir how a run of a sweep stands."""

import enum
import json
from typing import Any, NamedTuple

from lbsgd.run.workdir import Workdir
from lbsgd.system.files import AnyPath, replace_file


class Status(enum.StrEnum):
    """How a run stands: only a complete one has a result that counts; `DIVERGED` is one too."""

    MISSING = "missing"
    UNFINISHED = "unfinished"
    COMPLETE = "complete"
    DIVERGED = "diverged"
    FAILED = "failed"


# What is over and has its result; all else is to be run, from where it stands.
OVER = (Status.COMPLETE, Status.DIVERGED)
# What is left alone until the sweep is started again.
ENDED = (*OVER, Status.FAILED)


class Standing(NamedTuple):
    """Holds how a run stands.

    Attributes:
      reason: why it diverged or failed; "" otherwise.
      result: what result.json holds; {} where there is none.
    """

    status: Status
    reason: str
    result: dict[str, Any]


def failure_file(workdir: AnyPath) -> AnyPath:
    """Returns where it is written down why a run failed."""
    return workdir / "failed.json"


def note_failure(workdir: AnyPath, reason: str) -> None:
    """Writes down why a run failed.

    Raises:
      OSError: that cannot be written.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(failure_file(workdir), json.dumps({"reason": reason}, indent=1) + "\n")


def forget_failure(workdir: AnyPath) -> None:
    """Removes the note, for the run is tried again."""
    failure_file(workdir).unlink(missing_ok=True)


def standing(workdir: AnyPath) -> Standing:
    """Tells how the run of a workdir stands; files that cannot be read count as not there."""
    result = _read(Workdir(workdir).result)
    if result.get("complete"):
        return Standing(Status.COMPLETE, "", result)
    if result.get("diverged"):
        return Standing(Status.DIVERGED, str(result["diverged"]), result)
    failed = _read(failure_file(workdir))
    if failed:
        return Standing(Status.FAILED, str(failed.get("reason", "")), result)
    begun = Workdir(workdir).config.is_file()
    return Standing(Status.UNFINISHED if begun else Status.MISSING, "", result)


def _read(path: AnyPath) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
