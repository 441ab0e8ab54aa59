"""Tars of images against the folders that they are made of; and what is said of wrong ones."""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import tarfile

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
    write_tar,
)

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.sources.archive import archive_splits
from lbsgd.data.sources.folder import FolderSource
from lbsgd.system.errors import ConfigError


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tar_is_its_folder(tmp_path, layout, form):
    """Its members lie in any order; names are long in one class where the format can have them."""
    long = "x" * (120 if form != tarfile.USTAR_FORMAT else 20)
    train = tree() | below("owl", variants()) | below(f"dog/{long}", tree(1, ("in",)))
    validation = tree(2, CLASSES[1:])
    names = [name.rstrip("/") for name in LAYOUTS[layout]]
    files = below(names[0], train) | below(names[1], validation)
    files |= {f"{names[0]}/notes.txt": b"", f"{names[0]}/cat/._1.jpg": b"of a Mac"}
    path = write_tar(tmp_path / "set.tar", shuffled(files), format=form)
    found = archive_splits(path)
    assert list(found) == ["train", "validation"]
    root = FolderSource(write(tmp_path / "train", train))
    assert contents(found["train"]) == contents(root)
    assert found["train"].fingerprint == root.fingerprint
    assert found["train"].image_shape == root.image_shape
    assert found["train"].name(0) == f"{names[0].removeprefix('./')}/cat/0.jpg"
    assert found["validation"].classes == CLASSES
    assert len(found["validation"]) == 4
    assert found["validation"][0].label == 1


@pytest.mark.parametrize("around", ["", "set/"])
def test_tar_of_classes_is_one_split(tmp_path, around):
    path = write_tar(tmp_path / "x.tar", {around + name: data for name, data in tree().items()})
    found = archive_splits(path, "validation", (*CLASSES[1:], "cat"))
    assert list(found) == ["validation"]
    assert [found["validation"][i].label for i in (0, 4, 8)] == [2, 0, 1]
    assert archive_splits(path)["train"].classes == CLASSES


def test_names_in_a_tar_need_not_be_text(tmp_path):
    """They are found and read; what is printed of them is UTF-8."""
    name = "train/a/\udcff.jpg"
    files = {name: encoded(picture(1)), "train/b/1.jpg": encoded(picture(2))}
    source = archive_splits(write_tar(tmp_path / "x.tar", files))["train"]
    assert source[0].image == encoded(picture(1))
    assert source.name(0).encode() == "train/a/\ufffd.jpg".encode()


def test_tar_of_one_split_is_that(tmp_path):
    path = write_tar(tmp_path / "x.tar", below("set/val", tree()))
    assert list(archive_splits(path)) == ["validation"]


def test_of_two_members_of_one_name_the_later_counts(tmp_path):
    """As where the tar is unpacked."""
    path = write_tar(tmp_path / "x.tar", tree())
    write_tar(path, {"dog/1.jpg": encoded(picture(50))}, "a")
    source = archive_splits(path)["train"]
    assert len(source) == 12
    assert source[5].image == encoded(picture(50))


def test_threads_read_a_tar_as_one_does(tmp_path):
    source = archive_splits(write_tar(tmp_path / "x.tar", tree(20)))["train"]
    expected = contents(source)
    indices = np.random.default_rng(0).integers(0, len(source), 4000).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.__getitem__, indices))
    assert [example.image for example in found] == [expected[i][0] for i in indices]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_tar_is_an_error_with_the_command_that_helps(tmp_path, kind):
    path = write_tar(tmp_path / f"my set.tar.{kind}", tree(), f"w:{kind}")
    with pytest.raises(
        ConfigError, match="is compressed; it can be read at random after: "
    ) as error:
        archive_splits(path)
    command = str(error.value).split("after: ")[1]
    if shutil.which(command.split()[0]):
        subprocess.run(command, shell=True, check=True)
        assert len(archive_splits(path.with_suffix(""))["train"]) == 12


