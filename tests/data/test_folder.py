"""Folders and tars of images against a walk through them; and what is said where they are wrong."""

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

from lbsgd.config import default_config
from lbsgd.data.decode import CorruptError
from lbsgd.data.folder import FolderSource, folder, tar_splits
from lbsgd.errors import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def image_folder(root: pathlib.Path) -> list[tuple[bytes, str]]:
    """What torchvision's ImageFolder finds, in its order, leaving out what is hidden."""
    found = []
    for name in sorted(path.name for path in root.iterdir() if path.is_dir()):
        for where, _, files in sorted(os.walk(root / name, followlinks=True)):
            hidden = any(part.startswith(".") for part in pathlib.Path(where).parts)
            for file in sorted(files):
                if file.lower().endswith(SUFFIXES) and not file.startswith(".") and not hidden:
                    found.append((pathlib.Path(where, file).read_bytes(), name))
    return found


def data_config(root: pathlib.Path | str):
    config = default_config().data
    config.update({"source": "folder", "dir": str(root)})
    return config


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


@pytest.fixture
def messy(tmp_path) -> pathlib.Path:
    """Folders in folders, names whose order is not that of their paths, and what is no image."""
    files = tree() | below("dog/b-c", tree(2, ("x",))) | below("dog/b", tree(2, ("x", "a")))
    files |= below("dog", tree(1, ("b", "b-c")))
    files |= below("owl", variants())
    files |= {"cat/notes.txt": b"no image", "cat/.hidden.jpg": b"no image", "top.jpg": b"no class"}
    files |= {"cat/.folder/1.jpg": b"hidden", "owl/10.jpg": encoded(picture(99))}
    root = write(tmp_path / "train", files)
    elsewhere = write(tmp_path / "elsewhere", {"1.jpg": encoded(picture(100))})
    (root / "linked").symlink_to(elsewhere)
    (root / "cat/link.jpg").symlink_to(elsewhere / "1.jpg")
    return root


def test_folder_is_that_of_torchvision(messy):
    source = FolderSource(messy)
    assert source.classes == ("cat", "dog", "linked", "owl")
    assert contents(source) == image_folder(messy)
    assert len(source) == 4 + 1 + 4 + 2 + 4 + 2 + 1 + 4 + 9 + 1


def test_name_is_the_path_from_the_split_on(messy):
    source = FolderSource(messy)
    for i in range(len(source)):
        path = messy.parent / source.name(i)
        assert path.read_bytes() == source[i].image


def test_names_of_files_need_not_be_text(tmp_path):
    """They are found and read; what is printed of them is UTF-8."""
    write(tmp_path, {"train/b/1.jpg": encoded(picture(2)), "train/a/2.txt": b""})
    path = os.path.join(os.fsencode(tmp_path), b"train/a/\xff.jpg")
    with open(path, "wb") as file:
        file.write(encoded(picture(1)))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "train", "train")
    for source in (FolderSource(tmp_path / "train"), tar_splits(tmp_path / "x.tar")["train"]):
        assert source[0].image == encoded(picture(1))
        assert source.name(0).encode() == "train/a/\ufffd.jpg".encode()


def test_shape_is_that_of_the_first_image(tmp_path):
    files = {"a/1.jpg": encoded(picture(1, 21, 34), mode="L"), "b/1.jpg": encoded(picture(2))}
    assert FolderSource(write(tmp_path, files)).image_shape == (21, 34, 3)
    (tmp_path / "a/0.jpg").write_bytes(b"damaged")
    assert FolderSource(tmp_path).image_shape == (21, 34, 3)


def test_fingerprint_is_of_the_files_not_of_where_they_are(tmp_path):
    first = write(tmp_path / "first", tree())
    second = shutil.copytree(first, tmp_path / "second")
    before = FolderSource(first).fingerprint
    assert FolderSource(second).fingerprint == before
    assert FolderSource(second, (*CLASSES, "pig")).fingerprint != before
    for change in (
        lambda: (second / "cat/0.jpg").rename(second / "cat/00.jpg"),
        lambda: (second / "cat/1.jpg").write_bytes(b"another size"),
        lambda: (second / "cat/2.jpg").unlink(),
        lambda: (second / "owl").rename(second / "pig"),
    ):
        now = FolderSource(second).fingerprint
        change()
        assert FolderSource(second).fingerprint != now


def test_file_that_cannot_be_read_is_corrupt(tmp_path):
    write(tmp_path, tree())
    (tmp_path / "dog/0.jpg").unlink()
    (tmp_path / "dog/0.jpg").symlink_to(tmp_path / "nowhere")
    source = FolderSource(tmp_path)
    with pytest.raises(CorruptError, match="No such file or directory"):
        source[4]
    assert source.name(4).endswith("/dog/0.jpg")
    assert source[5].label == 1


def test_split_folders_are_preferred_in_turn(tmp_path):
    """val/, then validation/, then test/; a folder without classes does not count."""
    write(tmp_path / "train", tree())
    for number, name in enumerate(("test", "validation", "val")):
        write(tmp_path / name, tree(number + 1))
        assert len(folder(data_config(tmp_path)).validation) == 3 * (number + 1)
    shutil.rmtree(tmp_path / "val")
    write(tmp_path / "val", {"1.jpg": encoded(picture(1))})
    assert len(folder(data_config(tmp_path)).validation) == 6
    assert len(folder(data_config(tmp_path)).train) == 12


def test_labels_of_validation_follow_the_classes_of_training(tmp_path):
    write(tmp_path / "train", tree())
    write(tmp_path / "val", tree(2, ("owl",)) | tree(1, ("dog",)))
    splits = folder(data_config(tmp_path))
    assert splits.validation.classes == splits.train.classes == CLASSES
    assert [splits.validation[i].label for i in range(3)] == [1, 2, 2]


def without_train(root):
    shutil.rmtree(root / "train")


def without_classes(root):
    shutil.rmtree(root / "train")
    write(root / "train", {"1.jpg": encoded(picture(1))})


def without_validation(root):
    shutil.rmtree(root / "val")


def with_an_empty_class(root):
    (root / "train/bat").mkdir()


def with_another_class(root):
    write(root / "val", tree(1, ("pig",)))


def without_a_good_image(root):
    for path in (root / "train").rglob("*.jpg"):
        path.write_bytes(b"no image at all")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is no folder; it must hold train/ and val/"),
        (without_train, "has no train/ with a folder of images for each class"),
        (without_classes, "has no train/ with a folder of images for each class"),
        (without_validation, "has no val/, validation/, test/ with a folder of images for each"),
        (
            with_an_empty_class,
            r"train: the folder of class 'bat' has no images \(what is read ends in .jpg .*; add",
        ),
        (with_another_class, r"val has a class 'pig', which the training split has not"),
        (without_a_good_image, r"not one of the first images is good \(train/owl/3.jpg: "),
    ],
)
def test_folder_that_is_wrong_is_an_error(tmp_path, damage, message):
    root = tmp_path / "set"
    write(root / "train", tree())
    write(root / "val", tree(1))
    damage(root)
    with pytest.raises(ConfigError, match=message) as error:
        folder(data_config(root))
    assert "\n" not in str(error.value)


def test_no_folder_given_is_an_error():
    with pytest.raises(ConfigError, match=r"data.dir='' is no folder"):
        folder(data_config(""))


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
