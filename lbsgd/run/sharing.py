"""Shares compiled programs among the runs of a process: what is alike is compiled once.

Two runs whose lowered programs are the same text, for the same devices, are compiled to the same:
rows of a sweep that differ in numbers, and all seeds. Nothing else of a run is kept.
"""

import collections
import hashlib
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any

import jax

from lbsgd.system.processes import is_first
from lbsgd.workers.compiler import Options, compile_with

# The sharding of the outputs, or a prefix of their tree of shardings.
Out = Hashable

# Programs that are kept for later runs: the newest. A run has about four.
KEPT = 16
# What a program calls in this process is no part of its text.
_CALLS_BACK = ("callback", "stablehlo.send", "stablehlo.recv")


class Executables:
    """Keeps the newest compiled programs of a process, for any of its threads."""

    def __init__(self, kept: int = KEPT) -> None:
        """Keeps nothing yet."""
        self._most, self._lock = kept, threading.Lock()
        self._said = set[str]()
        self._kept: collections.OrderedDict[Hashable, jax.stages.Compiled] = (
            collections.OrderedDict()
        )

    def compile(
        self,
        lowered: jax.stages.Lowered,
        out: Out,
        options: Options | None = None,
    ) -> jax.stages.Compiled:
        """Compiles a program, or takes what the same one was compiled to.

        Args:
          lowered: of a function that is jitted with `keep_unused`: which of its arguments a program
            takes is no part of its text.
          out: where its outputs are, a tree of shardings, for the text does not say which devices
            these are.
          options: for the compiler; of those that it does not take, a line is printed once.
        """
        text = lowered.as_text()
        if any(word in text for word in _CALLS_BACK):
            return self._compile(lowered, options)
        key = _key(lowered, text, out, options)
        with self._lock:
            found = self._kept.get(key)
            if found:
                self._kept.move_to_end(key)
                return found
        # Without the lock: two threads may compile the same once each, and none waits for another.
        compiled = self._compile(lowered, options)
        with self._lock:
            self._kept[key] = compiled
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return compiled

    def _compile(self, lowered: jax.stages.Lowered, options: Options | None) -> jax.stages.Compiled:
        return compile_with(lowered, options or {}, self._say)

    def _say(self, line: str) -> None:
        with self._lock:
            known = line in self._said
            self._said.add(line)
        if not known and is_first():
            print(f"lbsgd: {line}", file=sys.stderr, flush=True)


def _key(lowered: jax.stages.Lowered, text: str, out: Out, options: Options | None) -> Hashable:
    arguments = tuple(map(repr, jax.tree.leaves(lowered.args_info)))
    digest = hashlib.sha256(text.encode()).digest()
    trees = (lowered.in_tree, lowered.out_tree)
    where = tuple(jax.tree.leaves(out))
    return digest, arguments, trees, where, tuple(sorted((options or {}).items()))


SHARED = Executables()


class SharedFunction:
    """Calls a jitted function through what `SHARED` has compiled for its arguments."""

    def __init__(
        self,
        function: Callable[..., Any],
        out: Out,
        options: Options | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          function: pure; of arrays.
          out: where its outputs are: a sharding, or a tree of them.
          options: for the compiler.
        """
        self._jitted = jax.jit(function, out_shardings=out, keep_unused=True)
        self._out, self._options = out, options
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}

    def __call__(self, *args: Any) -> Any:
        """Calls it with arrays, compiled first for each new combination of shapes."""
        leaves, tree = jax.tree.flatten(args)
        kinds = tuple((jax.typeof(x), getattr(x, "sharding", None)) for x in leaves)
        if (kinds, tree) not in self._compiled:
            lowered = self._jitted.lower(*args)
            self._compiled[kinds, tree] = SHARED.compile(lowered, self._out, self._options)
        return self._compiled[kinds, tree](*args)
