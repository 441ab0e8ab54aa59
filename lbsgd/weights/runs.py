"""Reads the weights of another run from one of its checkpoints, which are verified."""

import functools

import numpy as np

from lbsgd.checkpoint import store
from lbsgd.checkpoint.locating import locate
from lbsgd.checkpoint.manifest import DamagedError
from lbsgd.system.files import AnyPath
from lbsgd.weights.stored import Entry, Stored, UnreadableError, about_network

AVERAGED = "ema/"
_WEIGHTS = ("params/", "batch_stats/")


def open_run(path: AnyPath, averaged: bool) -> Stored:
    """Opens a run: its newest checkpoint, or the one that the path is.

    The arrays are read, and compared with their checksums, when the first is asked for.

    Args:
      path: a workdir, its folder of checkpoints, or one of them.
      averaged: whether to take the averaged weights. The optimizer's state never is.

    Raises:
      ConfigError: there is no checkpoint.
      UnreadableError: it is damaged, or has no averaged weights.
    """
    store.quiet_orbax()
    folder, updates = locate(path)
    checkpoint, prefix = folder / str(max(updates)), AVERAGED if averaged else ""
    try:
        manifest = store.read_manifest(checkpoint)
    except DamagedError as error:
        raise _damaged(checkpoint, error) from error
    wanted = tuple(prefix + kind for kind in _WEIGHTS)
    entries = {
        name.removeprefix(prefix): Entry(entry.shape, entry.dtype)
        for name, entry in manifest.arrays.items()
        if name.startswith(wanted)
    }
    if averaged and not entries:
        raise UnreadableError("has no averaged weights, for it trained without ema.decay")

    @functools.cache
    def arrays() -> dict[str, np.ndarray]:
        try:
            return store.read_arrays(checkpoint, manifest)
        except DamagedError as error:
            raise _damaged(checkpoint, error) from error

    what = f"{'averaged ' * averaged}weights after update {manifest.update}"
    about = about_network(manifest.interface, manifest.identity)
    return Stored(what, entries, lambda name: arrays()[prefix + name], about)


def _damaged(checkpoint: AnyPath, error: DamagedError) -> UnreadableError:
    return UnreadableError(
        f"has the damaged checkpoint {checkpoint.name} ({store.reason(error)}); name another one, "
        f"as {checkpoint.parent / 'UPDATE'}"
    )
