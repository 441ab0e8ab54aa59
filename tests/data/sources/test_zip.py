"""Zips of images against the folders that they are made of; hostile ones do no harm."""

import concurrent.futures
import io
import pathlib
import random
import stat
import struct
import warnings
import zipfile

import numpy as np
import pytest
from image_files import (
    CLASSES,
    LAYOUTS,
    below,
    contents,
    encoded,
    picture,
    shuffled,
    tree,
    variants,
    write,
    write_zip,
)

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.sources.archive import archive_splits
from lbsgd.data.sources.folder import MOST_BYTES, FolderSource
from lbsgd.system.errors import ConfigError


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_zip_is_its_folder(tmp_path, layout, method):
    train = tree() | below("owl", variants()) | below("dog/x", tree(1, ("in",)))
    names = [name.rstrip("/") for name in LAYOUTS[layout]]
    files = below(names[0], train) | below(names[1], tree(2, CLASSES[1:]))
    files |= {f"{names[0]}/cat/": b"", "__MACOSX/train/cat/._0.jpg": b"of a Mac"}
    found = archive_splits(write_zip(tmp_path / "set.zip", shuffled(files), method))
    assert list(found) == ["train", "validation"]
    root = FolderSource(write(tmp_path / "train", train))
    assert contents(found["train"]) == contents(root)
    assert found["train"].fingerprint == root.fingerprint
    assert found["train"].image_shape == root.image_shape
    assert found["train"].name(0) == f"{names[0].removeprefix('./')}/cat/0.jpg"
    assert [found["validation"][i].label for i in range(4)] == [1, 1, 2, 2]


def test_zip_with_numbers_of_64_bits(tmp_path, monkeypatch):
    """As one of more than 4 GB, or of more than 65,535 files, has them."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = write_zip(tmp_path / "x.zip", tree())
    assert path.read_bytes().count(b"PK\x06\x06") == 1
    assert contents(archive_splits(path)["train"]) == contents(
        FolderSource(write(tmp_path / "x", tree()))
    )


def test_zip_made_as_a_stream(tmp_path):
    """Its sizes are after the data, not before them."""

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            self.data += bytes(data)
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tree().items():
            archive.writestr(name, data)
    (tmp_path / "x.zip").write_bytes(stream.data)
    source = archive_splits(tmp_path / "x.zip")["train"]
    assert contents(source) == contents(FolderSource(write(tmp_path / "x", tree())))


def test_of_two_files_of_one_name_in_a_zip_the_later_counts(tmp_path):
    with warnings.catch_warnings(action="ignore"):
        path = write_zip(tmp_path / "x.zip", tree())
        write_zip(path, {"dog/1.jpg": encoded(picture(50))})
    source = archive_splits(path)["train"]
    assert len(source) == 12
    assert source[5].image == encoded(picture(50))


def test_zip_with_backslashes(tmp_path):
    """As some programs for Windows write it."""
    path = write_zip(tmp_path / "x.zip", {name.replace("/", "\\"): d for name, d in tree().items()})
    assert archive_splits(path)["train"].classes == CLASSES


def test_threads_read_a_zip_as_one_does(tmp_path):
    path = write_zip(tmp_path / "x.zip", tree(20), zipfile.ZIP_DEFLATED)
    source = archive_splits(path)["train"]
    expected = contents(source)
    indices = np.random.default_rng(0).integers(0, len(source), 4000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.__getitem__, indices))
    assert [example.image for example in found] == [expected[i][0] for i in indices]


def patched(path: pathlib.Path, offset: int, value: bytes, local: int | None = None) -> None:
    """Changes the entry of dog/1.jpg in the directory of a zip, and in its own header."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"dog/1.jpg"))
    data[at + offset : at + offset + len(value)] = value
    if local is not None:
        at = data.rindex(b"PK\x03\x04", 0, data.index(b"dog/1.jpg"))
        data[at + local : at + local + len(value)] = value
    path.write_bytes(data)


def in_zip(name: str, data: bytes = b"", method: int = 0, mode: int = 0):
    """Adds a member of any kind."""

    def add(path):
        info = zipfile.ZipInfo(name)
        info.compress_type, info.external_attr = method, mode << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, data)

    return add


