"""The checkpoints of a run: saved while training continues, trusted only once read back."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lbsgd.checkpoint import store, transfer
from lbsgd.checkpoint.identity import identity_differences
from lbsgd.checkpoint.manifest import (
    DamagedError,
    Manifest,
    json_round_trip,
    make_manifest,
    misfits,
    named_leaves,
)
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath
from lbsgd.system.text import one_line, pluralize


class Costs(NamedTuple):
    """The cost of a run's checkpoints.

    Attributes:
      saved: how many were written.
      failed: how many could not be written.
      nbytes: bytes of the arrays in all that were written.
      seconds: time for writing them, reading them back and removing old ones.
      waited: seconds that callers of `save` waited in all.
      calls: how often `save` was called.
    """

    saved: int = 0
    failed: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    waited: float = 0.0
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
            f"{self.waited / self.calls:.3f} s for {'each' if self.calls > 1 else 'it'}"
        )
        return f"{text}; {failed}" if failed else text


class Checkpoints:
    """Saves and restores the newest few states of a run, in process 0 only: they are replicated.

    A thread writes one state at a time, reads it back, and only then removes older ones.

    Attributes:
      newest: update index of the newest checkpoint that is known to be good; None if there is none.
      best: update index of the one that is kept however old it is; None for none.
      costs: the cost of the checkpoints so far.
    """

    def __init__(
        self,
        folder: AnyPath,
        keep: int,
        identity: Mapping[str, Any],
        *,
        interface: Mapping[str, Any] | None = None,
        on_error: str = "continue",
        say: Callable[[str], None],
    ) -> None:
        """Creates the folder and removes what interrupted saves left in it.

        Args:
          folder: holds all checkpoints, on a disk or in a bucket.
          keep: how many checkpoints to keep, at least 1.
          identity: everything that determines the numbers of the run, as JSON values.
          interface: what the network takes and gives, as JSON values.
          on_error: what to do if a checkpoint cannot be written: "continue" prints a line, "stop"
            raises an error in the next call.
          say: prints one line; it is called from any thread.

        Raises:
          ConfigError: the folder cannot be made or read, or its name does not allow checkpoints.
        """
        self._folder, self._keep, self._say = folder.absolute(), max(keep, 1), say
        self._identity, self._stops = json_round_trip(identity), on_error == "stop"
        self._interface = json_round_trip(interface or {})
        self._raises = self._stops
        self._verified: dict[int, bool] = {}
        self._thread: threading.Thread | None = None
        self._failure, self._lock = "", threading.Lock()
        self.newest: int | None = None
        self.best: int | None = None
        self.costs = Costs()
        store.quiet_orbax()
        store.check_name(self._folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in store.leftovers_in(self._folder):
                with contextlib.suppress(OSError):
                    transfer.remove(path)
        except OSError as error:
            raise ConfigError(
                f"{self._folder} cannot hold checkpoints ({store.reason(error)}); choose another "
                "--workdir"
            ) from error

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Restores the newest checkpoint that verifies; says which were passed over and why.

        Args:
          like: a tree whose leaves have shape and dtype.

        Returns:
          Its update index, and numpy arrays in the structure of `like`; None without checkpoints.

        Raises:
          ConfigError: there are checkpoints but none is good, or the newest good one is of another
            network or optimizer.
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

    def save(self, update: int, state: Any, *, last: bool = False, best: bool = False) -> None:
        """Starts to save a replicated state; returns as soon as the state may be changed.

        It first waits for the previous save to finish. A checkpoint that is known to be good is not
        written again.

        Args:
          update: the update index, how many updates were done.
          state: a tree of arrays.
          last: whether no training follows; then `check` raises if it cannot be written.
          best: whether it takes the place of `best`, once it is on the disk.

        Raises:
          ConfigError: an earlier checkpoint could not be written, and `on_error` is "stop".
        """
        begun = time.monotonic()
        self.check(wait=True)
        self._raises = self._stops or last
        there = self._verified.get(update) and (self._folder / str(update)).is_dir()
        if not there or best:
            # What is there already only takes the place of the best one.
            copies = None if there else {k: _copy(x) for k, x in named_leaves(state).items()}
            name = f"checkpoint {update}"
            args = update, copies, best
            thread = threading.Thread(target=self._save_in_thread, args=args, name=name)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError as error:  # the system allows no more threads
                self._fail(update, store.reason(error))
            self._add(waited=time.monotonic() - begun, calls=1)

    def keep_best_of(self, updates: Sequence[int]) -> int | None:
        """Keeps the first of some checkpoints that is there and good; None if none is."""
        self.wait()
        there = set(self._updates()) & set(updates)
        self.best = next((t for t in updates if t in there and self._is_good(t)), None)
        return self.best

    def check(self, *, wait: bool = False) -> None:
        """Raises the error of a save that failed, once, if the run is to stop because of it.

        Args:
          wait: whether to wait for the current save first.

        Raises:
          ConfigError: a checkpoint could not be written, and `on_error` is "stop" or it was the
            last one.
        """
        if wait:
            self.wait()
        failure, self._failure = self._failure, ""
        if failure:
            raise ConfigError(failure)

    def wait(self) -> None:
        """Waits until the current save has finished or failed."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Waits for the current save, and raises as `check` does."""
        self.check(wait=True)

    def summary(self) -> str:
        """Describes the cost of the checkpoints in one line."""
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
        """Reads a manifest; raises `DamagedError` if it is damaged or belongs to another run."""
        manifest = store.read_manifest(self._folder / str(update))
        differ = identity_differences(manifest.identity, self._identity)
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
        """Returns whether a checkpoint verifies; it is read only once."""
        if update not in self._verified:
            try:
                store.read_arrays(self._folder / str(update), self._manifest(update))
                self._verified[update] = True
            except DamagedError:
                self._verified[update] = False
        return self._verified[update]

    def _save_in_thread(self, update: int, copies: dict[str, Any] | None, best: bool) -> None:
        """Writes a checkpoint and removes old ones, in the thread; prints errors, raises none.

        Args:
          copies: of its arrays; None where it is there already.
        """
        begun = time.monotonic()
        with contextlib.suppress(Exception):  # an error of `say` cannot be reported
            try:
                if copies is not None:
                    self._write(update, copies)
                self.newest = update
                self.best = update if best else self.best
            except Exception as error:  # libraries raise all kinds, and training continues
                self._fail(update, store.reason(error))
            else:
                self._rotate(update)
        self._add(seconds=time.monotonic() - begun)

    def _write(self, update: int, copies: dict[str, Any]) -> None:
        path = self._folder / str(update)
        arrays = {}
        while copies:  # one by one, so that the memory of the devices is freed early
            name, copy = copies.popitem()
            arrays[name] = np.asarray(copy)
        _check_finite(arrays)
        if path.exists() and self._is_good(update):
            return
        transfer.remove(path)
        self._verified.pop(update, None)
        manifest = make_manifest(update, self._identity, arrays, self._interface)
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
        """Removes what a failed save left, as far as possible."""
        with contextlib.suppress(OSError):
            transfer.remove(self._folder / str(update))
        with contextlib.suppress(OSError):
            for path in store.leftovers_in(self._folder):
                transfer.remove(path)

    def _fail(self, update: int, why: str) -> None:
        self._add(failed=1)
        good, then = "there is no good one", "starts anew"
        if self.newest is not None:
            good, then = f"the newest good one is {self.newest}", "resumes from there"
        what = f"checkpoint {update} could not be written ({why})"
        if self._raises:
            self._failure = (
                f"{what}; {good}; make room or mend {self._folder}, and the same command {then}"
            )
        else:
            self._say(f"{what}; training goes on, {good}")

    def _rotate(self, update: int) -> None:
        """Removes what is older than the newest `keep` good ones up to an update index.

        The best one stays.
        """
        kept = 0
        try:
            older = [other for other in store.updates_in(self._folder) if other <= update]
            for other in older:
                if kept == self._keep:
                    if other == self.best:
                        continue
                    transfer.remove(self._folder / str(other))
                    self._verified.pop(other, None)
                else:
                    kept += self._is_good(other)
            for path in store.leftovers_in(self._folder):
                transfer.remove(path)
        except OSError as error:
            self._say(f"old checkpoints could not be removed ({store.reason(error)})")


def _copy(x: Any) -> Any:
    """Copies x on one device, so that it stays when the step overwrites x.

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
    except jax.errors.JaxRuntimeError:  # the device has no memory for a copy
        return np.array(local)


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name in sorted(arrays):
        array = arrays[name]
        if jnp.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise DamagedError(f"{name} is not finite")
