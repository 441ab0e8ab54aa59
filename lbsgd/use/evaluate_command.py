"""Evaluates a trained network on its own validation set, or on any images of its classes.

    lbsgd evaluate RUN
    lbsgd evaluate RUN --config.data.source=folder --config.data.dir=DIR

DIR holds a folder of images for each class, or val/ with such folders. Classes are matched by name,
numbered ones by number. Prints loss and errors, the accuracy of each class, and the calibration
error; evaluation.json and pictures go to a folder of their own, and no file of the run is changed.

Exit code 0: done; 2: something to put right, which is said.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER, ConfigError
from lbsgd.system.libraries import set_up_libraries
from lbsgd.system.text import one_line, pluralize
from lbsgd.use import arguments
from lbsgd.use.places import check_place

if TYPE_CHECKING:
    from lbsgd.use.evaluation import Evaluated

# Classes that are printed; of more these are the least accurate.
MOST_SHOWN = 20


def main(argv: Sequence[str]) -> int:
    """Evaluates, and returns the exit code."""
    try:
        words, keys = arguments.split_keys(argv)
        args = _parse(words)
        check_place(args.run)
        set_up_libraries()
        # jax takes its time; mistakes in the arguments need not wait for it.
        from lbsgd.use.evaluation import evaluate

        # What is said must not be taken for the JSON.
        out = sys.stderr if args.json else sys.stdout
        found = evaluate(
            args.run,
            flip=args.flip,
            keys=keys,
            out=args.out,
            say=lambda text: print(text, file=out),
            **arguments.wanted_of(args),
        )
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    print(_as_json(found) if args.json else "\n".join(_lines(found)))
    return EXIT_DONE


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("lbsgd evaluate", __doc__)
    arguments.add_network(parser)
    arguments.add_statistics(parser, "", "those that the run itself is evaluated with")
    arguments.add_flip(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="where to write; by default RUN/evaluations/..."
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, without the confusion matrix"
    )
    arguments.add_keys(parser)
    return parser.parse(argv)


def _as_json(found: "Evaluated") -> str:
    whole = {key: value for key, value in found.to_json().items() if key != "confusion"}
    return json.dumps({**whole, "written": str(found.folder)})


def _lines(found: "Evaluated") -> Iterator[str]:
    about, task = found.about, found.task
    of = f"{about['weights']} weights, {about['statistics']} statistics"
    of += ", flipped too" * about["flip"]
    on = f"{pluralize(found.examples, 'example')} of {about['dataset']['name']}"
    yield f"update {about['update']}, {of}, on {on}:"
    yield "  ".join(
        f"{metric.words or name} {metric.format(found.metrics[name])}"
        for name, metric in task.validation.items()
    )
    if found.tally:
        right = f"{found.tally.right.sum():,} of {pluralize(found.examples, 'example')}"
        yield f"accuracy {found.tally.accuracy:.2f}% ({right})"
        yield from _class_lines(found)
        yield f"expected calibration error {100 * found.tally.ece:.2f}%"
    yield f"written to {found.folder}: {', '.join(found.files)}"


def _class_lines(found: "Evaluated") -> Iterator[str]:
    assert found.tally
    rows = found.tally.by_class(found.classes)
    if len(rows) > MOST_SHOWN:
        yield f"the {MOST_SHOWN} least accurate of {len(rows)} classes:"
        rows = sorted(rows, key=lambda row: row["accuracy"])[:MOST_SHOWN]
    names = [one_line(row["class"]) for row in rows]
    width = max(5, *map(len, names))
    yield f"{'class':<{width}}  examples  accuracy  most often taken for"
    for name, row in zip(names, rows):
        taken = row["most_often_taken_for"]
        most = f"{one_line(taken['class'])} ({taken['examples']})" if taken else ""
        yield f"{name:<{width}}  {row['examples']:>8}  {row['accuracy']:7.2f}%  {most}".rstrip()
