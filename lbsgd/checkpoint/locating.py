"""Finds checkpoints by a path that people give: a workdir, a folder of them, or one alone."""

from lbsgd.checkpoint import store
from lbsgd.checkpoint.transfer import MANIFEST
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath


def locate(path: AnyPath, update: int | None = None) -> tuple[AnyPath, list[int]]:
    """Finds the folder of checkpoints that a path is, has or is in, and those that are wanted.

    Args:
      path: the workdir of a run, its folder of checkpoints, or one of them, wherever that is.
      update: the update index of the only one that is wanted; None for all, or for that which
        `path` is.

    Returns:
      the folder, and update indices, the newest first.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    path = path.absolute()
    folder, update = _locate(path, update)
    return folder, _updates(folder, update)


def _locate(path: AnyPath, update: int | None) -> tuple[AnyPath, int | None]:
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints"
    elif update is None and path.name.isdecimal() and _is_checkpoint(path):
        path, update = path.parent, int(path.name)
    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder")
    store.check_name(path)
    return path, update


def _is_checkpoint(path: AnyPath) -> bool:
    return path.parent.name == "checkpoints" or (path / MANIFEST).is_file()


def _updates(folder: AnyPath, update: int | None) -> list[int]:
    try:
        there = store.updates_in(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read ({store.reason(error)})") from error
    if not there and not folder.name.isdecimal() and (folder / MANIFEST).is_file():
        raise ConfigError(
            f"{folder} is a checkpoint whose folder has another name than its update index; give "
            "it that name again, as in RUN/checkpoints/400"
        )
    if not there:
        raise ConfigError(
            f"there are no checkpoints in {folder}; give the workdir of a run, its folder of "
            "checkpoints, or one of them"
        )
    if update is None:
        return there
    if update not in there:
        known = ", ".join(map(str, sorted(there)))
        raise ConfigError(f"there is no checkpoint {update} in {folder}, only {known}")
    return [update]
