"""Loads networks, tasks, optimizers and more that a config names as "package.module:name".

    named = load("model.name", "mynet:Net")
    module = named.call({"width": 64}, num_classes=10)

Whatever goes wrong in code that is not lbsgd's becomes a ConfigError of one line, with the file and
the line there.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from lbsgd.system.errors import CodeError, ConfigError, DivergedError, first_line
from lbsgd.system.text import one_line, short_repr

# Arguments that Flax gives every module, both, which are not for users of it to set.
_OF_FLAX = ("parent", "name")
_SHOWN_DIGEST = 12


def is_dotted(name: str) -> bool:
    """Tells whether a name is "package.module:name", and not one of lbsgd's own."""
    return ":" in name


class Named(NamedTuple):
    """Holds what a dotted name stands for.

    Attributes:
      key: of the config, which names it.
      name: "package.module:name".
      value: what it is: a class, or a function.
      file: the path of the source that defines it; "" where there is none.
      line: at which its definition begins; 0 where that is not known.
      digest: SHA-256 of that file, hexadecimal; "" where there is none.
      options: the key of its options; "" where that follows from `key`.
    """

    key: str
    name: str
    value: Callable[..., Any]
    file: str
    line: int
    digest: str
    options: str = ""

    def __str__(self) -> str:
        return f"{self.key}={self.name!r}"

    @property
    def where(self) -> str:
        """Says where it is defined: "mynet.py, line 3"."""
        line = f", line {self.line}" if self.line else ""
        return f"{_shown(self.file)}{line}" if self.file else self.name

    def describe(self) -> str:
        """Describes the source, whose digest is part of a run's identity."""
        digest = self.digest[:_SHOWN_DIGEST]
        return f"{self} of {_shown(self.file)} (SHA-256 {digest}...; not of what that imports)"

    def takes(self, argument: str) -> bool:
        """Tells whether it has an argument of this name."""
        return argument in _parameters(self.value)

    def arguments(self, options: Mapping[str, Any], **offered: Any) -> dict[str, Any]:
        """Collects the options, and those of the offered arguments that it takes.

        Args:
          options: set in the config; they count more than what is offered.

        Raises:
          ConfigError: an option that it does not take, or an argument that it misses.
        """
        given = {k: v for k, v in offered.items() if self.takes(k)}
        arguments = {**given, **options}
        self._check(arguments, options)
        return arguments

    def call(self, options: Mapping[str, Any], **offered: Any) -> Any:
        """Calls it with what `arguments` collects.

        Raises:
          ConfigError: an option that it does not take, an argument that it misses, or an error in
            it.
        """
        arguments = self.arguments(options, **offered)
        with self.guard():
            return self.value(**arguments)

    def bind(self, options: Mapping[str, Any], given: Sequence[str]) -> Callable[..., Any]:
        """Binds the options, to a function that is to be called with what it is given by position.

        Args:
          given: names for messages of what is given, in order.

        Raises:
          ConfigError: an option that it does not take, or an argument that it misses.
        """
        first = list(_parameters(self.value))[: len(given)]
        for name in first:
            if name in options:
                raise self.error(f"is given {name!r}; it is no option")
        self._check({**dict.fromkeys(first), **options}, options)
        return self.guarded(functools.partial(self.value, **options))

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turns an error within into a ConfigError that says where in its file it came up."""
        try:
            yield
        except (ConfigError, DivergedError):
            raise
        except Exception as error:
            raise CodeError(f"{self}: {self._place(error)}: {_said(error)}") from error

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function that it gave, so that its errors are as those of `guard`."""

        def call(*args: Any, **keywords: Any) -> Any:
            with self.guard():
                return function(*args, **keywords)

        return call

    def error(self, text: str) -> ConfigError:
        """Makes the error that says what is wrong with it, and where it is defined."""
        return CodeError(f"{self} ({self.where}) {text}")

    def _check(self, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        parameters = _parameters(self.value)
        known = [
            name
            for name, parameter in parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        anything = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
        for option in options:
            if option not in known and not anything:
                near = difflib.get_close_matches(option[:100], known, 1, 0.0)
                has = f"the nearest that it has is {near[0]!r}" if near else "it has none"
                raise self.error(f"has no option {short_repr(option)}; {has}")
        for name in known:
            if parameters[name].default is inspect.Parameter.empty and name not in arguments:
                options_key = self.options or _options_of(self.key)
                raise self.error(f"needs {name!r}; set {options_key}.{name}")

    def _place(self, error: Exception) -> str:
        """Finds the line of its file where an error came up; else where it is defined."""
        frames = traceback.extract_tb(error.__traceback__)
        inside = [f for f in frames if self.file and os.path.realpath(f.filename) == self.file]
        if inside:
            return f"{_shown(self.file)}, line {inside[-1].lineno}"
        # In something that it imports, or in a library that it has handed something to.
        return self.where


def _options_of(key: str) -> str:
    """Names the key of the options: "model.options" for "model.name"."""
    group = key.rpartition(".")[0]
    return f"{group}.options" if key.endswith(".name") else f"{key}_options"


def _said(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {first_line(error)}")


def _shown(file: str) -> str:
    """Shortens a path within the current folder."""
    inside = os.path.relpath(file)
    return file if inside.startswith(os.pardir) else inside


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a function in C that says nothing of itself
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}
    hidden = _OF_FLAX if all(name in parameters for name in _OF_FLAX) else ()
    return {name: value for name, value in parameters.items() if name not in hidden}


def load(key: str, name: str) -> Named:
    """Loads what `name` stands for, from the current folder or where Python finds its packages.

    Args:
      key: of the config, for messages.
      name: "package.module:name"; the name may have dots too.

    Raises:
      ConfigError: there is no such module or name, it cannot be called, or its file does not run.
    """
    path, _, attribute = name.partition(":")
    parts = [*path.split("."), *attribute.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f'{key} must be a name, or "package.module:name", not {short_repr(name)}')
    value: Any = _import(key, name, path)
    for part in attribute.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part[:100], _public(value), 1, 0.0)
            nearest = f"; the nearest is {near[0]!r}" if near else ""
            raise ConfigError(f"{key}={name!r}: there is no {part!r} in {path}{nearest}")
        value = getattr(value, part)
    if not callable(value):
        raise ConfigError(f"{key}={name!r} is {short_repr(value)}, which cannot be called")
    return locate(key, name, value)


def _import(key: str, name: str, path: str) -> ModuleType:
    # As `python -m` has it, and the command `lbsgd` has not; last, so that it hides nothing.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{key}={name!r}: there is no module {error.name!r} in the current folder, nor "
                "where Python looks (PYTHONPATH)"
            ) from error
        raise _import_failed(key, name, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(key, name, error) from error


def _import_failed(key: str, name: str, error: BaseException) -> ConfigError:
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{_shown(error.filename)}, line {error.lineno}"
        return ConfigError(f"{key}={name!r}: {where}: SyntaxError: {error.msg}")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen")
        and frame.filename != __file__
        and frame.filename != importlib.__file__
    ]
    where = f"{_shown(frames[-1].filename)}, line {frames[-1].lineno}: " if frames else ""
    text = one_line(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return ConfigError(f"{key}={name!r}: {where}{text}")


def _public(value: Any) -> list[str]:
    return [name for name in dir(value) if not name.startswith("_")]


def locate(key: str, name: str, value: Callable[..., Any]) -> Named:
    """Finds the file and the line that define what can be called, wherever that came from."""
    source = value
    while isinstance(source, functools.partial):
        source = source.func
    source = inspect.unwrap(source)
    if not (inspect.isclass(source) or inspect.isroutine(source)):
        source = type(source)
    file, line = "", 0
    with contextlib.suppress(TypeError, OSError):
        file = os.path.realpath(inspect.getsourcefile(source) or "")
        line = inspect.getsourcelines(source)[1]
    digest = ""
    if file and os.path.isfile(file):
        with open(file, "rb") as opened:
            digest = hashlib.sha256(opened.read()).hexdigest()
    return Named(key, name, value, file, line, digest)
