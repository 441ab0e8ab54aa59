"""Reads what a run has left of its network: a checkpoint, and what that says of itself.

A checkpoint alone is enough. Its manifest holds all keys that decide a run, and what its network
takes and gives; the workdir around it adds where the data lie, and how the run was evaluated.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from lbsgd.checkpoint import store
from lbsgd.checkpoint.locating import locate
from lbsgd.checkpoint.manifest import DamagedError, Manifest
from lbsgd.config.dotted import is_dotted
from lbsgd.config.keys import flatten
from lbsgd.data.interface import Interface, read_interface
from lbsgd.run.config import KEYS, check_is_key, resolve
from lbsgd.run.flags import config_of, set_key
from lbsgd.run.record.metrics import best_first, read_metrics
from lbsgd.run.target import OF_AVERAGE
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, any_path, user_path
from lbsgd.system.text import short_repr
from lbsgd.tasks.classification import classification
from lbsgd.use.places import check_place
from lbsgd.weights.keys import IDENTITY

# What is beside the keys in the identity of a run.
TRAINING_SET = "the training set"
CODE = "code"
# Of the config, what may be set for using a network; what it takes is said by its interface.
_PRECISE = "batch_norm.precise_examples"
_OF_INTERFACE = ("crop", "image_size", "evaluation_short_side", "mean", "std")

Say = Callable[[str], None]


class Best(NamedTuple):
    """Says how a checkpoint came to be the best.

    Attributes:
      metric: that it was chosen by, as metrics.jsonl names it.
      value: what the evaluation of this checkpoint found.
      best_update: after which the best evaluation of the run was.
      best_value: what that found.
    """

    metric: str
    value: float
    best_update: int
    best_value: float


class Stored(NamedTuple):
    """Holds a checkpoint that was read and verified.

    Attributes:
      path: of the checkpoint.
      workdir: that it lies in; None where it lies alone.
      manifest: what it says of itself.
      arrays: of its state, by name.
      interface: what the network takes and gives.
      best: how it was chosen, where the best was asked for; None otherwise.
    """

    path: AnyPath
    workdir: Workdir | None
    manifest: Manifest
    arrays: Mapping[str, np.ndarray]
    interface: Interface
    best: Best | None = None

    def config(self, keys: Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
        """Resolves the config of the run.

        Args:
          keys: values to set on it, by dotted key.

        Raises:
          ConfigError: it is not one of this version, or a key cannot be set here.
        """
        identity = self.manifest.identity
        values = {k: v for k, v in identity.items() if k not in (CODE, TRAINING_SET, IDENTITY)}
        try:
            config = config_of({**values, **self._machine_keys()})
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error
        for key, value in keys.items():
            check_is_key(key)
            _check_may_be_set(key)
            set_key(config, key, value)
        return resolve(config)

    @property
    def described(self) -> dict[str, Any]:
        """Reads config.json; {} where there is none that can be read."""
        try:
            found = json.loads(self.workdir.config.read_text()) if self.workdir else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def evaluated_on(self) -> dict[str, int]:
        """Says in what batches on which devices the run was evaluated; {} where nobody knows."""
        found = self.described.get("evaluation")
        names = ("devices", "lanes", "batch_size")
        if not isinstance(found, dict) or any(type(found.get(name)) is not int for name in names):
            return {}
        return found if min(found[name] for name in names) > 0 else {}

    def _machine_keys(self) -> dict[str, Any]:
        """Takes from config.json where and how the run was computed."""
        found = self.described.get("config")
        flat = flatten(ml_collections.ConfigDict(found)) if isinstance(found, dict) else ()
        # Where metrics went is of no use here, and may name code.
        return {k: v for k, v in flat if k in KEYS and KEYS[k].machine and k[:4] != "log."}


def _check_may_be_set(key: str) -> None:
    group, _, leaf = key.partition(".")
    if group == "data" and leaf in _OF_INTERFACE:
        raise ConfigError(f"{key} is what the network was trained for, and cannot be set here")
    if not (KEYS[key].machine or group == "data" or key == _PRECISE):
        raise ConfigError(f"{key} belongs to the training, which is over; it cannot be set here")


def read_stored(run: str | AnyPath, checkpoint: str | int, average: bool, say: Say) -> Stored:
    """Reads a checkpoint of a run.

    Args:
      run: a workdir, its folder of checkpoints, or a checkpoint; on a disk or in a bucket.
      checkpoint: "newest", "best", or an update index.
      average: whether "best" asks for the evaluations of the averaged weights.
      say: takes a line, for each that is damaged and passed over.

    Raises:
      ConfigError: there is none, none is good, or that which was asked for by its number is not.
    """
    check_place(run)
    path = user_path(run) if isinstance(run, str) else any_path(run)
    number = _number(checkpoint)
    folder, updates = locate(path, number)
    workdir = Workdir(folder.parent) if folder.name == "checkpoints" else None
    store.quiet_orbax()
    metric, values = "", dict[int, float]()
    if checkpoint == "best":
        metric, values = _evaluated(folder, updates, workdir, average)
        updates = [update for update in values if update in updates]
    alone = len(updates) == 1
    for update in updates:
        try:
            stored = _read(folder / str(update), workdir)
        except DamagedError as error:
            if alone:
                raise ConfigError(f"{folder / str(update)} is damaged: {error}") from error
            say(f"checkpoint {update} is passed over: {store.reason(error)}")
            continue
        if not values:
            return stored
        best = Best(metric, values[update], *next(iter(values.items())))
        if best.best_update not in updates:
            say(_say_gone(best, update, average))
        return stored._replace(best=best)
    raise ConfigError(f"none of the {len(updates)} checkpoints in {folder} is good")


def _number(checkpoint: str | int) -> int | None:
    """Reads which checkpoint is asked for: its update index, or None for one of the words."""
    if checkpoint in ("newest", "best"):
        return None
    if isinstance(checkpoint, int) and not isinstance(checkpoint, bool):
        return checkpoint
    if isinstance(checkpoint, str) and checkpoint.isdecimal():
        return int(checkpoint)
    raise ConfigError(
        f"checkpoint must be newest, best or an update index, not {short_repr(checkpoint)}"
    )


def _read(path: AnyPath, workdir: Workdir | None) -> Stored:
    manifest = store.read_manifest(path)
    try:
        interface = read_interface(manifest.interface)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return Stored(path, workdir, manifest, store.read_arrays(path, manifest), interface)


def _say_gone(best: Best, taken: int, average: bool) -> str:
    """Says that the best evaluation has no checkpoint any more, and how one is kept."""
    keep = "checkpoint.keep=N keeps more" if average else "checkpoint.keep_best=True keeps it"
    return (
        f"the best evaluation is that after update {best.best_update} ({best.metric} "
        f"{best.best_value:.4g}), whose checkpoint is gone; {taken} is taken, the best of those "
        f"that are kept ({best.value:.4g}). In training {keep}"
    )


def _evaluated(
    folder: AnyPath, updates: Sequence[int], workdir: Workdir | None, average: bool
) -> tuple[str, dict[int, float]]:
    """Reads the evaluations of a run, the best first, of equals the later.

    Returns:
      the metric by which it is judged, and its values by update index.

    Raises:
      ConfigError: none is of a checkpoint that is there.
    """
    lines = read_metrics(workdir.metrics) if workdir else []
    metric, rises = _headline(folder, updates, workdir)
    metric += OF_AVERAGE * average
    values = best_first(lines, metric, rises)
    if not values.keys() & set(updates):
        raise ConfigError(
            f"none of the checkpoints in {folder} has an evaluation of {metric} beside it, in "
            "metrics.jsonl of its workdir; take the newest, or one by its number"
        )
    return metric, values


def _headline(folder: AnyPath, updates: Sequence[int], workdir: Workdir | None) -> tuple[str, bool]:
    """Finds by which metric a run is judged, and whether that is to rise, without its code."""
    for update in updates:
        try:
            name = store.read_manifest(folder / str(update)).identity.get("task.name", "")
        except DamagedError:
            continue
        if not is_dotted(str(name)):
            return f"val_{classification(2).headline}", False
        break
    try:
        result = json.loads(workdir.result.read_text()) if workdir else {}
        metric = result["headline"]
        return str(metric), bool(result["metrics"][metric]["rises"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"nothing in {folder.parent} says which evaluation is the best of a task of one's own; "
            "take the newest checkpoint, or one by its number"
        ) from error
