"""The folder of a run: whose it is, and what lies where."""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from lbsgd.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Paths of what a run leaves behind.

    Attributes:
      path: the folder.
    """

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        return self.path / "config.json"

    @property
    def machine(self) -> pathlib.Path:
        return self.path / "machine.json"

    @property
    def metrics(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    @property
    def corrupt(self) -> pathlib.Path:
        """Of this process: names of the examples that it could not read."""
        process = jax.process_index()
        return self.path / (f"corrupt_{process}.jsonl" if process else "corrupt.jsonl")

    @property
    def curves(self) -> pathlib.Path:
        return self.path / "curves.png"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> pathlib.Path:
        return self.path / "tensorboard"

    def claim(
        self, identity: dict[str, Any], config: dict[str, Any], machine: dict[str, Any]
    ) -> None:
        """Makes the folder this run's, or checks that it is one already.

        Args:
          identity: what decides the numbers of the run.
          config: all keys of the resolved config.
          machine: versions and hardware, added to those it ran on before.

        Raises:
          ConfigError: it cannot be written, or belongs to a run that computes something else.
        """
        self._check_owner(identity)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"run": identity, "config": config}, indent=2)
            self.config.write_text(text + "\n")
            machines = json.loads(self.machine.read_text()) if self.machine.exists() else []
            if not machines or machines[-1] != machine:
                machines.append(machine)
            self.machine.write_text(json.dumps(machines, indent=2) + "\n")
            self.checkpoints.mkdir(exist_ok=True)
        except ValueError as error:
            raise ConfigError(f"{self.machine} is damaged; mend or remove it") from error
        except OSError as error:
            raise ConfigError(
                f"workdir {self.path} cannot be written ({error.strerror or error}); "
                "choose another --workdir"
            ) from error

    def _holds_updates(self) -> bool:
        """Whether a run got anywhere: one that did not leaves the folder to the next."""
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return saved or (self.metrics.is_file() and self.metrics.stat().st_size > 0)

    def _check_owner(self, identity: dict[str, Any]) -> None:
        if not self.config.is_file() or not self._holds_updates():
            return
        try:
            owner = json.loads(self.config.read_text())["run"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.config} is not a run's config; choose another --workdir"
            ) from error
        identity = json.loads(json.dumps(identity))
        differ = [
            f"{key} ({owner.get(key)} there, {identity.get(key)} here)"
            for key in sorted(owner.keys() | identity.keys())
            if owner.get(key) != identity.get(key)
        ]
        if differ:
            raise ConfigError(
                f"workdir {self.path} holds a run that differs in {', '.join(differ)}; "
                "choose another --workdir or set these back"
            )
