"""Weights & Biases: a run of its own there for each workdir."""

import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from lbsgd.run.record.sinks.run_id import keep_run_id, read_run_id
from lbsgd.system.files import AnyPath


def open_sink(
    folder: AnyPath,
    config: Mapping[str, Any],
    *,
    project: str = "lbsgd",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
    mode: str | None = None,
) -> "Run":
    """Opens the run of a workdir, the same one when it resumes.

    Args:
      name: of the run; by default that of its workdir.
      mode: "online", "offline" or "disabled"; by default as the variable WANDB_MODE has it.
    """
    run_id = read_run_id(folder, "wandb") or uuid.uuid4().hex[:12]
    keep_run_id(folder, "wandb", run_id)
    import wandb

    run = wandb.init(
        # None of a bucket: Weights & Biases then writes where it usually does.
        dir=str(folder) if isinstance(folder, pathlib.Path) else None,
        config=dict(config),
        id=run_id,
        resume="allow",
        project=project,
        entity=entity,
        name=name or folder.absolute().name,
        group=group,
        tags=list(tags),
        notes=notes,
        mode=mode,
        # What a run prints is in its log, and stays as it is.
        settings=wandb.Settings(console="off"),
    )
    return Run(run)


class Run:
    """Writes metrics into a run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Writes metrics after `step` updates, but for steps that the service has already."""
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()
