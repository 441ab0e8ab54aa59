"""The checkpoints of a run: saved while training goes on, believed only once read back."""

import contextlib
import pathlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lbsgd.checkpoint import store
from lbsgd.checkpoint.manifest import (
    DamagedError,
    Manifest,
    describe,
    misfits,
    named_leaves,
    normalized,
)
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import differences, one_line, pluralize


class Costs(NamedTuple):
    """What checkpoints cost.

    Attributes:
      saved: how many were written.
      failed: how many could not be.
      nbytes: of arrays, of all that were written.
      seconds: in which those were written, read back and others cleared away.
      stood: seconds that the caller of `save` waited, of all calls.
      calls: of `save`.
    """

    saved: int = 0
    failed: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    stood: float = 0.0
    calls: int = 0

    def __str__(self) -> str:
        failed = f"{self.failed} could not be written" if self.failed else ""
        if not self.saved:
            return f"no checkpoint was written{failed and f'; {failed}'}"
        megabytes, seconds = self.nbytes / self.saved / 1e6, self.seconds / self.saved
        several = self.saved > 1
        text = (
            f"{pluralize(self.saved, 'checkpoint')} of {megabytes:.1f} MB, "
            f"{'each ' * several}written in {seconds:.2f} s; training stood still "
            f"{self.stood / self.calls:.3f} s for {'each' if self.calls > 1 else 'it'}"
        )
        return f"{text}; {failed}" if failed else text


