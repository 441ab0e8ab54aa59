"""Checkpoints of a run: its state, labelled by its update index. Nothing else needs saving."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from lbsgd.errors import ConfigError


class Checkpoints:
    """The newest few states of a run, saved by Orbax while training goes on."""

    def __init__(self, folder: pathlib.Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def newest(self) -> int | None:
        """The update index of the newest state; None if there is none."""
        return self._manager.latest_step()

    def save(self, update: int, state: Any) -> None:
        """Starts to save `state`; returns when it may be changed."""
        if update == self.newest:
            return
        # The step donates its state. A copy keeps the buffers being written apart from those.
        copy = jax.tree.map(lambda x: x.copy(), state)
        self._manager.save(update, args=ocp.args.StandardSave(copy))

    def restore(self, like: Any) -> Any:
        """The newest state, with the shapes, types and shardings of `like`.

        Raises:
          ConfigError: the checkpoint is of something else.
        """
        step = self.newest
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(like))
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"checkpoint {self._manager.directory / str(step)} cannot be restored: {reason}"
            ) from error

    def close(self) -> None:
        """Waits until what was saved is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()
