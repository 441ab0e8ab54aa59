"""A packed set that lies within its own input is no part of it."""

import json
import pathlib
import shutil

import pytest
from image_files import CLASSES, below, tree, variants, write
from preparing import data_config, files, run

from lbsgd.data.sources.folder import FolderSource, folder


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    splits = below("train", tree() | below("owl", variants()))
    return write(tmp_path / "images", splits | below("val", tree(3, CLASSES[1:], first=50)))


def stop(out: pathlib.Path, when: str) -> None:
    """Leaves of a set what there is at a moment of its preparation."""
    for split in (out / "train", out / "validation"):
        if when == "folder" or (when == "first split" and split.name == "train"):
            shutil.rmtree(split)
            split.mkdir()
        elif when != "end" and split.exists():
            made = json.loads((split / "index.json").read_text())["made"]
            (split / "preparing.json").write_text(json.dumps(made))
            (split / "index.json").unlink()


@pytest.mark.parametrize("when", ["end", "shards", "first split", "folder"])
@pytest.mark.parametrize(
    "where", ["packed", "train/packed", "train/cat/packed", "test", "train/cat/0/1/packed"]
)
def test_set_within_its_images_is_none_of_them(images, tmp_path, when, where, capsys):
    """Neither a class nor a split, though its preparation was stopped at any moment."""
    assert run(images, tmp_path / "elsewhere") == run(images, images / where) == 0
    stop(images / where, when)
    assert run(images, images / where) == run(images, images / where) == 0
    assert "left out" not in capsys.readouterr().out
    assert files(images / where) == files(tmp_path / "elsewhere")
    assert len(folder(data_config(images)).train) == 21


def test_set_beside_the_classes_is_none_of_them(images, tmp_path):
    """Nor where it was made with other options."""
    root = images / "train"
    assert run(root, root / "packed") == run(root, root / "packed") == 0
    assert run(root, root / "raw", "--raw") == run(root, root / "raw", "--raw") == 0
    deep = root / "a/b/small"
    assert run(root, deep, "--max_side", 9) == run(root, deep, "--max_side", 9) == 0
    assert FolderSource(root).classes == CLASSES


def test_folders_called_train_in_a_class_are_part_of_it(tmp_path):
    """They hold nothing of a packed set."""
    images = tree() | below("dog/train", tree(1, ("x",))) | below("owl/train/y", tree(1, ("z",)))
    root = write(tmp_path, images)
    (root / "cat/validation").mkdir()
    assert len(FolderSource(root)) == 14
