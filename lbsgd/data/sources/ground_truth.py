"""Ground truth of ILSVRC2012: the class of each validation image, from its devkit or a list."""

import pathlib
import re
import tarfile

from lbsgd.data.sources.listing import normalize_path
from lbsgd.data.sources.matlab import read_table
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
NUMBERS, SYNSETS = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
# The devkit has 2.5 MB, a list of boxes 3 MB.
MOST_BYTES = 10**8

_NAMED = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")
_SYNSET = re.compile(r"(?<![A-Za-z0-9])n\d{8}(?!\d)")


def read_ground_truth(path: pathlib.Path) -> dict[int, str]:
    """Reads the synset (WNID) of each image, by the number in its name.

    Args:
      path: the devkit, ILSVRC2012_devkit_t12, as a tar (compressed or not) or unpacked; or a list:
        a line for each image with its name and synset, or only the synsets, in order.

    Raises:
      ConfigError: it cannot be read, or is none of these.
    """
    try:
        if path.is_dir():
            path = path / "data" / NUMBERS
        elif tarfile.is_tarfile(path):
            return _of_devkit(_members_of_devkit(path), path)
        text = _read(path)
        if not text.split(b"\n", 1)[0].strip().isdigit():
            return _of_list(text.decode("utf-8", "replace"), path)
        beside = path.with_name(SYNSETS)
        if not beside.exists():
            raise ConfigError(
                f"{path} has numbers, whose meaning is in {SYNSETS} of the devkit; take "
                "the devkit itself, ILSVRC2012_devkit_t12.tar.gz"
            )
        return _of_devkit({NUMBERS: text, SYNSETS: _read(beside)}, path)
    except OSError as error:
        raise ConfigError(
            f"cannot read the ground truth {path} ({error.strerror or error})"
        ) from error


def _read(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path} is too large to be a devkit, or a list of 50,000 images")
    return data


def _members_of_devkit(path: pathlib.Path) -> dict[str, bytes]:
    """Reads the two files of interest from the devkit's tar, by name, as far as they exist."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            while len(found) < 2 and (member := tar.next()) is not None:
                if not 0 <= member.offset_data + member.size <= MOST_BYTES:
                    raise ConfigError(f"{path} is too large to be the devkit")
                name = normalize_path(member.name).rsplit("/", 1)[-1]
                file = tar.extractfile(member) if member.isreg() else None
                if file and name in (NUMBERS, SYNSETS):
                    found[name] = file.read()
    except ConfigError:
        raise
    except Exception as error:  # tarfile and its decoders raise many kinds of errors for damage
        raise ConfigError(
            f"{path} is not a devkit, or it is damaged ({short_repr(error)})"
        ) from error
    return found


def _of_devkit(files: dict[str, bytes], path: pathlib.Path) -> dict[int, str]:
    """Reads the synset of each image from the two files of the devkit."""
    for name in (NUMBERS, SYNSETS):
        if name not in files:
            raise ConfigError(
                f"{path} is not a devkit of ILSVRC2012 (Task 1 & 2): it has no {name}"
            )
    synsets = _synsets(files[SYNSETS], path)
    found = {}
    for number, line in enumerate(files[NUMBERS].split(), 1):
        synset = synsets.get(int(line)) if line.isdigit() and len(line) < 10 else None
        if not synset:
            text = short_repr(line.decode("ascii", "replace"))
            raise ConfigError(
                f"{path}: image {number} has the number {text}, which is not a class of {SYNSETS}"
            )
        found[number] = synset
    return found


def _synsets(data: bytes, path: pathlib.Path) -> dict[int, str]:
    """Reads WNIDs by ILSVRC2012_ID; synsets with children are not classes."""
    fields = ("ILSVRC2012_ID", "WNID", "num_children")
    found: dict[int, str] = {}
    try:
        for number, synset, children in read_table(data, "synsets", fields, MOST_BYTES):
            if not isinstance(synset, str) or not _SYNSET.fullmatch(synset):
                raise ValueError(f"{synset!r} for a synset")
            if not children:
                found[int(number)] = synset
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path}: {SYNSETS} is damaged ({short_repr(error)})") from error
    return found


def _of_list(text: str, path: pathlib.Path) -> dict[int, str]:
    """Reads the synset of each image from lines of text; the first may be a header."""
    found: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        image, synset = _NAMED.search(line), _SYNSET.search(line)
        if synset and (image or synset[0] == line.strip()):
            key = int(image[1]) if image else len(found) + 1
            if found.setdefault(key, synset[0]) != synset[0]:
                raise ConfigError(f"{path}, line {number}: another synset for the same image")
        elif line.strip() and (number > 1 or image):
            raise ConfigError(
                f"{path}, line {number}: {short_repr(line)} is neither an image "
                "(ILSVRC2012_val_00000001.JPEG) and its synset (n01751748) nor a synset alone"
            )
    if not found:
        raise ConfigError(f"{path} has no synsets of images")
    return found