def overlapping(path):
    """The second file lies within the first one."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("cat/0.jpg").header_offset
    patched(path, 42, struct.pack("<I", start + 10))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: patched(path, 8, b"\1\0", 6), "x.zip: dog/1.jpg is encrypted; unpack"),
        (in_zip("dog/x.jpg", b"1" * 99, zipfile.ZIP_BZIP2), "dog/x.jpg is compressed by method 12"),
        (in_zip("dog/x.jpg", b"1" * 99, zipfile.ZIP_LZMA), "dog/x.jpg is compressed by method 14"),
        (in_zip("dog/x.jpg", b"/etc/passwd", 0, stat.S_IFLNK | 0o777), "dog/x.jpg is a link"),
        (in_zip("dog/x.jpg", b"", 0, stat.S_IFCHR | 0o666), "dog/x.jpg is a link or a device"),
        (in_zip("dog/x.jpg", b"", 0, stat.S_IFIFO | 0o666), "dog/x.jpg is a link or a device"),
        (
            lambda path: patched(path, 24, struct.pack("<I", MOST_BYTES + 1)),
            "dog/1.jpg has 1,000,000,001 bytes; leave it out",
        ),
        (overlapping, "x.zip is not a zip, or it is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is not a zip, or it is damaged"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(999)), "is not a zip, or it is damaged"),
        (in_zip("bat/notes.txt"), "class 'bat' has no images"),
    ],
)
def test_zip_that_is_wrong_is_an_error(tmp_path, damage, says):
    path = write_zip(tmp_path / "x.zip", tree())
    damage(path)
    with pytest.raises(ConfigError, match=says) as error:
        archive_splits(path)
    assert "\n" not in str(error.value)


NAMES = [
    "../x/evil.jpg",
    "cat/../../x/evil.jpg",
    "/tmp/x/evil.jpg",
    "\\x\\evil.jpg",
    "C:\\x\\e.jpg",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_zip_that_lead_out_of_it_are_names(tmp_path, name):
    """Nothing is unpacked."""
    files = below("train", tree()) | {name: encoded(picture(1))}
    (tmp_path / "a").mkdir()
    path = write_zip(tmp_path / "a/x.zip", files)
    source = archive_splits(path)["train"]
    assert len(source) == 12
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "x.zip"]


def test_file_in_a_zip_that_is_not_what_was_stored_is_corrupt(tmp_path):
    for number, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
        path = write_zip(tmp_path / f"{number}.zip", tree(), method)
        data = bytearray(path.read_bytes())
        data[data.index(b"dog/1.jpg") + 300] ^= 255
        path.write_bytes(data)
        source = archive_splits(path)["train"]
        with pytest.raises(CorruptError, match=r"is not what was put into the zip|inflated"):
            source[5]
        assert source[6].label == 1


def test_file_that_inflates_to_more_than_it_says_is_corrupt(tmp_path):
    """And no more than it says is made of it."""
    path = write_zip(tmp_path / "x.zip", tree() | {"dog/1.jpg": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    patched(path, 24, struct.pack("<I", 1000))
    with pytest.raises(CorruptError, match="is not what was put into the zip"):
        archive_splits(path)["train"][5]


def test_file_that_would_take_more_memory_than_it_says_is_refused(tmp_path, monkeypatch):
    """Stored in many bytes, of which it says that they unpack to few."""
    path = write_zip(tmp_path / "x.zip", tree() | {"dog/1.jpg": bytes(10**5)})
    patched(path, 24, struct.pack("<I", 1000))
    monkeypatch.setattr("lbsgd.data.sources.listing.MOST_BYTES", 10**4)
    with pytest.raises(ConfigError, match=r"dog/1.jpg has 100,000 bytes; leave it out"):
        archive_splits(path)


def test_zip_damaged_anywhere_is_read_or_refused(tmp_path):
    good = write_zip(tmp_path / "good.zip", tree(2), zipfile.ZIP_DEFLATED).read_bytes()
    draw, seen = random.Random(0), {"read": 0, "refused": 0, "corrupt": 0}
    for _ in range(150):
        data = bytearray(good)
        where = draw.choice([range(len(good)), range(good.index(b"PK\1\2"), len(good))])
        for _ in range(draw.choice([1, 3, 10])):
            data[draw.choice(where)] = draw.randrange(256)
        (tmp_path / "x.zip").write_bytes(data)
        try:
            source = archive_splits(tmp_path / "x.zip")["train"]
            for i in range(len(source)):
                try:
                    seen["read"] += bool(source[i].image)
                except CorruptError:
                    seen["corrupt"] += 1
        except ConfigError:
            seen["refused"] += 1
    assert min(seen.values()) > 0