class Checkpoints:
    """The newest few states of a run. In process 0 alone: the states are replicated.

    A thread writes one state at a time, reads it back, and only then clears older ones away.

    Attributes:
      newest: update of the newest checkpoint that is known to be good; None if none is.
      costs: so far.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        keep: int,
        identity: Mapping[str, Any],
        *,
        on_error: str = "continue",
        say: Callable[[str], None],
    ) -> None:
        """Clears away what interrupted saves left.

        Args:
          folder: of all checkpoints; is made.
          keep: how many to keep, at least 1.
          identity: what decides the numbers of the run, for JSON.
          on_error: what follows when a checkpoint cannot be written: "continue" says so, "stop"
            raises from the next call.
          say: takes one line, from any thread.

        Raises:
          ConfigError: the folder cannot be made or read, or its name is none for checkpoints.
        """
        self._folder, self._keep, self._say = folder.absolute(), max(keep, 1), say
        self._identity, self._stops = normalized(identity), on_error == "stop"
        self._raises = self._stops
        self._verified: dict[int, bool] = {}
        self._thread: threading.Thread | None = None
        self._failure, self._lock = "", threading.Lock()
        self.newest: int | None = None
        self.costs = Costs()
        store.quiet_orbax()
        store.check_name(self._folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in store.leftovers_in(self._folder):
                with contextlib.suppress(OSError):
                    store.remove(path)
        except OSError as error:
            raise ConfigError(
                f"{self._folder} cannot hold checkpoints ({store.reason(error)}); choose another "
                "--workdir"
            ) from error

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest state that verifies; says which it passed over and why.

        Args:
          like: a tree whose leaves have shape and dtype.

        Returns:
          its update and numpy arrays in the structure of `like`; None if there are no checkpoints.

        Raises:
          ConfigError: there are some but none is good, or it is of something else.
        """
        self.wait()
        leaves, passed = named_leaves(like), 0
        for update in self._updates():
            try:
                manifest = self._manifest(update)
                self._check_fits(manifest, leaves)
                arrays = store.read_arrays(self._folder / str(update), manifest)
            except DamagedError as error:
                self._verified[update], passed = False, passed + 1
                self._say(f"checkpoint {update} is passed over: {store.reason(error)}")
            else:
                self._verified[update], self.newest = True, update
                values = [arrays[name] for name in leaves]
                return update, jax.tree.unflatten(jax.tree.structure(like), values)
        if passed:
            raise ConfigError(
                f"none of the {passed} checkpoints in {self._folder} is good; remove that folder "
                "to start anew, or choose another --workdir"
            )
        return None

    def save(self, update: int, state: Any, *, last: bool = False) -> None:
        """Starts to save a replicated state; returns when it may be changed.

        Waits for the save before, if that is still under way. A checkpoint that is known to be
        good is not written again.

        Args:
          last: no training follows: if this one cannot be written, `check` raises.

        Raises:
          ConfigError: an earlier one could not be written, and the run is to stop.
        """
        begun = time.monotonic()
        self.check(wait=True)
        self._raises = self._stops or last
        if not (self._verified.get(update) and (self._folder / str(update)).is_dir()):
            copies = {name: _copy(x) for name, x in named_leaves(state).items()}
            name = f"checkpoint {update}"
            thread = threading.Thread(target=self._work, args=(update, copies), name=name)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError as error:  # the system has no thread to give
                self._fail(update, store.reason(error))
            self._add(stood=time.monotonic() - begun, calls=1)

    def check(self, *, wait: bool = False) -> None:
        """Raises what went wrong, once, if the run is to stop at that, or at its end.

        Raises:
          ConfigError: a checkpoint could not be written.
        """
        if wait:
            self.wait()
        failure, self._failure = self._failure, ""
        if failure:
            raise ConfigError(failure)

    def wait(self) -> None:
        """Waits until what was saved is on the disk, or could not be brought there."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Waits, and raises as `check` does."""
        self.check(wait=True)

    def summary(self) -> str:
        """What the checkpoints cost, in one line."""
        return str(self.costs)

    def _add(self, **more: float) -> None:
        with self._lock:
            now = self.costs._asdict()
            self.costs = Costs(**{key: now[key] + more.get(key, 0) for key in now})

    def _updates(self) -> list[int]:
        try:
            return store.updates_in(self._folder)
        except OSError as error:
            raise ConfigError(f"{self._folder} cannot be read ({store.reason(error)})") from error

    def _manifest(self, update: int) -> Manifest:
        """Raises `DamagedError` too where a checkpoint is of another run."""
        manifest = store.read_manifest(self._folder / str(update))
        differ = differences(manifest.identity, self._identity)
        if differ:
            raise DamagedError(f"it is of another run, which differs in {differ}")
        return manifest

    def _check_fits(self, manifest: Manifest, like: Mapping[str, Any]) -> None:
        found = misfits(manifest, like)
        if found:
            raise ConfigError(
                f"checkpoint {self._folder / str(manifest.update)} is of another network or "
                f"optimizer: {one_line(found)}; it was written by lbsgd "
                f"{one_line(manifest.version)}; choose another --workdir to start anew"
            )

    def _is_good(self, update: int) -> bool:
        """Whether a checkpoint verifies; read once."""
        if update not in self._verified:
            try:
                store.read_arrays(self._folder / str(update), self._manifest(update))
                self._verified[update] = True
            except DamagedError:
                self._verified[update] = False
        return self._verified[update]

    def _work(self, update: int, copies: dict[str, Any]) -> None:
        """What the thread does. Says what goes wrong; raises nothing."""
        begun = time.monotonic()
        with contextlib.suppress(Exception):  # of `say`: there is nobody left to tell
            try:
                self._write(update, copies)
                self.newest = update
            except Exception as error:  # libraries raise all kinds, and training goes on
                self._fail(update, store.reason(error))
            else:
                self._rotate(update)
        self._add(seconds=time.monotonic() - begun)

    def _write(self, update: int, copies: dict[str, Any]) -> None:
        path = self._folder / str(update)
        arrays = {}
        while copies:  # so that the memory of devices is free again
            name, copy = copies.popitem()
            arrays[name] = np.asarray(copy)
        _check_finite(arrays)
        if path.exists() and self._is_good(update):
            return
        store.remove(path)
        self._verified.pop(update, None)
        manifest = describe(update, self._identity, arrays)
        try:
            store.write(path, manifest, arrays)
            self._check_readback(update, manifest)
        except BaseException:
            self._clear(update)
            raise
        self._verified[update] = True
        self._add(saved=1, nbytes=manifest.nbytes)

    def _check_readback(self, update: int, manifest: Manifest) -> None:
        try:
            there = self._manifest(update)
            if there != manifest:
                raise DamagedError("its manifest is another")
            store.read_arrays(self._folder / str(update), there)
        except DamagedError as error:
            raise DamagedError(f"reading it back: {error}") from error

    def _clear(self, update: int) -> None:
        """Removes what a failed save left, as far as that goes."""
        with contextlib.suppress(OSError):
            store.remove(self._folder / str(update))
        with contextlib.suppress(OSError):
            for path in store.leftovers_in(self._folder):
                store.remove(path)

    def _fail(self, update: int, why: str) -> None:
        self._add(failed=1)
        good, then = "there is no good one", "starts anew"
        if self.newest is not None:
            good, then = f"the newest good one is {self.newest}", "goes on from there"
        what = f"checkpoint {update} could not be written ({why})"
        if self._raises:
            self._failure = (
                f"{what}; {good}; make room or mend {self._folder}, and the same command {then}"
            )
        else:
            self._say(f"{what}; training goes on, {good}")

    def _rotate(self, update: int) -> None:
        """Keeps the newest good ones up to `update`, and removes what is older than those."""
        kept = 0
        try:
            older = [other for other in store.updates_in(self._folder) if other <= update]
            for other in older:
                if kept == self._keep:
                    store.remove(self._folder / str(other))
                    self._verified.pop(other, None)
                else:
                    kept += self._is_good(other)
            for path in store.leftovers_in(self._folder):
                store.remove(path)
        except OSError as error:
            self._say(f"old checkpoints could not be removed ({store.reason(error)})")


def _copy(x: Any) -> Any:
    """A copy that stays when the step overwrites x, on one device if x is replicated on several.

    Raises:
      ValueError: x is not replicated.
    """
    if not isinstance(x, jax.Array):
        return np.array(x)
    if not x.is_fully_replicated:
        raise ValueError("a checkpoint holds replicated arrays only")
    local = x.addressable_data(0)
    try:
        return local.copy()
    except jax.errors.JaxRuntimeError:  # no memory for a second one there
        return np.array(local)


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name in sorted(arrays):
        array = arrays[name]
        if jnp.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise DamagedError(f"{name} is not finite")
