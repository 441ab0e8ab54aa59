"""Folders of images against a walk through them; and what is said where they are wrong."""

import os
import pathlib
import shutil

import pytest
from image_files import CLASSES, below, contents, encoded, picture, tree, variants, write

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.sources.folder import FolderSource, folder
from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError

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
    source = FolderSource(tmp_path / "train")
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
        (shutil.rmtree, "is not a folder; set --config.data.dir=DIR to one of train/ and val/"),
        (without_train, "has no train/ with a folder of images for each class"),
        (without_classes, "has no train/ with a folder of images for each class"),
        (without_validation, "has no val/, validation/, test/ with a folder of images for each"),
        (
            with_an_empty_class,
            r"train: the folder of class 'bat' has no images \(what is read ends in .jpg .*; add",
        ),
        (with_another_class, r"val has a class 'pig', which the training split does not have"),
        (without_a_good_image, r"none of the first images can be read \(train/owl/3.jpg: "),
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
    with pytest.raises(ConfigError, match=r"data.dir='' is not a folder"):
        folder(data_config(""))


def test_folder_beside_the_splits_that_cannot_be_read_is_none_of_them(tmp_path, monkeypatch):
    """As another user's; root can read any, so the system's answer is made up."""
    write(tmp_path, below("train", tree()) | below("val", tree(1)) | {"private/x": b""})
    scandir, listdir = os.scandir, os.listdir

    def refusing(ask):
        def answer(path="."):
            if "private" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return ask(path)

        return answer

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))
    assert len(folder(data_config(tmp_path)).train) == 12
