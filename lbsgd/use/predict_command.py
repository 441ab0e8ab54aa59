"""Predicts the classes of images.

    lbsgd predict RUN IMAGE...

An IMAGE is a file, a folder, whose images are found at any depth, or a pattern such as 'x/*.jpg'.
They are decoded, resized and cropped as the run's evaluations do it. Prints a line for each image,
with --json a JSON object.

Exit code 0: done; 1: some images cannot be read, which are named, and the others are predicted;
2: something to put right, which is said.
"""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER, ConfigError
from lbsgd.system.libraries import set_up_libraries
from lbsgd.system.text import one_line
from lbsgd.use import arguments
from lbsgd.use.places import check_place

if TYPE_CHECKING:
    from lbsgd.use.model import Predicted


def main(argv: Sequence[str]) -> int:
    """Predicts, and returns the exit code."""
    problems = 0
    try:
        words, keys = arguments.split_keys(argv)
        args = _parse(words)
        check_place(args.run)
        set_up_libraries()
        # jax takes its time; mistakes in the arguments need not wait for it.
        from lbsgd.use.loading import load
        from lbsgd.use.reading import find_images

        model = load(args.run, keys=keys, say=complain, **arguments.wanted_of(args))
        images = find_images(args.images)
        how = {"flip": args.flip, "batch_size": args.batch_size}
        for one in model.predict_each(images, args.top, **how):
            if one.problem:
                problems += 1
                complain(f"{one.image}: {one.problem}")
            if args.json or not one.problem:
                print(_as_json(one) if args.json else _line(one))
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    return EXIT_FAILED if problems else EXIT_DONE


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("lbsgd predict", __doc__)
    arguments.add_network(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="as above")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes an image; 5")
    arguments.add_statistics(parser, "running", "the first")
    arguments.add_flip(parser)
    parser.add_argument(
        "--batch_size", type=int, default=64, metavar="N", help="images at once; 64"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each image")
    arguments.add_keys(parser)
    return parser.parse(argv)


def _as_json(one: "Predicted") -> str:
    if one.problem:
        return json.dumps({"image": one.image, "error": one.problem})
    found = [
        {"class": p.name, "label": p.label, "probability": p.probability} for p in one.predictions
    ]
    return json.dumps({"image": one.image, "predictions": found})


def _line(one: "Predicted") -> str:
    return "  ".join(
        [one.image, *(f"{100 * p.probability:.2f}% {one_line(p.name)}" for p in one.predictions)]
    )
