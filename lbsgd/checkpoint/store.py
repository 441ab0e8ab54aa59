"""One checkpoint on the disk: written and read by Orbax, believed only with its checksums.

    400/                        named by its update; written elsewhere and renamed when whole
        manifest/metadata       JSON, `lbsgd.checkpoint.manifest`
        state/                  a flat dict of arrays, uncompressed

Process 0 alone is here, however many processes there are: Orbax must wait for no other. What is
read may be damaged or hostile. It is JSON and arrays of numbers, and ends in `DamagedError` if it
is anything else.
"""

import contextlib
import errno
import logging
import os
import pathlib
import re
import shutil
import stat
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from lbsgd.checkpoint.manifest import DamagedError, Manifest, check_array, from_json, to_json
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import one_line

# Orbax's mark of a folder that is not whole, or is about to be removed.
TEMPORARY = ".orbax-checkpoint-tmp"
# A hundred times what the largest network needs; Orbax reads such a file at once.
LARGEST_JSON = 64 * 2**20
# Of this process, by descriptor; on Linux.
OPEN_FILES = "/proc/self/fd"
_ODD_NAME = re.compile(r"[][*?{}\\\ud800-\udfff]|:/")
_JSON_FILES = ("_CHECKPOINT_METADATA", "manifest/metadata", "state/_METADATA")


def check_name(folder: pathlib.Path) -> None:
    """Checks that checkpoints can be in a folder of this name.

    Raises:
      ConfigError: they cannot.
    """
    if _ODD_NAME.search(str(folder)) and not os.path.isdir(OPEN_FILES):
        raise ConfigError(
            f"{folder}: on this system checkpoints cannot lie below a folder whose name holds one "
            "of [ ] * ? { } or a backslash, ends with a colon or is not UTF-8; choose another "
            "--workdir"
        )


@contextlib.contextmanager
def _for_orbax(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path of a checkpoint that Orbax takes for what it is.

    Orbax globs, etils looks for the names of buckets, tensorstore wants UTF-8. All of them take a
    path through the open file of the folder.
    """
    if not _ODD_NAME.search(str(path)):
        yield path
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield pathlib.Path(OPEN_FILES, str(descriptor), path.name)
    finally:
        os.close(descriptor)


def updates_in(folder: pathlib.Path) -> list[int]:
    """The updates of which there are checkpoints, good or not, the newest first.

    Raises:
      OSError: the folder cannot be read.
    """
    names = [path.name for path in folder.iterdir()]
    updates = [int(n) for n in names if re.fullmatch("0|[1-9][0-9]*", n)]
    return sorted(updates, reverse=True)


def leftovers_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """What interrupted saves left."""
    return sorted(path for path in folder.iterdir() if TEMPORARY in path.name)


def write(path: pathlib.Path, manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint and brings it to the disk.

    Raises:
      Exception: of any kind, from a library; `reason` puts it into words.
    """
    _check_room(path.parent, manifest.nbytes)
    args = ocp.args.Composite(
        state=ocp.args.PyTreeSave(_stored(arrays)),
        manifest=ocp.args.JsonSave(to_json(manifest)),
    )
    with _for_orbax(path) as there:
        _checkpointer().save(there, args=args)
    _settle(path)


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest of a checkpoint, the arrays still unread.

    Raises:
      DamagedError: there is none to be believed.
    """
    with _damage():
        _sizes(path)
        args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
        with _for_orbax(path) as there:
            manifest = from_json(_checkpointer().restore(there, args=args).manifest)
    if path.name != str(manifest.update):
        raise DamagedError(f"it is of update {manifest.update}")
    return manifest


def read_arrays(path: pathlib.Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, every one the same as was saved.

    Raises:
      DamagedError: some are not.
    """
    stored = _stored(manifest.arrays)
    with _damage():
        nbytes = size(path)
        if nbytes < manifest.nbytes:
            raise DamagedError(f"it has {nbytes} bytes of {manifest.nbytes}")
        _check_layout(path, manifest)
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=how))
        with _for_orbax(path) as there:
            arrays = dict(_checkpointer().restore(there, args=args).state)
    for name in manifest.arrays.keys() - stored.keys():
        entry = manifest.arrays[name]
        arrays[name] = np.zeros(entry.shape, entry.dtype)
    for name, entry in manifest.arrays.items():
        check_array(name, arrays[name], entry)
    return arrays


def remove(path: pathlib.Path) -> None:
    """Removes a checkpoint, or what there is of one, so that half of it is never seen.

    Raises:
      OSError: it is there still.
    """
    if TEMPORARY not in path.name:
        doomed = path.with_name(f"{path.name}{TEMPORARY}-removed")
        if os.path.lexists(doomed):
            remove(doomed)
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed)
        path = doomed
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """An error of a library in a few words."""
    if isinstance(error, DamagedError):
        return one_line(str(error))
    code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).split("[tensorstore_spec")[0]
    return one_line(f"{type(error).__name__}: {text}").rstrip(": ")