def no_tar(path):
    path.write_bytes(b"something else" * 1000)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-12_000])  # there are 10,240 bytes of zeros at most


def with_a_damaged_header(path):
    """In the middle; tarfile itself would take it for the end."""
    data = bytearray(path.read_bytes())
    data[data.index(b"dog/2.jpg") + 150] ^= 1
    path.write_bytes(data)


def cut_within_a_header(path):
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"dog/2.jpg") + 100])


def with_links(path):
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("dog/link.jpg")
        member.type, member.linkname = tarfile.LNKTYPE, "dog/1.jpg"
        tar.addfile(member)


def flat(path):
    write_tar(path, {"1.jpg": encoded(picture(1))})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pathlib.Path.unlink, r"cannot read .*x.tar \(No such file or directory\)"),
        (no_tar, "x.tar is not a tar, or it is damaged"),
        (cut_short, r"x.tar is not a tar, or it is damaged \(unexpected end of data\)"),
        (with_a_damaged_header, r"x.tar is not a tar, or it is damaged \(a header is damaged\)"),
        (cut_within_a_header, r"x.tar is not a tar, or it is damaged \(a header is damaged\)"),
        (with_links, "x.tar: dog/link.jpg is a link, a device or sparse; unpack the archive"),
        (flat, "x.tar has no folder of images for each class"),
    ],
)
def test_tar_that_is_wrong_is_an_error(tmp_path, damage, message):
    path = write_tar(tmp_path / "x.tar", tree())
    damage(path)
    with pytest.raises(ConfigError, match=message):
        archive_splits(path)


def test_tar_that_is_cut_while_it_is_read_is_corrupt(tmp_path):
    path = write_tar(tmp_path / "x.tar", tree())
    source = archive_splits(path)["train"]
    os.truncate(path, 1000)
    with pytest.raises(CorruptError, match="cut short"):
        source[11]


def test_tar_of_tars_is_a_folder_of_them(tmp_path):
    """In place; each tar is a class."""
    files = tree() | below("owl/in", tree(1, ("x",))) | {"cat/notes.txt": b""}
    inner = {}
    for name in CLASSES:
        own = {path.partition("/")[2]: d for path, d in files.items() if path.startswith(name)}
        inner[f"{name}.tar"] = write_tar(tmp_path / "inner", own).read_bytes()
    path = write_tar(tmp_path / "x.tar", shuffled(inner) | {"readme.txt": b""})
    source = archive_splits(path)["train"]
    folder = FolderSource(write(tmp_path / "x", files | {"readme.txt": b""}))
    assert contents(source) == contents(folder)
    assert (source.fingerprint, source.notes) == (folder.fingerprint, folder.notes)
    assert source.name(0) == "cat/0.jpg"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda data: data[:-2000],
            r"x.tar: dog.tar is not a tar, or it is damaged \(unexpected end",
        ),
        (lambda data: b"\x1f\x8b" + data[2:], "x.tar: dog.tar is not a tar, or it is damaged"),
        (
            lambda data: data[:100] + b"9" * 8 + data[108:],
            "x.tar: dog.tar is not a tar, or it is damaged",
        ),
    ],
)
def test_damaged_tar_in_a_tar_is_named(tmp_path, damage, says):
    """Also where what is missing of it is there, of the next one."""
    data = write_tar(tmp_path / "inner", {"1.jpg": b"x" * 9000}).read_bytes()[: 512 * 19]
    inner = {"cat.tar": data, "dog.tar": damage(data), "owl.tar": data}
    with pytest.raises(ConfigError, match=says):
        archive_splits(write_tar(tmp_path / "x.tar", inner))


def test_tar_beside_images_is_left_out(tmp_path):
    inner = write_tar(tmp_path / "inner", tree()).read_bytes()
    source = archive_splits(write_tar(tmp_path / "x.tar", tree() | {"dog/old.tar": inner}))["train"]
    assert len(source) == 12
    assert "1 .tar" in source.notes[0]
