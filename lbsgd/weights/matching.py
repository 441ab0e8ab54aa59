"""Matches stored arrays to the variables of a network, so that each is accounted for.

The names tell whose they are: lbsgd's own, "params/stem_conv/conv/kernel", or torchvision's and
timm's, "conv1.weight", whose layouts are others too.
"""

import fnmatch
import itertools
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from lbsgd.models.resnet import IMAGENET
from lbsgd.system.text import (
    LONGEST_LINE,
    LONGEST_VALUE,
    noun,
    one_line,
    pluralize,
    short_repr,
)
from lbsgd.weights.keys import MISFITS, MISSING, UNEXPECTED, WRONG_SHAPE, WRONG_TYPE
from lbsgd.weights.stored import Entry, UnreadableError
from lbsgd.weights.torchvision import COUNTER, own_shape, torchvision_names

TAKEN, HEAD, NOT_NEEDED = "taken", "head replaced", "not needed"
_FLOATS = ("float64", "float32", "float16", "bfloat16")
# More names than this do not help the reader of a line.
_SHOWN = 3

Shape = tuple[int, ...]
# The axes of an array that are as long as there are outputs, by the array's name.
HeadAxes = Mapping[str, tuple[int, ...]]


class Row(NamedTuple):
    """Accounts for an array.

    Attributes:
      there, here: its names; "" where it is not.
      shape_there, shape_here: as it is stored, and as the network has it; None where it is not.
      what: becomes of it: it is taken, the network's own is drawn instead, or it is left.
    """

    there: str
    here: str
    shape_there: Shape | None
    shape_here: Shape | None
    what: str


class Names(NamedTuple):
    """Whose names the stored arrays have.

    Attributes:
      whose: in words.
      there: the name of each variable there, by the one here.
      of_torch: whether the layouts are torch's.
    """

    whose: str
    there: Mapping[str, str]
    of_torch: bool


def recognize(network: str, there: Collection[str], here: Collection[str]) -> Names:
    """Tells whose names stored arrays have.

    Args:
      network: as `model.name` has it.
      there: the names of the arrays.
      here: the names of the network's variables.

    Raises:
      UnreadableError: nobody's that are known, or those of a network that is another.
    """
    if any(name.startswith("params/") for name in there):
        return Names("lbsgd's names", {name: name for name in here}, False)
    theirs = [torchvision_names(architecture) for architecture in IMAGENET.values()]
    if not set(itertools.chain(*(names.values() for names in theirs))) & set(there):
        shown = ", ".join(short_repr(name) for name in sorted(there)[:_SHOWN])
        raise UnreadableError(
            f"has names ({shown or 'none at all'}) that are neither lbsgd's, as "
            "'params/stem_conv/conv/kernel', nor of torchvision's ResNets, as 'conv1.weight'"
        )
    names = torchvision_names(IMAGENET[network]) if network in IMAGENET else {}
    if names.keys() != set(here):
        raise UnreadableError(
            "has torchvision's names, which has no network like the one here, nor has timm, only "
            f"{', '.join(IMAGENET)} with batch norm and skip connections"
        )
    return Names("torchvision's names", names, True)


def match(
    names: Names,
    there: Mapping[str, Entry],
    here: Mapping[str, Shape],
    head_axes: Callable[[], HeadAxes],
    *,
    other_classes: bool = False,
) -> tuple[Row, ...]:
    """Accounts for all arrays, those of the network first.

    Args:
      names: from `recognize`.
      there: what is stored.
      here: the shapes of the network's variables, by name.
      head_axes: asked where shapes or classes differ.
      other_classes: whether the classes there are known to be others than here, be they as many.
    """
    rows = []
    for variable, shape in here.items():
        name = names.there[variable]
        if name not in there:
            rows.append(Row("", variable, None, shape, MISSING))
            continue
        stored = own_shape(there[name].shape) if names.of_torch else there[name].shape
        what = TAKEN if there[name].dtype in _FLOATS else WRONG_TYPE
        if stored != shape:
            of_head = _differ_within(stored, shape, head_axes().get(variable, ()))
            what = HEAD if of_head else WRONG_SHAPE
        elif other_classes and what == TAKEN and variable in head_axes():
            what = HEAD
        rows.append(Row(name, variable, there[name].shape, shape, what))
    for name in there.keys() - {row.there for row in rows}:
        counts = names.of_torch and name.endswith(COUNTER)
        what = NOT_NEEDED if counts else UNEXPECTED
        rows.append(Row(name, "", there[name].shape, None, what))
    return tuple(rows)


