"""Estimates the memory of a traced step, without compiling it.

A compiler keeps in memory what its kernels hand to one another. Elementwise operations are fused
into the kernels before and after them, and computed again where that is needed later; so what
counts is what convolutions, matrix products and reductions read and leave behind, from when it is
made until what depends on it is used for the last time.
"""

import collections
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

# Whose operands are read from memory, and are not computed as they are read.
_KERNELS = (
    "conv_general_dilated",
    "dot_general",
    "reduce_window_max",
    "reduce_window_sum",
    "reduce_window",
    "select_and_scatter_add",
    "select_and_gather_add",
    "gather",
    "scatter-add",
    "sort",
    "remat2",  # of `jax.checkpoint`: nothing is fused across its border
)
# Whose results are in memory. All others are elementwise, or only move numbers.
_MADE = (
    *_KERNELS,
    *("reduce_sum", "reduce_max", "reduce_min", "argmax"),
    *("psum", "all_gather", "ppermute", "scan", "while", "cond"),
)


class Peak(NamedTuple):
    """Bytes in memory at once, beside what a step is given.

    Attributes:
      fixed: of arrays with the shape of a parameter: gradients, and what is made of them.
      others: activations, which grow with the lanes.
    """

    fixed: int
    others: int


class _Step(NamedTuple):
    """An equation, with the variables of the program that it stands in."""

    primitive: str
    inputs: list[int]
    outputs: list[int]
    within: Peak


class _Flat:
    """A program without calls, its variables numbered."""

    def __init__(self, closed: core.ClosedJaxpr, parameters: set[tuple[int, ...]]) -> None:
        self._parameters = parameters
        self.steps: list[_Step] = []
        self.shapes: list[Any] = []
        names = self._new(closed.jaxpr.constvars + closed.jaxpr.invars)
        self.given = set(names.values())
        self._add(closed.jaxpr, names)
        self.results = [names[v] for v in closed.jaxpr.outvars if isinstance(v, core.Var)]

    def bytes_of(self, number: int) -> int:
        """Returns how large a variable is."""
        aval = self.shapes[number]
        # A token, which keeps effects in order, has no shape.
        return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "shape") else 0

    def _new(self, variables: Iterable[Any]) -> dict[Any, int]:
        numbers = {}
        for variable in variables:
            numbers[variable] = len(self.shapes)
            self.shapes.append(variable.aval)
        return numbers

    def _add(self, jaxpr: Any, names: dict[Any, int]) -> None:
        for equation in jaxpr.eqns:
            inner = _called(equation)
            if inner is not None:
                if equation.primitive.name in _KERNELS:
                    border = [names[v] for v in equation.invars if isinstance(v, core.Var)]
                    self.steps.append(_Step(equation.primitive.name, border, [], Peak(0, 0)))
                # Inlined, since what is given to a call may be freed within it.
                self._inline(equation, inner, names)
                continue
            # One branch runs, and one pass of a loop at a time: the largest counts, and once.
            inside = (core.ClosedJaxpr(part, ()) for part in _bodies(equation))
            peaks = (peak(part, self._parameters) for part in inside)
            within = max(peaks, key=sum, default=Peak(0, 0))
            inputs = [names[v] for v in equation.invars if isinstance(v, core.Var)]
            names |= self._new(equation.outvars)
            outputs = [names[v] for v in equation.outvars]
            self.steps.append(_Step(equation.primitive.name, inputs, outputs, within))

    def _inline(self, equation: Any, inner: Any, names: dict[Any, int]) -> None:
        inside = self._new(getattr(inner, "constvars", []))
        for variable, value in zip(inner.invars, equation.invars):
            if isinstance(value, core.Var):
                inside[variable] = names[value]
            else:
                # A literal: no step makes its number, so that it never counts.
                inside |= self._new([variable])
        self._add(inner, inside)
        for variable, value in zip(equation.outvars, inner.outvars):
            if isinstance(value, core.Var):
                names[variable] = inside[value]
            else:
                names |= self._new([variable])


def _called(equation: Any) -> Any:
    """Returns the program that an equation calls once, as it is; None for loops and all else."""
    if equation.primitive.name in ("scan", "while", "cond"):
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = equation.params.get(key)
        if found is not None:
            inner = getattr(found, "jaxpr", found)
            if len(inner.invars) == len(equation.invars):
                return inner
    return None


def _bodies(equation: Any) -> Iterator[Any]:
    """Yields the bodies of a loop or of a condition."""
    if equation.primitive.name in ("scan", "while", "cond"):
        yield from core.jaxprs_in_params(equation.params)


def peak(closed: core.ClosedJaxpr, parameters: Iterable[tuple[int, ...]]) -> Peak:
    """Estimates the most memory that a program needs at once, beside what it is given.

    Args:
      closed: as `jax.make_jaxpr` or `Traced.jaxpr` give it; of one device within `shard_map`.
      parameters: shapes of the parameters.
    """
    shapes = set(parameters)
    flat = _Flat(closed, shapes)
    stored = _stored(flat)
    roots: dict[int, frozenset[int]] = {v: frozenset() for v in flat.given}
    born: dict[int, int] = {}
    last: dict[int, int] = {}
    for time, step in enumerate(flat.steps):
        read = frozenset().union(*(roots.get(v, frozenset()) for v in step.inputs))
        for root in read:
            last[root] = time
        for v in step.outputs:
            if v in stored:
                born[v] = last[v] = time
            # What is not stored is computed again at its uses: these keep alive what it is made of.
            roots[v] = frozenset([v]) if v in stored else read
    for v in flat.results:
        for root in roots.get(v, frozenset()):
            # Past the last step: results are not freed.
            last[root] = len(flat.steps)
    return _highest(flat, born, last, shapes)


def _stored(flat: _Flat) -> set[int]:
    """Finds the variables that are in memory: what kernels make, and what they read."""
    stored: set[int] = set()
    for step in flat.steps:
        if step.primitive in _MADE:
            stored |= set(step.outputs)
        if step.primitive in _KERNELS:
            stored |= set(step.inputs)
    # State and minibatch are counted by the caller: they are there in any case.
    return stored - flat.given


def _highest(
    flat: _Flat, born: dict[int, int], last: dict[int, int], shapes: set[tuple[int, ...]]
) -> Peak:
    ends: dict[int, list[int]] = collections.defaultdict(list)
    starts: dict[int, list[int]] = collections.defaultdict(list)
    for v, time in born.items():
        starts[time].append(v)
        ends[last[v]].append(v)
    fixed = others = 0
    highest = Peak(0, 0)
    for time, step in enumerate(flat.steps):
        for v in starts[time]:
            fixed, others = _counted(flat, v, shapes, fixed, others, 1)
        now = Peak(fixed + step.within.fixed, others + step.within.others)
        highest = max(highest, now, key=sum)
        # Freed only now: the operands of a kernel are in memory along with its results.
        for v in ends[time]:
            fixed, others = _counted(flat, v, shapes, fixed, others, -1)
    return highest


def _counted(
    flat: _Flat, v: int, shapes: set[tuple[int, ...]], fixed: int, others: int, sign: int
) -> tuple[int, int]:
    size = sign * flat.bytes_of(v)
    # By shape alone, for a traced program does not say what is a gradient.
    like_parameter = getattr(flat.shapes[v], "shape", None) in shapes
    return (fixed + size, others) if like_parameter else (fixed, others + size)


def bytes_of(shapes: Any) -> int:
    """Counts the bytes of a tree of arrays, or of their shapes."""
    return sum(math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(shapes))
