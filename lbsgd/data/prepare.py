"""Packs images into lbsgd's own form, and verifies what was packed: `lbsgd prepare`."""

import argparse
import contextlib
import pathlib
import shlex
import time

import ml_collections

from lbsgd.data.images.encode import Encoding
from lbsgd.data.packed.reader import INDEX, SPLITS, Index, packed, read_index, verify_split
from lbsgd.data.packed.writer import SplitJob, write_split
from lbsgd.data.source import Source
from lbsgd.data.sources.archive import archive_splits
from lbsgd.data.sources.arrays import npz, npz_source
from lbsgd.data.sources.folder import folder_splits
from lbsgd.data.sources.imagenet import imagenet_splits, is_download
from lbsgd.system.errors import ConfigError
from lbsgd.system.limits import num_cores
from lbsgd.system.progress import CountProgress
from lbsgd.system.text import pluralize


def open_input(
    path: pathlib.Path,
    split: str | None,
    known: tuple[str, ...] = (),
    ground_truth: pathlib.Path | None = None,
) -> dict[str, Source]:
    """Opens the splits of an input, "train" and "validation", as far as they exist.

    Args:
      path: the input.
      split: the split to use for an input without splits ("train" by default); of an input with
        splits, the one that is wanted.
      known: the classes of the training split, if that is already prepared.
      ground_truth: of the validation images of ImageNet, if it is not beside them.

    Raises:
      ConfigError: the input cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    if is_download(path):
        found: dict[str, Source] = dict(imagenet_splits(path, split, known, ground_truth))
    elif ground_truth:
        raise ConfigError(f"--ground_truth is of ILSVRC2012_img_val.tar, which {path} has not")
    else:
        found = _open_any(path, split or "train", known)
    if split and split not in found:
        raise ConfigError(f"{path} has no {split} split, only {', '.join(found)}")
    return {split: found[split]} if split else found


def _open_any(path: pathlib.Path, alone: str, known: tuple[str, ...]) -> dict[str, Source]:
    if path.suffix == ".npz":
        return {alone: npz_source(path, known if alone != "train" else ())}
    if not path.is_dir():
        return dict(archive_splits(path, alone, known))
    if (path / "dataset_info.json").exists():
        from lbsgd.data.sources.tfds import tfds_splits

        return tfds_splits(path)
    arrays = {split: path / f"{split}.npz" for split in SPLITS if (path / f"{split}.npz").exists()}
    if len(arrays) == 2:
        return npz(ml_collections.ConfigDict({"dir": str(path)}))._asdict()
    if arrays:
        ((split, file),) = arrays.items()
        return {split: npz_source(file, known if split != "train" else ())}
    return dict(folder_splits(path, alone, known))


def prepare(args: argparse.Namespace) -> None:
    """Packs the splits of an input.

    Raises:
      ConfigError: the input cannot be read, or the output cannot be written.
    """
    start, done = time.monotonic(), 0
    train = args.output / "train"
    known = read_index(train).classes if (train / INDEX).exists() else ()
    for split, source in open_input(args.input, args.split, known, args.ground_truth).items():
        for note in source.notes:
            print(f"{split}: {note}")
        progress = CountProgress(f"{split}, images", len(source))
        job = SplitJob(
            source,
            args.output / split,
            f"{args.input.resolve().name}, {split}",
            Encoding(args.max_side, args.short_side, args.quality, args.raw),
            progress,
            skip=args.on_corrupt == "skip",
            threads=args.workers or num_cores(),
        )
        with contextlib.closing(progress):
            index = write_split(job)
        done += progress.advanced
        print(_describe(split, index))
    seconds = time.monotonic() - start
    if done:
        print(f"{done:,} images in {seconds:.1f} s ({done / seconds:,.0f} images/s)")
    else:
        print("nothing was left to do")
    print(_how_to_train(args.output))


def _describe(split: str, index: Index) -> str:
    images, classes = (
        pluralize(index.examples, "image"),
        pluralize(len(index.classes), "class", "classes"),
    )
    shards = pluralize(len(index.shards), "shard")
    text = f"{split}: {images} of {classes}, {index.bytes / 1e6:,.1f} MB in {shards}"
    corrupt = pluralize(len(index.corrupt), "corrupt one")
    return text + (f"; {corrupt} left out" if index.corrupt else "")


def _how_to_train(output: pathlib.Path) -> str:
    missing = [split for split in SPLITS if not (output / split / INDEX).exists()]
    if missing:
        return f"{missing[0]} is still missing: prepare it with --split {missing[0]}"
    # Opened here too, so that an error of the packed set is not first seen in training.
    packed(ml_collections.ConfigDict({"dir": str(output), "crop": "inception"}))
    return (
        "to train with it: lbsgd train --config CONFIG "
        f"--config.data.source=packed --config.data.dir={shlex.quote(str(output))}"
    )


def verify_all(output: pathlib.Path, threads: int) -> None:
    """Verifies the checksums of all splits of a packed set.

    Raises:
      ConfigError: it is damaged, or there is no such set.
    """
    folders = [output / split for split in SPLITS if (output / split).exists()]
    if not folders:
        raise ConfigError(f"{output} is not a packed set: it has neither train/ nor validation/")
    indices = [read_index(folder) for folder in folders]
    progress = CountProgress("verify, bytes", sum(index.bytes for index in indices))
    damage = []
    with contextlib.closing(progress):
        progress.start(0)
        for folder in folders:
            found = verify_split(folder, threads, lambda shard: progress.advance(shard.bytes))
            damage += [f"{folder / shard.file} {shard.reason}" for shard in found]
    if damage:
        raise ConfigError(
            f"damaged: {'; '.join(damage)}; remove the folder of the split, and prepare it again"
        )
    for folder, index in zip(folders, indices):
        print(f"{_describe(folder.name, index)}: whole")
