"""Writes and reads a checkpoint by Orbax, and trusts it only if its checksums agree.

    400/                        named by its update index; written elsewhere, renamed when complete
        manifest/metadata       JSON, `lbsgd.checkpoint.manifest`
        state/                  a flat dict of arrays, uncompressed

Only process 0 runs this code, however many processes there are, so Orbax must not wait for others.
A checkpoint that is read may be damaged or hostile: anything but JSON and arrays of numbers ends in
`DamagedError`.
"""

import contextlib
import logging
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from lbsgd.checkpoint.manifest import DamagedError, Manifest, check_array, from_json, to_json
from lbsgd.checkpoint.transfer import (
    MANIFEST,
    TEMPORARY,
    fetched,
    is_complete,
    sizes,
    staged,
)
from lbsgd.system.bucket import BucketPath
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath
from lbsgd.system.text import one_line

# A hundred times what the largest network needs; Orbax reads such a file into memory at once.
LARGEST_JSON = 64 * 2**20
# The open files of this process, by descriptor; on Linux only.
OPEN_FILES = "/proc/self/fd"
_ODD_NAME = re.compile(r"[][*?{}\\\ud800-\udfff]|:/")
_UPDATE = re.compile("0|[1-9][0-9]*")
_JSON_FILES = ("_CHECKPOINT_METADATA", MANIFEST, "state/_METADATA")


def check_name(folder: AnyPath) -> None:
    """Checks that the name of a folder allows checkpoints in it.

    Raises:
      ConfigError: it does not.
    """
    if isinstance(folder, BucketPath):
        return  # no part of which Orbax ever sees
    if _ODD_NAME.search(str(folder)) and not os.path.isdir(OPEN_FILES):
        raise ConfigError(
            f"{folder}: on this system checkpoints cannot lie below a folder whose name holds one "
            "of [ ] * ? { } or a backslash, ends with a colon or is not UTF-8; choose another "
            "--workdir"
        )


@contextlib.contextmanager
def _for_orbax(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to a checkpoint that Orbax takes literally.

    Orbax expands wildcards in a path, etils looks for names of buckets, and tensorstore requires
    UTF-8. All of them accept a path through the descriptor of the open folder.
    """
    if not _ODD_NAME.search(str(path)):
        yield path
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield pathlib.Path(OPEN_FILES, str(descriptor), path.name)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _orbax_reads(path: AnyPath, files: Mapping[str, int]) -> Iterator[pathlib.Path]:
    """Yields where Orbax can read files of a checkpoint, of which the sizes are given."""
    with fetched(path, files, sum(files.values())) as local, _for_orbax(local) as there:
        yield there


def updates_in(folder: AnyPath) -> list[int]:
    """Lists the update indices that have checkpoints, good or not, the newest first.

    Raises:
      OSError: the folder cannot be read.
    """
    named = (path for path in folder.iterdir() if _UPDATE.fullmatch(path.name))
    return sorted((int(path.name) for path in named if is_complete(path)), reverse=True)


def leftovers_in(folder: AnyPath) -> list[AnyPath]:
    """Lists the files and folders that interrupted saves left."""
    there: list[AnyPath] = sorted(folder.iterdir(), key=str)
    partial = [path for path in there if _UPDATE.fullmatch(path.name) and not is_complete(path)]
    return partial + [path for path in there if TEMPORARY in path.name]


def write(path: AnyPath, manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint and syncs it to the disk, or brings it into the bucket.

    Raises:
      Exception: of any kind, from a library; `reason` describes it.
    """
    args = ocp.args.Composite(
        state=ocp.args.PyTreeSave(_without_empty(arrays)),
        manifest=ocp.args.JsonSave(to_json(manifest)),
    )
    with staged(path, manifest.nbytes) as local, _for_orbax(local) as there:
        _checkpointer().save(there, args=args)


def read_manifest(path: AnyPath) -> Manifest:
    """Reads the manifest of a checkpoint, without its arrays.

    Raises:
      DamagedError: it is missing or damaged.
    """
    with _raise_damaged():
        files = {n: nbytes for n, nbytes in _sizes(path).items() if not n.startswith("state/")}
        args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
        with _orbax_reads(path, files) as there:
            manifest = from_json(_checkpointer().restore(there, args=args).manifest)
    if path.name != str(manifest.update):
        raise DamagedError(f"it is of update {manifest.update}")
    return manifest


def read_arrays(path: AnyPath, manifest: Manifest) -> dict[str, np.ndarray]:
    """Reads the arrays of a checkpoint and verifies that they are what was saved.

    Raises:
      DamagedError: some are missing or damaged.
    """
    stored = _without_empty(manifest.arrays)
    with _raise_damaged():
        files = _sizes(path)
        nbytes = sum(files.values())
        if nbytes < manifest.nbytes:
            raise DamagedError(f"it has {nbytes} bytes of {manifest.nbytes}")
        how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=how))
        with _orbax_reads(path, files) as there:
            _check_layout(there, manifest)
            arrays = dict(_checkpointer().restore(there, args=args).state)
    for name in manifest.arrays.keys() - stored.keys():
        entry = manifest.arrays[name]
        arrays[name] = np.zeros(entry.shape, entry.dtype)
    for name, entry in manifest.arrays.items():
        check_array(name, arrays[name], entry)
    return arrays


