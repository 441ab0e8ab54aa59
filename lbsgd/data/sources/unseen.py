"""Opens data sets to evaluate a trained network on: its own validation set, or others.

Others need no training set beside them: `val/CLASS/` of a folder is enough, and so is `CLASS/`.
"""

import pathlib
from collections.abc import Callable, Collection

import ml_collections

from lbsgd.data.packed.reader import INDEX, PackedSource
from lbsgd.data.source import Source, numbered_classes
from lbsgd.data.sources.arrays import npz_source
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.data.sources.folder import FolderSource, data_folder, split_folders
from lbsgd.system.files import expand_home, user_path

Classes = tuple[str, ...]


def open_unseen(
    config: ml_collections.ConfigDict,
    seed: int,
    *,
    classes: Classes,
    trained_on: str = "",
    given: Collection[str] = (),
) -> Source:
    """Opens a data set to evaluate on.

    Args:
      config: the `data` part of the config of the run, with what was set to evaluate it.
      seed: of the run.
      classes: of the network, by label.
      trained_on: the fingerprint of its training set.
      given: which keys of `config` were set to evaluate it; without them it is the run's own set.

    Raises:
      ConfigError: the data are not as they should be.
    """
    if given and config.source in _ALONE:
        alone = _ALONE[config.source](config, classes)
        if alone is not None:
            return alone
    if not given or config.source != "folder" or not config.validation_fraction:
        return build_sources(_of_validation(config), seed).validation
    # One folder: that which the run held a part out of, or another one, all of it.
    splits = build_sources(config, seed)
    if "validation_fraction" in given or splits.train.fingerprint == trained_on:
        return splits.validation
    return _checked(FolderSource(data_folder(config), classes, "the network"), config)


def _of_validation(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Leaves out how many examples to train on, where that changes nothing to validate on."""
    if config.validation_fraction or config.left_out == "validation":
        return config
    changed = ml_collections.ConfigDict(config)
    changed.train_examples = 0
    return changed


def _folder(config: ml_collections.ConfigDict, classes: Classes) -> Source | None:
    """Opens `val/CLASS/`, or `CLASS/` alone; None where there is a training set too."""
    root = data_folder(config)
    found = split_folders(root)
    if "train" in found and "validation" in found:
        return None
    if "validation" not in found and config.validation_fraction:
        return None
    return _checked(FolderSource(found.get("validation", root), classes, "the network"), config)


def _checked(source: FolderSource, config: ml_collections.ConfigDict) -> FolderSource:
    if config.on_corrupt == "error":
        source.check_sizes()
    return source


def _packed(config: ml_collections.ConfigDict, classes: Classes) -> Source | None:
    """Opens a split of a packed set, or one that has no training set beside it."""
    root = user_path(config.dir)
    if (root / INDEX).is_file():
        return PackedSource(root)
    alone = (root / "validation" / INDEX).is_file() and not (root / "train" / INDEX).is_file()
    return PackedSource(root / "validation") if alone else None


def _npz(config: ml_collections.ConfigDict, classes: Classes) -> Source | None:
    """Opens `validation.npz` that has no `train.npz` beside it."""
    folder: pathlib.Path = expand_home(config.dir)
    path = folder / "validation.npz"
    if (folder / "train.npz").exists() or not path.exists():
        return None
    return npz_source(path, numbered_classes(len(classes)))


_ALONE: dict[str, Callable[[ml_collections.ConfigDict, Classes], Source | None]] = {
    "folder": _folder,
    "packed": _packed,
    "npz": _npz,
}
