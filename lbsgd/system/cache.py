"""The user's cache folder; what XLA compiles is kept in it from run to run, and loaded again.

JAX does the keeping. Here it is told where, and the folder is kept small. Nothing here imports jax,
which is to be told before.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import re
import sys
import warnings
import zlib
from typing import Any

# Where JAX keeps compiled programs; whether it does; and from how many seconds of compiling on.
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_WHETHER = "JAX_ENABLE_COMPILATION_CACHE"
_LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# A run has few programs of half a second, and many of less, which are not worth a file each.
_SECONDS = "0.5"
# In bytes. A program takes up to some MB, so these are thousands.
MOST_KEPT = 5 * 10**9
# What JAX warns of a file that it cannot read.
_UNREAD = re.compile(r"Error reading persistent compilation cache entry for '([^']*)': ", re.DOTALL)


def cache_folder() -> pathlib.Path | None:
    """Returns the folder of what is kept from run to run; None if the user has no home.

    The folder may not exist, and it may not be writable.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return pathlib.Path(folder) / "lbsgd" if os.path.isabs(folder) else None


def keep_compiled() -> None:
    """Has JAX keep what XLA compiles in `cache_folder`, if nothing is said of that yet.

    It is said by JAX's own settings, in the environment or in a config file. Where the folder
    cannot be written, or others can write it, nothing is kept.
    """
    if _is_said() or (folder := _make_folder()) is None:
        return
    remove_oldest(folder.parent, MOST_KEPT)
    os.environ[_FOLDER] = str(folder)
    os.environ.setdefault(_LEAST_SECONDS, _SECONDS)
    if "jax" in sys.modules:  # by a config file, which has read the environment already
        _settings().update("jax_compilation_cache_dir", str(folder))
    warnings.showwarning = _without_unread(folder, warnings.showwarning)


def keep_for_one_process() -> None:
    """Has JAX keep nothing in the folder that `keep_compiled` chose, in one of several processes.

    Process 0 alone writes, and with a folder on each machine it alone would find what it wrote: a
    GPU's compiler shares work out among all processes, and would wait for it in vain. A folder that
    all of them see is for the user to name.
    """
    config = _settings()
    if config.jax_compilation_cache_dir == str(_folder()):
        config.update("jax_compilation_cache_dir", None)


def explain_kept() -> str:
    """Says where compiled programs are kept."""
    config = _settings()
    if config.jax_compilation_cache_dir and config.jax_enable_compilation_cache:
        return f"compiled programs: kept in {config.jax_compilation_cache_dir}"
    return f"compiled programs: kept nowhere; {_FOLDER} names a folder for them"


def remove_oldest(folder: pathlib.Path, most: int) -> None:
    """Removes the files that were not used for longest, until the others have `most` bytes."""
    files = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # of another process, which removes files too
            found = path.stat()
            if path.is_file():
                # Not every file system notes when a file is read.
                files.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    for _, size, path in sorted(files, reverse=True):
        most -= size
        if most < 0:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_said() -> bool:
    if _FOLDER in os.environ:
        return True
    if os.environ.get(_WHETHER, "1").lower() in ("0", "f", "false", "n", "no", "off"):
        return True
    if "jax" not in sys.modules:
        return False
    config = _settings()
    return bool(config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache)


def _settings() -> Any:
    """Returns JAX's settings, whose names no type checker knows."""
    import jax

    return jax.config


def _folder() -> pathlib.Path | None:
    cache = cache_folder()
    return cache / "xla" / _processor() if cache else None


def _make_folder() -> pathlib.Path | None:
    """Makes the folder of compiled programs; None where it cannot be used."""
    folder = _folder()
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return None
    # What is in there is executed, so nobody else may have a hand in it.
    own = found.st_uid == os.geteuid() and not found.st_mode & 0o022
    return folder if own and os.access(folder, os.R_OK | os.W_OK | os.X_OK) else None


def _processor() -> str:
    """Names the kind of processor: machines that share a home may not share what is compiled."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()}-{hashlib.sha256(line.encode()).hexdigest()[:8]}"
    return platform.machine()


def _without_unread(folder: pathlib.Path, show: Any) -> Any:
    """Wraps `warnings.showwarning` to say in a line what JAX could not read, and to remove it."""

    def show_or_mend(message: Warning | str, *where: Any, **more: Any) -> None:
        unread = _UNREAD.match(str(message))
        if not unread:
            return show(message, *where, **more)
        name, reason = unread[1], str(message)[unread.end() :]
        # JAX would neither replace the file nor say which of the program's it is.
        for path in folder.glob(f"{name}-*"):
            if _is_damaged(path):
                path.unlink(missing_ok=True)
        reason = " ".join(reason.split())[:200]
        text = f"lbsgd: {name} is compiled anew, for what is kept of it cannot be read: {reason}"
        print(text, file=sys.stderr)
        return None

    return show_or_mend


def _is_damaged(path: pathlib.Path) -> bool:
    try:
        zlib.decompress(path.read_bytes())  # as JAX compresses it, with a checksum
    except (OSError, zlib.error):
        return True
    return False
