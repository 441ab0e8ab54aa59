"""Reads the text of a compiled program in which instructions stand in the order that they run.

That is what the compiler of TPUs gives: `jax.stages.Compiled.as_text()`, with `is_scheduled=true`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Of arrays in a layout such as {1,0:T(8,128)S(1)}: not in the chip's large memory (HBM), where
# those without a space are, but in its small one beside the arithmetic, or of numbers alone.
SPACE = re.compile(r"S\(([1-9]\d*)\)")
ARRAY = re.compile(r"\b([a-z]+(\d*)\w*)\[([\d,]*)\](\{[^{}]*\})?")
# What an all-reduce is named that is cut into pieces, which run within other operations.
FUSED_START, FUSED_DONE = "async-collective-start", "async-collective-done"
# These move nothing, or what is counted where it starts.
FREE = {
    *(
        "parameter",
        "constant",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "after-all",
        "partition-id",
    ),
    *("copy-done", "slice-done", "async-done", "all-reduce-done", "opt-barrier", "iota"),
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      name: without the %.
      shape: what it gives, as text.
      opcode: such as "fusion".
      operands: names of instructions.
      rest: of the line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations that it runs."""
        return tuple(re.findall(r"\b(?:calls|body|condition)=%([\w.-]+)", self.rest))

    @property
    def op_name(self) -> str:
        """Names the part of the Python that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


Program = dict[str, list[Instruction]]


def read(text: str) -> tuple[str, Program]:
    """The name of the entry computation, and all computations.

    Raises:
      ValueError: the text is of no scheduled program.
    """
    if "is_scheduled=true" not in text.partition("\n")[0]:
        raise ValueError("the program is not scheduled")
    computations: Program = {}
    entry, inside = "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            found = re.match(r"(ENTRY )?%([\w.-]+) ", line)
            if found:
                inside = computations.setdefault(found[2], [])
                entry = found[2] if found[1] else entry
        elif line.startswith("  ") and inside is not None and " = " in line:
            inside.append(_instruction(line))
    return entry, computations


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    operands = tuple(re.findall(r"%([\w.-]+)", rest[:end]))
    return Instruction(name.removeprefix("%"), shape, opcode, operands, rest[end:])


def _closing(text: str) -> int:
    """Finds where what the first parenthesis opens has ended."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return i + 1
    raise ValueError(f"a parenthesis is open: {text[:80]}")


def arrays(shape: str) -> list[tuple[int, bool]]:
    """Bytes of each array of a shape, and whether it lies in HBM."""
    return [
        (
            math.prod(int(n) for n in dims.split(",") if n) * (int(bits) // 8 if bits else 1),
            not SPACE.search(layout),
        )
        for kind, bits, dims, layout in ARRAY.findall(shape)
        if kind != "token"
    ]


def size(shape: str) -> int:
    """Bytes of all arrays of a shape."""
    return sum(size for size, _ in arrays(shape))


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """An all-reduce: where in the schedule it starts and is done, and its bytes."""

    start: int
    done: int
    bytes: int


def all_reduces(text: str) -> list[AllReduce]:
    """All-reduces of the entry computation, in the order of their start."""
    entry, computations = read(text)
    schedule = computations[entry]
    done_by = {x.operands[0]: i for i, x in enumerate(schedule) if x.opcode.endswith("-done")}
    at = {x.name: i for i, x in enumerate(schedule)}
    found = []
    for i, x in enumerate(schedule):
        if x.opcode == "all-reduce":
            found.append(AllReduce(i, i, size(x.shape)))
        elif x.opcode == "all-reduce-start" or _has(computations, x, "async-start", "all-reduce"):
            done = done_by[x.name]
            found.append(AllReduce(i, done, size(schedule[done].shape)))
        elif x.name.startswith(FUSED_START) and _has(computations, x, "fusion", "all-reduce"):
            done = at[x.name.replace(FUSED_START, FUSED_DONE)]
            found.append(AllReduce(i, done, size(schedule[done].shape)))
    return found


def _has(computations: Program, x: Instruction, caller: str, opcode: str) -> bool:
    """Tells whether an instruction of a kind runs a computation that has one of another."""
    return x.opcode == caller and any(y.opcode == opcode for y in _inner(computations, x))


def _inner(computations: Program, x: Instruction) -> Iterator[Instruction]:
    """An instruction, and those of all computations that it runs."""
    yield x
    for name in x.calls:
        for y in computations[name]:
            yield from _inner(computations, y)


def convolutions(text: str, op_name: str) -> list[int]:
    """Finds where in the schedule convolutions, or products, of a part of the Python stand."""
    entry, computations = read(text)
    return [
        i
        for i, x in enumerate(computations[entry])
        if any(
            y.opcode == "convolution" and op_name in (y.op_name or x.op_name)
            for y in _inner(computations, x)
        )
    ]


def overlap(text: str) -> dict:
    """Measures how much of the all-reduces runs beside the backward pass.

    Returns:
      bytes of all all-reduces, and how many they are; of these bytes the part `early`, whose
      all-reduce starts before the last convolution of the backward pass, and `asynchronous`, with
      other operations between its start and its end.
    """
    entry, computations = read(text)
    found, last = all_reduces(text), max(convolutions(text, "transpose(jvp"))
    computed = {
        i
        for i, x in enumerate(computations[entry])
        if x.opcode in ("fusion", "convolution", "custom-call")
        and not x.name.startswith((FUSED_START, FUSED_DONE))
    }
    besides = [x for x in found if computed & set(range(x.start + 1, x.done))]
    return {
        "all_reduces": len(found),
        "all_reduced_bytes": sum(x.bytes for x in found),
        "early_bytes": sum(x.bytes for x in found if x.start < last),
        "asynchronous_bytes": sum(x.bytes for x in besides),
    }


def moved_bytes(text: str) -> int:
    """Counts bytes that the entry computation reads from HBM and writes to it.

    A fusion is taken to read all of its operands once, and what it hands on in place it neither
    reads nor writes. What lies in the small memory costs what is copied there and back.
    """
    entry, computations = read(text)
    shapes = {x.name: x.shape for x in computations[entry]}
    total = 0
    for x in computations[entry]:
        if x.opcode in FREE or 'custom_call_target="ConcatBitcast"' in x.rest:
            continue
        results, operands = arrays(x.shape), [arrays(shapes[name]) for name in x.operands]
        if x.opcode in ("copy-start", "slice-start"):
            # (to, from, ...) and (from, to, ...), where from is an operand.
            to = results[0] if x.opcode == "copy-start" else results[len(operands)]
            total += to[0] * (to[1] + operands[0][0][1])
            continue
        kept = re.findall(r"\{(\d*)\}: \((\d+), \{\}\)", x.rest)
        passed = {int(output or 0) for output, _ in kept}
        given = {int(operand) for _, operand in kept}
        total += sum(n for i, (n, hbm) in enumerate(results) if hbm and i not in passed)
        for i, of_operand in enumerate(operands):
            total += sum(n for n, hbm in of_operand if hbm and i not in given)
    return total
