"""Lists, verifies and shows checkpoints, for `lbsgd checkpoint`; changes nothing."""

import json
from collections.abc import Callable

import jax
import numpy as np

from lbsgd.checkpoint import store
from lbsgd.checkpoint.locating import locate
from lbsgd.checkpoint.manifest import DamagedError, Manifest
from lbsgd.system.errors import EXIT_DONE, EXIT_FAILED
from lbsgd.system.files import AnyPath, user_path
from lbsgd.system.text import one_line, pluralize


def inspect(command: str, workdir: str, update: int | None) -> int:
    """Does what a command says, and returns the exit code.

    Args:
      command: "list", "verify" or "show".
      workdir: of a run, its folder of checkpoints, or one of them.
      update: the update index of the only one to take; None for all, or for `show` the newest.

    Raises:
      ConfigError: there is no such checkpoint.
    """
    folder, updates = locate(user_path(workdir), update)
    # No need of the accelerator, which may be training.
    jax.config.update("jax_platforms", "cpu")
    store.quiet_orbax()
    commands: dict[str, Callable[[AnyPath, list[int]], int]] = {
        "list": list_,
        "verify": verify,
        "show": show,
    }
    return commands[command](folder, updates)


def list_(folder: AnyPath, updates: list[int]) -> int:
    """Lists what there is in a table, without reading the arrays."""
    print(f"{'update':>10}  {'MB':>9}  {'written':<25}  state")
    for update in sorted(updates):
        path = folder / str(update)
        try:
            manifest = store.read_manifest(path)
            size = store.size(path)
            megabytes = f"{size / 1e6:.1f}"
            if size < manifest.nbytes:
                raise DamagedError(f"it has {size} bytes of {manifest.nbytes}")
            written, state = one_line(manifest.written), "whole; `verify` reads it"
        except DamagedError as error:
            megabytes, written, state = "?", "?", f"damaged: {error}"
        print(f"{update:>10}  {megabytes:>9}  {written:<25}  {state}")
    for path in store.leftovers_in(folder):
        print(f"{path.name}: a save that is under way, or was interrupted; never used")
    return EXIT_DONE


def verify(folder: AnyPath, updates: list[int]) -> int:
    """Reads every array and compares it with its checksum."""
    damaged = False
    for update in sorted(updates):
        path = folder / str(update)
        try:
            manifest = store.read_manifest(path)
            store.read_arrays(path, manifest)
            print(f"{path}: ok, {_content(manifest)}")
        except DamagedError as error:
            damaged = True
            print(f"{path}: damaged: {error}")
    return EXIT_FAILED if damaged else EXIT_DONE


def show(folder: AnyPath, updates: list[int]) -> int:
    """Shows the newest one's identity and arrays, with norm, mean and start of their checksums."""
    path = folder / str(max(updates))
    try:
        manifest = store.read_manifest(path)
        arrays = store.read_arrays(path, manifest)
    except DamagedError as error:
        print(f"{path}: damaged: {error}")
        return EXIT_FAILED
    print(f"{path}: {_content(manifest)}, lbsgd {one_line(manifest.version)}")
    print(json.dumps(manifest.identity, indent=2))  # escapes what is not ASCII
    print(f"{'sha256':<12}  {'norm':>12}  {'mean':>12}  array")
    for name, entry in sorted(manifest.arrays.items()):
        values = arrays[name].astype(np.float64)
        mean = np.mean(values) if values.size else 0.0
        print(
            f"{entry.sha256[:12]}  {np.linalg.norm(values):12.6g}  {mean:12.6g}  "
            f"{one_line(name)} {entry}"
        )
    return EXIT_DONE


def _content(manifest: Manifest) -> str:
    return (
        f"{pluralize(len(manifest.arrays), 'array')} of {manifest.nbytes / 1e6:.1f} MB, written "
        f"{one_line(manifest.written)}"
    )
