"""Which folders are classes, what is left out, and what a person is told of both."""

import os
import pathlib
import unicodedata

import pytest
from image_files import below, encoded, picture, tree, write

from lbsgd.data import command
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.data.sources.files import EXTENSIONS, kind_left_out
from lbsgd.data.sources.folder import FolderSource, folder
from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError

BMP = encoded(picture(1), "BMP")
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def config(root: pathlib.Path, **keys):
    data = default_config().data
    data.update({"source": "folder", "dir": str(root), "crop": "inception", **keys})
    return data


def in_both(files: dict[str, bytes]) -> dict[str, bytes]:
    return below("train", files) | below("val", files)


LOOSE = {f"{i}.jpg": encoded(picture(i)) for i in range(2)}
ONE = tree(2, ("cat",))
WRONG = {
    "images around the classes": (
        in_both(below("images", tree())),
        "train has the folder images in place of classes, around cat, dog, owl; move what is in .*"
        "/train/images into .*/train$",
    ),
    "the split once more": (
        in_both(below("train", tree())),
        "train has the folder train in place of classes, around cat, dog, owl; move what",
    ),
    "some name around the classes": (
        in_both(below("imagenet", tree())),
        "train has the folder imagenet in place of classes, around cat, dog, owl; move what",
    ),
    "the whole set in each split": (
        in_both(in_both(tree())),
        "train has the folders train, val in place of classes; these are splits: take .*/train ",
    ),
    "the whole set in each split, in a folder": (
        in_both(below("set", in_both(tree()))),
        "train has the folder set in place of classes; the splits are below: take .*/train/set as",
    ),
    "images and their labels": (
        in_both(below("images", LOOSE) | below("labels", LOOSE)),
        "has the folders images, labels in place of classes, with images in them; sort these into",
    ),
    "one class": (
        in_both(ONE),
        "train has images of a single class, 'cat', from which nothing can",
    ),
    "one class, in parts": (
        in_both(below("cat/a", LOOSE)),
        "train has the folder cat in place of classes, around a; move what is in",
    ),
    "validation in a folder": (
        below("train", tree()) | below("val/images", LOOSE),
        "val has the folder images in place of classes, with images in them; sort these",
    ),
    "validation has the classes one further below": (
        below("train", tree()) | below("val/x", tree()),
        "val has the folder x in place of classes, around cat, dog, owl; move what is in",
    ),
    "another class": (
        below("train", tree()) | below("val", tree(1, ("Cat ", "dog"))),
        "val has a class 'Cat ', which the training split does not have, but 'cat'; rename",
    ),
    "a class in two forms": (
        in_both(tree(1, ("dog", NFC, NFD))),
        rf"train has the class '{NFC}' twice, in two Unicode forms .*\('cafe\\u0301' and ",
    ),
    "an empty class": (
        in_both(tree()) | {"train/pig/1.gif": b"", "train/pig/.2.jpg": b""},
        "train: the folder of class 'pig' has no images .*left out: 1 .gif, 1 hidden.*; add some",
    ),
    "nothing but system's": (
        below("train/@eaDir", LOOSE) | below("train/__MACOSX", LOOSE) | below("val", tree()),
        "has no train/ with a folder of images for each class, only train/, val/",
    ),
    "the set further below": (
        below("ILSVRC", in_both(tree())),
        "has no train/ with a folder of images for each class; set data.dir=.*/set/ILSVRC$",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_folders_that_are_no_classes_are_named(tmp_path, name):
    files, message = WRONG[name]
    root = write(tmp_path / "set", files)
    with pytest.raises(ConfigError, match=message) as error:
        folder(config(root))
    assert "\n" not in str(error.value)


def test_a_split_alone_is_a_place_to_look_around(tmp_path):
    root = write(tmp_path / "set", in_both(tree()))
    with pytest.raises(ConfigError, match=r"; set data.dir=.*/set$"):
        folder(config(root / "train"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (below("images", tree()), "in has the folder images in place of classes, around cat, dog"),
        (below("all", in_both(tree())), "the splits are below: take in/all as data.dir (or as INP"),
        (
            below("train", LOOSE) | below("test", LOOSE),
            "folders test, train in place of classes",
        ),
        (ONE, "in has images of a single class, 'cat'"),
    ],
)
def test_prepare_refuses_them_too(tmp_path, monkeypatch, capsys, files, message):
    monkeypatch.chdir(write(tmp_path, below("in", files)))
    assert command.main(["in", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not pathlib.Path("out").exists()


@pytest.mark.parametrize(
    "classes", [("train", "bus", "plane"), ("images", "text"), ("test", "rest"), ("data", "cat")]
)
def test_a_class_among_others_may_be_called_like_a_wrapper(tmp_path, classes):
    """CIFAR-100 has one of trains."""
    root = write(tmp_path, in_both(tree(1, classes)))
    assert folder(config(root)).train.classes == tuple(sorted(classes))


def test_validation_of_one_class_is_told(tmp_path):
    root = write(tmp_path, below("train", tree()) | below("val", ONE))
    train, validation = folder(config(root))
    assert train.notes == ()
    assert validation.notes == ("no examples of 2 of the 3 classes: dog, owl",)


@pytest.mark.parametrize(("train", "val"), [(NFC, NFD), (NFD, NFC)])
def test_the_forms_of_one_name_are_one_class(tmp_path, train, val):
    files = below("train", tree(1, ("dog", train))) | below("val", tree(1, (val, "dog")))
    splits = folder(config(write(tmp_path, files)))
    assert [splits.validation[i].label for i in range(2)] == [0, 1]
    assert splits.validation.classes == splits.train.classes == (train, "dog")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_each_ending_is_read_in_any_case(tmp_path, extension):
    """What is in a file counts, not what it is called."""
    files = {f"a/1{extension}": BMP, f"b/2{extension.upper()}": BMP}
    assert len(FolderSource(write(tmp_path, files))) == 2


LEFT_OUT = {
    "cat/1.gif": b"",
    "cat/deeper/2.GIF": b"",
    "cat/words.txt": b"",
    "cat/README": b"",
    "cat/@eaDir/1.jpg": b"",
    "@eaDir/1.jpg": b"",
    "__MACOSX/cat/._1.jpg": b"",
    ".ipynb_checkpoints/1.jpg": b"",
    "cat/.hidden.jpg": b"",
    "loose.jpg": b"",
}
UNTOLD = {"cat/Thumbs.db": b"", ".DS_Store": b"", "cat/._1.jpg": b"", "dog/desktop.ini": b""}


def test_what_is_left_out_is_counted_by_ending(tmp_path, capsys):
    write(tmp_path / "set", in_both(tree()) | below("train", LEFT_OUT) | below("val", UNTOLD))
    train, validation = folder(config(tmp_path / "set"))
    assert validation.notes == ()
    (note,) = train.notes
    kinds = {"2 .gif", "1 .txt", "1 no ending", "2 @eaDir/", "1 __MACOSX/", "1 hidden",
             "1 .ipynb_checkpoints/", "1 images in no folder of a class"}  # fmt: skip
    assert set(note.removeprefix("left out: ").split(";")[0].split(", ")) == kinds
    assert note.endswith("; what is read ends in " + " ".join(EXTENSIONS))
    assert len(train) == 12
    assert command.main([str(tmp_path / "set"), str(tmp_path / "out")]) == 0
    assert f"train: {note}" in capsys.readouterr().out.splitlines()


def test_a_note_names_few_and_what_a_terminal_can_show(tmp_path):
    files = {f"cat/x.k{i}": b"" for i in range(20)} | {"dog/x.\x1b[31m": b"", "dog/y.\x1b[31m": b""}
    (note,) = FolderSource(write(tmp_path, tree() | files)).notes
    assert "2 .\N{REPLACEMENT CHARACTER}[31m" in note
    assert "13 other kinds" in note
    assert note.isprintable()


def test_kinds_of_what_is_left_out():
    assert kind_left_out("a.tar.gz") == ".gz"
    assert kind_left_out("Thumbs.db") == kind_left_out("._a.jpg") == ""
    assert kind_left_out(".cache", is_folder=True) == ".cache/"


BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), "is corrupt: it is empty"),
    "a link to nowhere": (
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        "is corrupt: it cannot be read",
    ),
    "huge": (lambda path: os.truncate(path, 10**9 + 1), "is corrupt: it is too large"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("split", ["train", "val"])
def test_files_that_cannot_be_images_are_told_at_the_start(tmp_path, split, kind):
    root = write(tmp_path, in_both(tree()))
    damage, message = BROKEN[kind]
    damage(root / split / "dog/2.jpg")
    damage(root / split / "owl/1.jpg")
    with pytest.raises(ConfigError, match=f"^{split}/dog/2.jpg {message}.*one of 2 such.*'skip'"):
        build_sources(config(root))
    assert len(build_sources(config(root, on_corrupt="skip")).validation) == 12