def reason(error: BaseException) -> str:
    """Describes an error of a library in a few words."""
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
    """Keeps Orbax from printing tracebacks of errors that it also raises, and of their effects."""
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _not_of_orbax not in logger.filters:
            logger.addFilter(_not_of_orbax)
    # Coroutines that it no longer awaits after an error.
    warnings.filterwarnings("ignore", rf"coroutine '({_COROUTINES})\.", RuntimeWarning)
    if not _hooks:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _unraisable


_hooks: list[Callable[["sys.UnraisableHookArgs"], object]] = []
_COROUTINES = "NumpyHandler|JsonCheckpointHandler|BasePyTreeCheckpointHandler"


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Filters out log records of Orbax: asyncio logs failures that Orbax does not await."""
    orbax = f"{os.sep}orbax{os.sep}"
    if record.name == "asyncio":
        text = record.getMessage()
        return "OCDBT" not in text and orbax not in text
    return orbax not in record.pathname


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    """Ignores failures that report to an event loop after Orbax has closed it."""
    if str(args.exc_value) != "Event loop is closed":
        _hooks[-1](args)


def _checkpointer() -> ocp.Checkpointer:
    """Makes a new checkpointer; one that has failed once is in an undefined state."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="lbsgd"
    )
    handler = ocp.CompositeCheckpointHandler(
        state=_state_handler(alone),
        manifest=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        composite_options=ocp.CompositeOptions(
            multiprocessing_options=alone,
            # Else Orbax waits five minutes for a folder that cannot be made.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        ),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _state_handler(alone: ocp.options.MultiprocessingOptions) -> ocp.PyTreeCheckpointHandler:
    """Makes a handler that knows numpy arrays only, so that no file can ask for another type.

    Without compression: it would save 8% on weights, and a small file could unpack to a huge array.
    """
    handlers = ocp.type_handlers
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=handlers.create_type_handler_registry(
            (np.ndarray, handlers.NumpyHandler())
        ),
        use_compression=False,
        multiprocessing_options=alone,
    )


def _without_empty(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Drops empty arrays, which Orbax cannot store; the manifest lists them."""
    return {name: x for name, x in arrays.items() if 0 not in x.shape}


def _check_layout(path: pathlib.Path, manifest: Manifest) -> None:
    """Compares the stored arrays with the manifest before any memory is allocated for them.

    Raises:
      DamagedError: names, dtypes, shapes or chunks differ.
    """
    found = _checkpointer().metadata(path).item_metadata.state.tree
    stored = _without_empty(manifest.arrays)
    if found.keys() != stored.keys():
        odd = sorted(found.keys() ^ stored.keys())
        raise DamagedError(f"its arrays are not those of its manifest: {', '.join(odd[:3])}")
    for name, entry in stored.items():
        is_ = (np.dtype(found[name].dtype).name, tuple(found[name].shape))
        chunks = tuple(found[name].storage.chunk_shape)
        if is_ != entry[:2] or any(c > max(n, 1) for c, n in zip(chunks, entry.shape)):
            raise DamagedError(f"{name} is not laid out as its manifest says")


def _sizes(path: AnyPath) -> dict[str, int]:
    """Lists the sizes of the files of a checkpoint in bytes.

    Raises:
      DamagedError: a file is not a plain one, so that reading might never end, or one is huge.
      OSError: the files cannot be listed.
    """
    found = sizes(path)
    for name in _JSON_FILES:
        if found.get(name, 0) > LARGEST_JSON:
            raise DamagedError(f"{name} has {found[name]} bytes")
    return found


def size(path: AnyPath) -> int:
    """Returns the size of a checkpoint in bytes; raises as `_sizes`."""
    return sum(_sizes(path).values())


@contextlib.contextmanager
def _raise_damaged() -> Iterator[None]:
    """Turns any error into a DamagedError: Orbax and tensorstore raise all kinds for damage."""
    try:
        yield
    except DamagedError:
        raise
    except Exception as error:
        raise DamagedError(f"it cannot be read ({reason(error)})") from error
