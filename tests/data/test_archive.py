"""Archives of images against the folders that they are made of; and what is said of wrong ones."""

import concurrent.futures
import io
import os
import pathlib
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from image_files import CLASSES, below, contents, encoded, picture, tree, variants, write

from lbsgd.data.archive import tar_splits
from lbsgd.data.decode import CorruptError
from lbsgd.data.folder import FolderSource
from lbsgd.errors import ConfigError


def write_tar(path: pathlib.Path, files: dict[str, bytes], mode: str = "w", **options):
    with tarfile.open(path, mode, **options) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def shuffled(files: dict[str, bytes]) -> dict[str, bytes]:
    names = list(files)
    np.random.default_rng(0).shuffle(names)
    return {name: files[name] for name in names}


LAYOUTS = {
    "plain": ("train/", "val/"),
    "dot": ("./train/", "./validation/"),
    "around": ("some/thing/train/", "some/thing/test/"),
}


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
    found = tar_splits(path)
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
    found = tar_splits(path, "validation", (*CLASSES[1:], "cat"))
    assert list(found) == ["validation"]
    assert [found["validation"][i].label for i in (0, 4, 8)] == [2, 0, 1]
    assert tar_splits(path)["train"].classes == CLASSES


def test_names_in_a_tar_need_not_be_text(tmp_path):
    """They are found and read; what is printed of them is UTF-8."""
    name = "train/a/\udcff.jpg"
    source = tar_splits(write_tar(tmp_path / "x.tar", {name: encoded(picture(1))}))["train"]
    assert source[0].image == encoded(picture(1))
    assert source.name(0).encode() == "train/a/\ufffd.jpg".encode()


def test_tar_of_one_split_is_that(tmp_path):
    path = write_tar(tmp_path / "x.tar", below("set/val", tree()))
    assert list(tar_splits(path)) == ["validation"]


def test_of_two_members_of_one_name_the_later_counts(tmp_path):
    """As where the tar is unpacked."""
    path = write_tar(tmp_path / "x.tar", tree())
    write_tar(path, {"dog/1.jpg": encoded(picture(50))}, "a")
    source = tar_splits(path)["train"]
    assert len(source) == 12
    assert source[5].image == encoded(picture(50))


def test_threads_read_a_tar_as_one_does(tmp_path):
    source = tar_splits(write_tar(tmp_path / "x.tar", tree(20)))["train"]
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
        tar_splits(path)
    command = str(error.value).split("after: ")[1]
    if shutil.which(command.split()[0]):
        subprocess.run(command, shell=True, check=True)
        assert len(tar_splits(path.with_suffix(""))["train"]) == 12


def no_tar(path):
    path.write_bytes(b"something else" * 1000)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-12_000])  # there are 10,240 bytes of zeros at most


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
        (no_tar, "x.tar is no tar, or damaged"),
        (cut_short, r"x.tar is no tar, or damaged \(unexpected end of data\)"),
        (with_links, "x.tar: dog/link.jpg is a link, a device or sparse; unpack the tar"),
        (flat, "x.tar has no folder of images for each class"),
    ],
)
def test_tar_that_is_wrong_is_an_error(tmp_path, damage, message):
    path = write_tar(tmp_path / "x.tar", tree())
    damage(path)
    with pytest.raises(ConfigError, match=message):
        tar_splits(path)


def test_tar_that_is_cut_while_it_is_read_is_corrupt(tmp_path):
    path = write_tar(tmp_path / "x.tar", tree())
    source = tar_splits(path)["train"]
    os.truncate(path, 1000)
    with pytest.raises(CorruptError, match="cut short"):
        source[11]
