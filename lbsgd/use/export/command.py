"""Exports the network of a run for other libraries and for servers, and checks what it wrote.

    lbsgd export RUN OUT [--format torchvision,flax,safetensors,stablehlo,onnx]

OUT becomes a folder with a file for each format, interface.json (classes and preprocessing) and
README.md, a model card. Each file is read back, and its outputs are compared with the network's on
images before OUT appears.

Exit code 0: all is there and checked; 1: what was read back differs, and nothing is left; 2: asked
for something that cannot be.
"""

import argparse
from collections.abc import Callable, Sequence

from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER, ConfigError
from lbsgd.system.libraries import set_up_libraries
from lbsgd.system.text import short_repr
from lbsgd.use import arguments
from lbsgd.use.places import check_place

FORMATS = ("torchvision", "flax", "safetensors", "stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def main(argv: Sequence[str]) -> int:
    """Exports, and returns the exit code."""
    try:
        words, keys = arguments.split_keys(argv)
        args = _parse(words)
        check_place(args.run)
        set_up_libraries()
        # jax takes its time; mistakes in the arguments need not wait for it.
        from lbsgd.use.export.checking import FailedError
        from lbsgd.use.export.exporting import export

        try:
            export(args, keys)
        except FailedError as error:
            complain(f"{error}; nothing was exported")
            return EXIT_FAILED
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    return EXIT_DONE


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("lbsgd export", __doc__)
    add = parser.add_argument
    arguments.add_network(parser)
    add("out", metavar="OUT", help="a folder that is not there yet, or empty")
    add(
        "--format",
        type=_words(FORMATS),
        metavar="NAMES",
        help="which files, by comma; by default all that the network allows, but onnx: torchvision "
        "(safetensors in the names of torchvision and timm), flax (msgpack) and safetensors of "
        "lbsgd's names, stablehlo (the program), onnx",
    )
    arguments.add_statistics(parser, "running", "the first")
    add(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="check on these images, files or folders; by default on some of the validation data",
    )
    add("--license", default="", metavar="TEXT", help="the licence that the model card states")
    add(
        "--platforms",
        type=_words(PLATFORMS),
        default=("cpu", "cuda", "tpu"),
        metavar="NAMES",
        help=f"what stablehlo is for, by comma, of {', '.join(PLATFORMS)} (cpu,cuda,tpu)",
    )
    add(
        "--keep_float64",
        action="store_true",
        help="keep the weights of a run in float64 so for torchvision, not as float32",
    )
    arguments.add_keys(parser)
    return parser.parse(argv)


def _words(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Makes what reads words that commas separate, of those that are known."""

    def read(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(text.split(",")))
        wrong = [word for word in words if word not in known]
        if wrong:
            raise argparse.ArgumentTypeError(
                f"{short_repr(wrong[0])} is none of {', '.join(known)}"
            )
        return words

    return read