def _differ_within(stored: Shape, shape: Shape, axes: tuple[int, ...]) -> bool:
    """Tells whether shapes differ nowhere but in some axes."""
    differ = [axis for axis, (a, b) in enumerate(zip(stored, shape)) if a != b]
    return len(stored) == len(shape) and set(differ) <= set(axes)


def check_rows(
    rows: Sequence[Row], allow: Sequence[str], advice: Callable[[], str] = lambda: ""
) -> None:
    """Checks that nothing is amiss but what is allowed.

    Args:
      allow: what `init_allow` holds.
      advice: asked where something is: what makes all fit; "" where nobody knows.

    Raises:
      UnreadableError: an array is amiss, or none fits.
    """
    wrong = [row for row in rows if row.what in MISFITS and not _allowed(row, allow)]
    some = any(row.what == TAKEN for row in rows)
    if some and not wrong:
        return
    what_to_do = advice()
    kinds = [kind for kind in MISFITS if any(row.what == kind for row in wrong)]
    if not wrong:
        what = "has no array that fits the network here"
    elif what_to_do:
        what = f"does not fit ({pluralize(len(wrong), 'array')}: {', '.join(kinds)})"
    else:
        allowed = f", or allow it by init_allow={tuple(kinds)!r}"
        what_to_do = "take other weights or another model" + allowed * some
        # Of a line that is too long the end would be cut off, where it says what to do.
        room = LONGEST_LINE - len(f"does not fit: ; {what_to_do}")
        what = f"does not fit: {_list_kinds(wrong, kinds, room)}"
    raise UnreadableError(f"{what}; {what_to_do}" if what_to_do else what)


def _list_kinds(rows: Sequence[Row], kinds: Sequence[str], room: int) -> str:
    """Lists what is amiss, with as many names of each kind as there is room for."""
    for shown in range(_SHOWN, 0, -1):
        listed = "; ".join(f"{kind}: {_listed(rows, kind, shown)}" for kind in kinds)
        if len(listed) <= room:
            return listed
    return textwrap.shorten(listed, max(room, LONGEST_VALUE), placeholder=" ...")


def _allowed(row: Row, allow: Sequence[str]) -> bool:
    names = [name for name in (row.there, row.here) if name]
    return row.what in allow or any(
        fnmatch.fnmatchcase(name, pattern) for name in names for pattern in allow
    )


def _listed(rows: Sequence[Row], what: str, most: int = _SHOWN) -> str:
    """Lists the first of those that something became of, with both shapes where there are two."""
    found = [row for row in rows if row.what == what]
    shown = [one_line(row.there or row.here) + _shapes(row) for row in found[:most]]
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return ", ".join(shown) + more


def _shapes(row: Row) -> str:
    if row.shape_there is None or row.shape_here is None or row.what == WRONG_TYPE:
        return ""
    # As long, whatever the layout.
    if sorted(row.shape_there) == sorted(row.shape_here):
        return ""
    return f" ({row.shape_there} there, {row.shape_here} here)"


def describe_rows(rows: Sequence[Row]) -> list[str]:
    """Sums up what becomes of the arrays: counts, and those that are not taken by name."""
    taken = sum(row.what == TAKEN for row in rows)
    here = sum(bool(row.here) for row in rows)
    counters = sum(row.what == NOT_NEEDED for row in rows)
    spare = f"; {pluralize(counters, 'counter')} of batches not needed" if counters else ""
    lines = [f"{taken:,} of the network's {pluralize(here, 'array')} taken{spare}"]
    for what in (HEAD, *MISFITS):
        number = sum(row.what == what for row in rows)
        if number:
            drawn = ", left out" if what == UNEXPECTED else ", drawn by the seed"
            said = "of the head replaced, for the classes are others" if what == HEAD else what
            arrays = noun(number, "array")
            lines.append(f"{number:,} {arrays} {said}{drawn}: {_listed(rows, what)}")
    return lines


def table_of(rows: Sequence[Row]) -> str:
    """Tables all arrays: both names, both shapes, and what becomes of each."""
    cells = [("what", "there", "shape there", "here", "shape here")]
    for row in rows:
        shapes = ["" if s is None else str(s) for s in (row.shape_there, row.shape_here)]
        cells.append((row.what, one_line(row.there), shapes[0], row.here, shapes[1]))
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells
    )
