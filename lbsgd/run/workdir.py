"""The folder of a run, on a disk or in a bucket: whose it is, and what lies where."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lbsgd.checkpoint.identity import identity_differences
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, replace_file
from lbsgd.system.locks import Lock, lock_of
from lbsgd.weights.keys import IDENTITY

# The run before may still be saving (a pod has five minutes for it), or a file server or a bucket
# still hold the lock of a machine that is gone.
LOCK_SECONDS = 360.0


@dataclasses.dataclass
class Workdir:
    """Names the files of a run, and makes sure that its folder is its own.

    Attributes:
      path: the folder.
    """

    path: AnyPath
    _lock: Lock | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    @property
    def config(self) -> AnyPath:
        """Whose folder it is: config, fingerprints of the data, the interface of the network."""
        return self.path / "config.json"

    @property
    def machine(self) -> AnyPath:
        """Versions and hardware of each machine that the run was on."""
        return self.path / "machine.json"

    @property
    def metrics(self) -> AnyPath:
        """Metrics of updates and evaluations, a line each."""
        return self.path / "metrics.jsonl"

    @property
    def diagnostics(self) -> AnyPath:
        """Diagnostics that are lists, a line each."""
        return self.path / "diagnostics.jsonl"

    @property
    def result(self) -> AnyPath:
        """What came of the run, once it has ended."""
        return self.path / "result.json"

    @property
    def corrupt(self) -> AnyPath:
        """Names of the examples that this process could not read."""
        process = _process_index()
        return self.path / (f"corrupt_{process}.jsonl" if process else "corrupt.jsonl")

    @property
    def log(self) -> AnyPath:
        """The log of this process."""
        return self.path / "logs" / f"{_process_index()}.log"

    @property
    def parameters(self) -> AnyPath:
        """The table of parameters: shapes, roles, what decays."""
        return self.path / "parameters.txt"

    @property
    def weights(self) -> AnyPath:
        """The table of the weights that the run started from, if it did not draw them all."""
        return self.path / "initial_weights.txt"

    @property
    def explanation(self) -> AnyPath:
        """How the run was resolved, as `--explain` prints it."""
        return self.path / "explanation.txt"

    @property
    def curves(self) -> AnyPath:
        """The picture of errors and learning rate."""
        return self.path / "curves.png"

    @property
    def checkpoints(self) -> AnyPath:
        """The folder of checkpoints, each called by its update index."""
        return self.path / "checkpoints"

    def read_config(self) -> dict[str, Any]:
        """Reads all keys of the resolved config that a run here was last started with.

        Raises:
          ConfigError: there was no run here, or its config cannot be read.
        """
        try:
            config = json.loads(self.config.read_text())["config"]
            if not isinstance(config, dict):
                raise TypeError
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                f"workdir {self.path} holds no run to resume; begin one there with --config, or "
                "give the workdir of a run"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{self.config} cannot be read ({error.strerror or error}); give the config again "
                "with --config"
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{self.config} is not a run's config; give the config again with --config"
            ) from error
        return config

    def forget_result(self) -> None:
        """Removes what came of the run when it ended before, for now it resumes.

        Raises:
          ConfigError: it cannot be removed.
        """
        try:
            self.result.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.result} cannot be removed ({error.strerror or error}); remove it, for the "
                "run resumes"
            ) from error

    def write_parameters(self, table: str) -> None:
        """Writes the table of parameters.

        Raises:
          ConfigError: it cannot be written.
        """
        self._write(self.parameters, table)

    def write_initial_weights(self, table: str | None) -> None:
        """Writes the table of the weights that a run starts from; None where it draws them all.

        Raises:
          ConfigError: it cannot be written.
        """
        if table is not None:
            self._write(self.weights, table)

    def initial_weights(self) -> str:
        """Returns the fingerprint of the weights that a run here began with; "" if none did."""
        if not self.holds_updates():
            return ""
        try:
            return str(json.loads(self.config.read_text())["run"].get(IDENTITY, ""))
        except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
            return ""  # `claim` says what is wrong

    def write_explanation(self, lines: Sequence[str]) -> None:
        """Writes how the run was resolved.

        Raises:
          ConfigError: it cannot be written.
        """
        self._write(self.explanation, "\n".join(lines))

    def _write(self, path: AnyPath, text: str) -> None:
        try:
            replace_file(path, text + "\n")
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror or error}); make room there, or "
                "choose another --workdir"
            ) from error

    def claim(
        self,
        identity: dict[str, Any],
        config: dict[str, Any],
        machine: dict[str, Any],
        validation: str = "",
        say: Callable[[str], None] = print,
        *,
        interface: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
    ) -> Lock:
        """Makes the folder this run's, or checks that it is one already.

        Args:
          identity: what decides the parameters of the run.
          config: all keys of the resolved config.
          machine: versions and hardware, added to those it ran on before.
          validation: the fingerprint of the validation set. That may change, as where a damaged
            file was mended; then a line says so.
          say: takes a line, where another process has the folder and this one waits for it.
          interface: what the network takes and gives, as `Interface.to_json` has it.
          evaluation: in what batches the run is evaluated, as `EvalBatches.to_json` has it.

        Returns:
          A lock: the folder is this process's until it is closed, or the process ends.

        Raises:
          ConfigError: it cannot be written, is in use, or belongs to a run that computes something
            else.
        """
        with contextlib.ExitStack() as opened:
            with self._named_in_errors():
                validation = self._validation_of(identity, validation, say)
                self.path.mkdir(parents=True, exist_ok=True)
                lock = opened.enter_context(contextlib.closing(lock_of(self.path)))
                self._await(lock, say)
                about = {"interface": interface or {}, "evaluation": evaluation or {}}
                self._describe(identity, validation, config, machine, about)
                self.checkpoints.mkdir(exist_ok=True)
            opened.pop_all()
        self._lock = lock
        return lock

    def check_held(self) -> None:
        """Checks that the folder is still this process's; only in a bucket it can be lost.

        Raises:
          ConfigError: this process was silent for so long that another one took the folder.
        """
        successor = self._lock.lost_to() if self._lock else ""
        if successor:
            raise ConfigError(
                f"workdir {self.path} was taken over by {successor}, for this process could not "
                "renew its lock there in time; it ends here"
            )

    def _describe(
        self,
        identity: dict[str, Any],
        validation: str,
        config: dict[str, Any],
        machine: dict[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        described = {"run": identity, "validation_set": validation, "config": config, **about}
        text = json.dumps(described, indent=2)
        replace_file(self.config, text + "\n")
        try:
            machines = json.loads(self.machine.read_text()) if self.machine.exists() else []
            if not isinstance(machines, list):
                raise ValueError("not a list")
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{self.machine} is damaged; mend or remove it") from error
        if not machines or machines[-1] != machine:
            machines.append(machine)
        replace_file(self.machine, json.dumps(machines, indent=2) + "\n")

    def _await(self, lock: Lock, say: Callable[[str], None]) -> None:
        """Waits until the lock is this process's."""
        until = time.monotonic() + LOCK_SECONDS
        while holder := lock.take():
            if time.monotonic() > until:
                raise ConfigError(
                    f"workdir {self.path} is in use by {holder}; end that or choose another "
                    "--workdir"
                )
            say(f"waits for workdir {self.path}, which is in use by {holder}")
            say = _silent
            time.sleep(0.5)

    def holds_updates(self) -> bool:
        """Tells whether a run got anywhere: one that did not leaves the folder to the next."""
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return saved or (self.metrics.is_file() and self.metrics.stat().st_size > 0)

    def _holds_evaluations(self) -> bool:
        return self.metrics.is_file() and b'"val_' in self.metrics.read_bytes()

    def check_owner(self, identity: Mapping[str, Any]) -> None:
        """Checks, before much is done for a run, that the folder is not another one's.

        Raises:
          ConfigError: it is.
        """
        with self._named_in_errors():
            self._owner_of(identity)

    @contextlib.contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        """Makes a line of what the operating system has against the folder."""
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"workdir {self.path} cannot be written ({error.strerror or error}); "
                "choose another --workdir"
            ) from error

    def _owner_of(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Reads what is here of this run; {} where nothing is.

        Raises:
          ConfigError: it is another run's.
        """
        if not self.config.is_file() or not self.holds_updates():
            return {}
        try:
            there: dict[str, Any] = json.loads(self.config.read_text())
            owner = dict(there["run"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{self.config} is not a run's config; choose another --workdir, or remove it: "
                "checkpoints know whose they are"
            ) from error
        differ = identity_differences(owner, json.loads(json.dumps(identity)))
        if differ:
            anyhow = "; code_may_differ=True resumes with other code" if "code." in differ else ""
            raise ConfigError(
                f"workdir {self.path} holds a run that differs in {differ}; "
                f"choose another --workdir or set these back{anyhow}"
            )
        return there

    def _validation_of(
        self, identity: Mapping[str, Any], validation: str, say: Callable[[str], None]
    ) -> str:
        """Finds the validation set of the evaluations here, and says where it is another.

        Raises:
          ConfigError: the folder is another run's.
        """
        there = self._owner_of(identity).get("validation_set")
        if there in (None, validation) or not self._holds_evaluations():
            return validation
        say("the validation set is not that of the evaluations before: compare them with care")
        return str(there)


def _process_index() -> int:
    # What else this room knows is read before jax is, which takes its time.
    import jax

    return jax.process_index()


def _silent(text: str) -> None:
    """Says nothing, for it was said already."""
