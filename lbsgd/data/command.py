"""Packs images into lbsgd's own form, verifies what was packed, and makes TFRecord random-access.

    lbsgd prepare INPUT OUTPUT [options]
    lbsgd prepare --verify OUTPUT
    lbsgd prepare --tfrecord FOLDER

Stopped at any moment, the same command resumes where it was. Exit codes: 0 done, 2 a mistake of the
user or damage, 130 stopped by Ctrl-C.

--tfrecord adds ArrayRecord files, which can be read at random, to a dataset of tensorflow-datasets
that is prepared as TFRecord. It does what `tfds convert_format` does, but needs neither TensorFlow
nor Apache Beam. The checksums of the TFRecord files are not looked at.
"""

import argparse
import pathlib
from collections.abc import Sequence

from lbsgd.system.bucket import LIKE_BUCKET
from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USER, ConfigError
from lbsgd.system.limits import num_cores

KINDS = (
    "a folder, a tar or a zip of a folder of images for each class (below train/ and val/, or of "
    "one split), ImageNet's ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar or a folder with "
    "both and ILSVRC2012_devkit_t12.tar.gz, a folder of tensorflow-datasets with "
    "dataset_info.json, train.npz and validation.npz, or one .npz"
)


def main(argv: Sequence[str]) -> int:
    """Packs, verifies or converts, and returns the exit code."""
    try:
        _act(_parse(argv))
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    except KeyboardInterrupt:
        complain("stopped; the same command resumes from here")
        return EXIT_INTERRUPTED
    return EXIT_DONE


def _act(args: argparse.Namespace) -> None:
    # numpy and OpenCV take their time; mistakes in the arguments need not wait for them.
    from lbsgd.data import prepare
    from lbsgd.data.sources import tfrecord

    if args.verify:
        prepare.verify_all(args.verify, args.workers or num_cores())
    elif args.tfrecord:
        try:
            tfrecord.convert(args.tfrecord)
        except OSError as error:
            raise ConfigError(str(error)) from error
    else:
        prepare.prepare(args)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the arguments.

    Raises:
      ConfigError: a mistake in them.
    """
    parser = Parser("lbsgd prepare", __doc__)
    add = parser.add_argument
    add("input", nargs="?", type=_on_disk, help=KINDS)
    add("output", nargs="?", type=_on_disk, help="the folder of the packed set")
    add(
        "--verify",
        type=_on_disk,
        metavar="OUTPUT",
        help="recompute the checksums of this packed set",
    )
    add(
        "--tfrecord",
        type=_on_disk,
        metavar="FOLDER",
        help="make the dataset in this folder, which has dataset_info.json, random-access",
    )
    add(
        "--split",
        choices=("train", "validation"),
        help="which split an input without splits is (train), or the only one to pack of several",
    )
    add(
        "--ground_truth",
        type=pathlib.Path,
        metavar="FILE",
        help="the classes of ILSVRC2012_img_val.tar: the devkit, or a list of images and synsets",
    )
    add("--max_side", type=int, default=0, metavar="N", help="shrink the longer side to N pixels")
    add(
        "--short_side", type=int, default=0, metavar="N", help="shrink the shorter side to N pixels"
    )
    add(
        "--quality",
        type=int,
        default=0,
        metavar="Q",
        help="the quality of JPEGs that are encoded anew, 1 to 100 (90)",
    )
    add("--raw", action="store_true", help="store pixels instead of JPEGs")
    add(
        "--on_corrupt",
        choices=("error", "skip"),
        default="error",
        help="stop at a corrupt image (error), or leave it out (skip)",
    )
    add(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="how many threads pack; one a core by default",
    )
    args = parser.parse(argv)
    _check(args)
    return args


def _on_disk(path: str) -> pathlib.Path:
    """Reads a path of a file or a folder on the disk.

    Raises:
      ArgumentTypeError: it is in a bucket.
    """
    if LIKE_BUCKET.match(path):
        raise argparse.ArgumentTypeError(
            f"{path} is not on a disk; prepare the set on one, and copy it into the bucket"
        )
    return pathlib.Path(path)


def _check(args: argparse.Namespace) -> None:
    wrong, alone = "", args.verify or args.tfrecord
    if args.verify and args.tfrecord:
        wrong = "--verify and --tfrecord exclude each other"
    elif args.verify and args.input:
        wrong = "--verify takes the packed set alone"
    elif args.tfrecord and args.input:
        wrong = "--tfrecord takes the folder of the dataset alone"
    elif not alone and not args.output:
        wrong = "INPUT and OUTPUT are needed, or one of --verify and --tfrecord; --help says more"
    elif args.max_side and args.short_side:
        wrong = "--max_side and --short_side exclude each other"
    elif args.raw and args.quality:
        wrong = "--raw and --quality exclude each other"
    elif min(args.max_side, args.short_side, args.workers) < 0:
        wrong = "numbers must be positive"
    elif not 0 <= args.quality <= 100:
        wrong = f"--quality must be within 1 and 100, not {args.quality}"
    if wrong:
        raise ConfigError(wrong)