def quiet_orbax() -> None:
    """Keeps Orbax from printing tracebacks of errors that it also raises, and of what follows."""
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _not_of_orbax not in logger.filters:
            logger.addFilter(_not_of_orbax)
    # What it had planned to do after what failed.
    warnings.filterwarnings("ignore", rf"coroutine '({_COROUTINES})\.", RuntimeWarning)
    if not _hooks:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _unraisable


_hooks: list[Any] = []
_COROUTINES = "NumpyHandler|JsonCheckpointHandler|BasePyTreeCheckpointHandler"


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Of several reads or writes that fail, asyncio logs those that Orbax does not ask for."""
    orbax = f"{os.sep}orbax{os.sep}"
    if record.name == "asyncio":
        text = record.getMessage()
        return "OCDBT" not in text and orbax not in text
    return orbax not in record.pathname


def _unraisable(args: Any) -> None:
    """Of several writes that fail, all but the first report to a loop that Orbax has closed."""
    if str(args.exc_value) != "Event loop is closed":
        _hooks[-1](args)


def _checkpointer() -> ocp.Checkpointer:
    """A new one each time, for one that failed is in no known state."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="lbsgd"
    )
    handler = ocp.CompositeCheckpointHandler(
        state=_state_handler(alone),
        manifest=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        composite_options=ocp.CompositeOptions(
            multiprocessing_options=alone,
            # Else, where a folder cannot be made, Orbax waits five minutes for it.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        ),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _state_handler(alone: ocp.options.MultiprocessingOptions) -> ocp.PyTreeCheckpointHandler:
    """Knows of numpy arrays alone, so that no file can ask for another type.

    Compression would win 8% on weights, and files that grow when they are read.
    """
    handlers = ocp.type_handlers
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=handlers.create_type_handler_registry(
            (np.ndarray, handlers.NumpyHandler())
        ),
        use_compression=False,
        multiprocessing_options=alone,
    )


def _stored(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Those that Orbax can store: it has no empty ones. The manifest has all."""
    return {name: x for name, x in arrays.items() if 0 not in x.shape}


def _check_layout(path: pathlib.Path, manifest: Manifest) -> None:
    """Compares what would be read with the manifest, before there is memory for it.

    Raises:
      DamagedError: names, dtypes, shapes or chunks are others.
    """
    with _for_orbax(path) as there:
        found = _checkpointer().metadata(there).item_metadata.state.tree
    stored = _stored(manifest.arrays)
    if found.keys() != stored.keys():
        odd = sorted(found.keys() ^ stored.keys())
        raise DamagedError(f"its arrays are not those of its manifest: {', '.join(odd[:3])}")
    for name, entry in stored.items():
        is_ = (np.dtype(found[name].dtype).name, tuple(found[name].shape))
        chunks = tuple(found[name].storage.chunk_shape)
        if is_ != entry[:2] or any(c > max(n, 1) for c, n in zip(chunks, entry.shape)):
            raise DamagedError(f"{name} is not laid out as its manifest says")


def _sizes(path: pathlib.Path) -> dict[str, int]:
    """The bytes of each file of a checkpoint.

    Raises:
      DamagedError: one is no plain file, so that reading it may never end, or an index is huge.
      OSError: they cannot be listed.
    """
    if path.is_symlink() or not path.is_dir():
        raise DamagedError("it is no folder")
    sizes = dict(_walk(path, ""))
    for name in _JSON_FILES:
        if sizes.get(name, 0) > LARGEST_JSON:
            raise DamagedError(f"{name} has {sizes[name]} bytes")
    return sizes


def _walk(path: pathlib.Path, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(path) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(path / entry.name, f"{prefix}{entry.name}/")
            elif stat.S_ISREG(status.st_mode):
                yield prefix + entry.name, status.st_size
            else:
                raise DamagedError(f"{prefix}{entry.name} is no plain file")


def size(path: pathlib.Path) -> int:
    """Bytes of a checkpoint; raises as `_sizes`."""
    return sum(_sizes(path).values())


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Whatever goes wrong in reading is damage; Orbax and tensorstore raise all kinds."""
    try:
        yield
    except DamagedError:
        raise
    except Exception as error:
        raise DamagedError(f"it cannot be read ({reason(error)})") from error


def _check_room(folder: pathlib.Path, nbytes: int) -> None:
    """Orbax would make a folder that is gone, and writes much before it finds a disk full.

    Raises:
      OSError: there is no folder, or no room for so many bytes.
    """
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"{folder} is not there any more")
    usage = shutil.disk_usage(folder)
    if usage.total > 0 and usage.free < nbytes:
        text = f"No space left on device: {nbytes:,} bytes needed, {usage.free:,} free"
        raise OSError(errno.ENOSPC, text)


def _settle(path: pathlib.Path) -> None:
    """Brings files and folders to the disk, and drops them from memory so that it is read again."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            _sync(os.path.join(folder, name))
        with contextlib.suppress(OSError):  # not every file system can sync a folder
            _sync(folder)
    with contextlib.suppress(OSError):
        _sync(str(path.parent))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
