"""ImageNet (ILSVRC2012) as downloaded: its tars, read without unpacking, and the ground truth.

Labels are the usual ones: the synsets of the training images, sorted.
"""

import collections
import pathlib
import tarfile

from lbsgd.data.sources.archive import ArchiveSource, archive_splits, read_archive
from lbsgd.data.sources.files import File, Files
from lbsgd.data.sources.folder import split_folders
from lbsgd.data.sources.ground_truth import IMAGE, read_ground_truth
from lbsgd.data.sources.listing import normalize_path
from lbsgd.system.errors import ConfigError

TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
# Files beside the validation images that may hold their classes; the first that exists is read.
GROUND_TRUTHS = (
    DEVKIT,
    "ILSVRC2012_devkit_t12.tar",
    "ILSVRC2012_devkit_t12",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
)
# Their names on the download page of ILSVRC2012 at image-net.org.
CALLED = {
    TARS["train"]: "Training images (Task 1 & 2)",
    TARS["validation"]: "Validation images (all tasks)",
    DEVKIT: "Development kit (Task 1 & 2)",
}
# Images and classes of the complete data set.
WHOLE = {"train": (1_281_167, 1000), "validation": (50_000, 1000)}


def is_download(path: pathlib.Path) -> bool:
    """Returns whether a path is one of the tars, or a folder with one that is not all unpacked."""
    if path.is_dir():
        return any((path / name).exists() for name in TARS.values()) and len(
            split_folders(path)
        ) < len(TARS)
    return path.name == TARS["train"] or _is_validation(path)


def _is_validation(path: pathlib.Path) -> bool:
    """Returns whether a tar begins with a validation image that is not in a folder."""
    try:
        with tarfile.open(path, "r:") as tar:
            for _ in range(3):  # folders come first
                member = tar.next()
                if member is not None and member.isreg():
                    return bool(IMAGE.fullmatch(normalize_path(member.name)))
    except Exception:  # not a tar, or damaged: reading it will raise the error
        return False
    return False


def imagenet_splits(
    path: pathlib.Path,
    split: str | None,
    classes: tuple[str, ...] = (),
    ground_truth: pathlib.Path | None = None,
) -> dict[str, ArchiveSource]:
    """Opens the splits "train" and "validation" of a download.

    If the training tar lacks classes, the validation images of these are left out.

    Args:
      path: a folder with the tars, or one of them.
      split: the split that is wanted; None for both splits of a folder.
      classes: of the training split, if that is already prepared.
      ground_truth: of the validation images; by default a file beside them.

    Raises:
      ConfigError: a file is missing, or not as it should be.
    """
    root, tars = path, {name: path / file for name, file in TARS.items()}
    if not path.is_dir():
        only = "validation" if _is_validation(path) else "train"
        root, tars = path.parent, {only: path}
        if split not in (None, only):
            raise ConfigError(f"{path} has no {split} split, only {only}")
    wanted = {name: tar for name, tar in tars.items() if name == split or not split}
    truth = ground_truth or _find_ground_truth(root)
    _check_there(root, wanted, truth)
    found: dict[str, ArchiveSource] = {}
    if "train" in wanted:
        found["train"] = archive_splits(wanted["train"])["train"]
        classes = found["train"].classes
    if "validation" in wanted and truth:
        if not classes and (root / TARS["train"]).exists():
            classes = archive_splits(root / TARS["train"])["train"].classes
        found["validation"] = _validation(wanted["validation"], truth, classes)
    for name, source in found.items():
        source.notes += _note_missing(name, source)
    return found


def _find_ground_truth(root: pathlib.Path) -> pathlib.Path | None:
    return next((root / name for name in GROUND_TRUTHS if (root / name).exists()), None)


def _check_there(
    root: pathlib.Path, wanted: dict[str, pathlib.Path], truth: pathlib.Path | None
) -> None:
    """Raises ConfigError if files are missing; it names them and says where to find them."""
    missing = [tar.name for tar in wanted.values() if not tar.exists()]
    if "validation" in wanted and not truth:
        missing.append(DEVKIT)
    if not missing:
        return
    where = ", ".join(f"{name} ({CALLED.get(name, 'yours')})" for name in missing)
    text = f"{root} has no {where}; image-net.org's download page of ILSVRC2012 has it"
    if DEVKIT in missing:
        text += ", or give --ground_truth a list of the validation images' synsets"
    there = [name for name, tar in wanted.items() if tar.name not in missing]
    if "train" in there:
        text += "; --split train takes what is there"
    raise ConfigError(text)


def _validation(tar: pathlib.Path, truth: pathlib.Path, classes: tuple[str, ...]) -> ArchiveSource:
    """Opens the validation images in the order of classes and names, as if in folders by class."""
    listing, synsets = read_archive(tar), read_ground_truth(truth)
    left_out: collections.Counter[str] = collections.Counter()
    found: dict[str, list[File]] = {}
    for path, file in listing.files.items():
        name = path.rsplit("/", 1)[-1]
        image = IMAGE.fullmatch(name)
        synset = synsets.get(int(image[1])) if image else None
        if image and not synset:
            raise ConfigError(f"{truth} has no class of {name}; does it belong to these images?")
        if not synset:
            left_out["other images"] += 1
        elif classes and synset not in classes:
            left_out["images of classes that are not trained on"] += 1
        else:
            found.setdefault(synset, []).append(file._replace(path=f"{synset}/{name}"))
    return ArchiveSource(listing, Files(found, classes, tar, left_out), "val/")


def _note_missing(split: str, source: ArchiveSource) -> tuple[str, ...]:
    """Returns a note if a split is not complete."""
    images, classes = WHOLE[split]
    if (len(source), len(source.classes)) == (images, classes):
        return ()
    return (f"a part of ILSVRC2012, which has {images:,} images of {classes:,} classes",)
