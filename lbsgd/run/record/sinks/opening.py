"""Opens the sinks of a run, and guards the run from them: one that fails is a line."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from lbsgd.config.dotted import Named, locate
from lbsgd.run.sink_names import NamedSink, load_sinks
from lbsgd.system.errors import first_line
from lbsgd.system.files import AnyPath
from lbsgd.system.text import one_line, short_repr

# Takes metrics after so many updates, by name; it may have a method `close`.
Sink = Callable[[int, Mapping[str, float]], None]

# The package that one of lbsgd's own needs, and what installs it.
_NEEDS = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "clu": ("tensorflow", "'lbsgd[clu]'"),
    "wandb": ("wandb", "'lbsgd[wandb]'"),
    "mlflow": ("mlflow", "'lbsgd[mlflow]'"),
}


class Sinks:
    """Passes metrics on to the sinks of a run, to each until it fails."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        folder: AnyPath,
        say: Callable[[str], None],
        on_metrics: Sink | None = None,
    ) -> None:
        """Loads the sinks that a resolved config names; `open` opens them.

        Args:
          folder: the workdir of the run.
          say: takes a line.
          on_metrics: one more, which is not closed.

        Raises:
          ConfigError: there is no such sink, or not with these options.
        """
        self._config, self._folder, self._say = config, folder, say
        self._named, self._open = load_sinks(config), []
        if on_metrics is not None:
            name = getattr(on_metrics, "__qualname__", type(on_metrics).__name__)
            factory = locate("on_metrics", name, on_metrics)
            self._open = [_Guarded(factory, on_metrics, say)]

    def open(self, start: int) -> None:
        """Opens the sinks of a run that resumes after `start` updates."""
        for sink in self._named:
            problem = _missing(sink)
            if problem:
                self._say(problem)
            else:
                offered = {"folder": self._folder, "config": self._config.to_dict(), "start": start}
                self._open.append(_Guarded.make(sink, offered, self._say))

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Passes on metrics after `step` updates, a copy to each sink."""
        for sink in self._open:
            sink(step, dict(values))

    def close(self) -> None:
        """Closes the sinks."""
        for sink in self._open:
            sink.close()


class _Guarded:
    """Guards a sink: its first error is said in a line, then it is closed and not called again."""

    def __init__(
        self, factory: Named, sink: Sink | None, say: Callable[[str], None], *, own: bool = False
    ) -> None:
        self._factory, self._sink, self._say, self._own = factory, sink, say, own
        self._close: Callable[[], None] | None = None

    @classmethod
    def make(
        cls, sink: NamedSink, offered: Mapping[str, Any], say: Callable[[str], None]
    ) -> "_Guarded":
        """Makes a sink by its factory."""
        guarded = cls(sink.factory, None, say, own=sink.own)
        with guarded._errors():
            made = sink.factory.value(**sink.factory.arguments(sink.options, **offered))
            if not callable(made):
                raise TypeError(f"it gives {short_repr(made)}, which takes no metrics")
            guarded._sink, guarded._close = made, getattr(made, "close", None)
        return guarded

    def __call__(self, step: int, values: dict[str, float]) -> None:
        if self._sink is not None:
            with self._errors():
                self._sink(step, values)

    def close(self) -> None:
        """Closes the sink, if it is still open and asks for it."""
        close, self._close = self._close, None
        if close is not None:
            with self._errors():
                close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            # Of users' own the line names the place where it came up.
            with contextlib.nullcontext() if self._own else self._factory.guard():
                yield
        except Exception as error:
            self._sink = None
            text = str(error)
            if not text.startswith(str(self._factory)):
                text = f"{self._factory}: {type(error).__name__}: {first_line(error)}"
            self._say(f"{one_line(text)}; the run continues without it")
            self._say = _silent
            self.close()


def _silent(text: str) -> None:
    """Says nothing, for the sink's first error was said."""


def _missing(sink: NamedSink) -> str:
    """Says which package a sink of lbsgd's own lacks; "" for none."""
    module, install = _NEEDS.get(sink.factory.name, ("", "")) if sink.own else ("", "")
    if not module or _is_installed(module):
        return ""
    return f"{sink.factory} is off: {module} is not installed; pip install {install} turns it on"


def _is_installed(module: str) -> bool:
    """Tells whether a package is there; a folder that only has its name has no origin."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None
