"""Compares the network that weights are of with the one here: its keys, its width, its pixels."""

import fractions
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from lbsgd.config.dotted import is_dotted
from lbsgd.models.resnet import named_architecture
from lbsgd.system.text import one_line, short_repr
from lbsgd.weights.keys import WRONG_SHAPE
from lbsgd.weights.matching import HEAD, NOT_NEEDED, TAKEN, HeadAxes, Row
from lbsgd.weights.stored import Pixels, model_keys
from lbsgd.weights.torchvision import own_shape

# The beginning of the names of the stem's kernels, the last of which has the first stage's width.
_STEM = "params/stem_conv"


class Compared(NamedTuple):
    """Holds what is known of the arrays there and here.

    Attributes:
      rows: account for all of them.
      of_torch: whether the layouts there are torch's.
      model: values by key of the network there; none where they are not known.
    """

    rows: Sequence[Row]
    of_torch: bool
    model: Mapping[str, Any]


def advise(config: ml_collections.ConfigDict, compared: Compared, head: HeadAxes) -> str:
    """Says which keys make the network here the one that weights are of; "" where nobody knows.

    Args:
      config: of the run here.
      head: the classifier's arrays, with their axes that follow from the number of classes.
    """
    there = compared.model or _width_there(config, compared, head)
    here = model_keys(config)
    others = [key for key, value in there.items() if value != here[key]]
    if not others:
        return ""
    has, has_here = (
        " and ".join(f"{key}={_word(values[key])}" for key in others) for values in (there, here)
    )
    words = " ".join(f"--config.{key}={_word(there[key])}" for key in others)
    return f"its network has {has}, the one here {has_here}: set {words}"


def _word(value: Any) -> str:
    """Writes a value as a word of a command."""
    if isinstance(value, str):
        return one_line(value)
    return f"{value:g}" if isinstance(value, float) else short_repr(value)


def _width_there(
    config: ml_collections.ConfigDict, compared: Compared, head: HeadAxes
) -> dict[str, Any]:
    """Finds `model.width` of the network there, if nothing else is another."""
    if is_dotted(config.model.name) or not _of_another_width(compared, head):
        return {}
    rows = [row for row in compared.rows if row.here.startswith(_STEM)]
    stem = max(rows, key=lambda row: row.here)
    channels = _shape_there(stem, compared.of_torch)[-1]
    return {"model.width": channels / named_architecture(config.model.name).width}


def _of_another_width(compared: Compared, head: HeadAxes) -> bool:
    """Tells whether all channel counts are others by one factor, and nothing else is amiss."""
    factors = set()
    for row in compared.rows:
        if row.what in (HEAD, NOT_NEEDED) or (row.what == TAKEN and row.here in head):
            continue
        there, here = _shape_there(row, compared.of_torch), row.shape_here or ()
        if row.what != WRONG_SHAPE or len(there) != len(here):
            return False
        pairs = [
            (a, b) for i, (a, b) in enumerate(zip(there, here)) if i not in head.get(row.here, ())
        ]
        factors |= {fractions.Fraction(a, b) for a, b in pairs if a != b}
    return len(factors) == 1


def _shape_there(row: Row, of_torch: bool) -> tuple[int, ...]:
    """Returns the shape there, in our layout."""
    shape = row.shape_there or ()
    return own_shape(shape) if of_torch else shape


def pixels_differ(there: Pixels | None, here: Pixels) -> tuple[str, ...]:
    """Says, in lines, how pixels and images were others for the network there, if that is known."""
    if there is None:
        return ()
    lines = []
    for key in ("mean", "std"):
        values = [_each_channel(getattr(one, key), one.image_shape[2]) for one in (there, here)]
        if values[0] != values[1]:
            said = [", ".join(f"{x:g}" for x in getattr(one, key)) for one in (there, here)]
            lines.append(
                f"their network was trained with data.{key} {said[0]}, and here it is {said[1]}: "
                "it sees other pixels than it learned from"
            )
    if there.image_shape != here.image_shape:
        sizes = ["x".join(map(str, one.image_shape)) for one in (there, here)]
        lines.append(
            f"their network was trained for images of {sizes[0]}, and here they are {sizes[1]}"
        )
    return tuple(lines)


def _each_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values
