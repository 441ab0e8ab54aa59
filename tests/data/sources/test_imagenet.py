"""ImageNet's downloads in small, built as the real ones are, against what they are made of."""

import functools
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import tarfile

import numpy as np
import pytest
import scipy.io
from image_files import contents, encoded, picture, write
from preparing import data_config, run
from test_fuzz_inputs import refusal

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.packed.reader import packed
from lbsgd.data.prepare import open_input
from lbsgd.data.sources import ground_truth
from lbsgd.data.sources.folder import FolderSource
from lbsgd.data.sources.ground_truth import read_ground_truth

# By ILSVRC2012_ID, which is not the order of the WNIDs.
LEAVES = {1: "n02119789", 2: "n02100735", 3: "n01440764", 4: "n04552348"}
CLASSES = tuple(sorted(LEAVES.values()))
INNER = {1001: "n00001740", 1002: "n01767661"}
# Of the validation images, in order.
TRUTH = [3, 1, 4, 1, 2, 2, 3]
NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(TRUTH) + 1)]


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@functools.cache
def trained() -> dict[str, bytes]:
    """Training images by class and name."""
    return {
        f"{synset}/{synset}_{number}.JPEG": encoded(picture(10 * label + number, 18 + number))
        for label, synset in LEAVES.items()
        for number in (10026, 3, 117)
    }


@functools.cache
def validated() -> dict[str, bytes]:
    return {name: encoded(picture(100 + i, 21)) for i, name in enumerate(NAMES)}


def train_tar(synsets=CLASSES) -> bytes:
    classes = {
        f"{synset}.tar": tar_of(
            {path.split("/")[1]: d for path, d in trained().items() if path.startswith(synset)}
        )
        for synset in reversed(synsets)
    }
    return tar_of(classes)


def meta() -> bytes:
    """meta.mat with the fields that the devkit's readme lists; the row of ID i is the i-th."""
    fields = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images"
    table = np.zeros((len(LEAVES | INNER), 1), dtype=[(name, "O") for name in fields.split()])
    for row, (number, synset) in enumerate((LEAVES | INNER).items()):
        inner = number > 1000
        children = np.array([[1.0, 2.0]]) if inner else np.zeros((1, 0))
        table[row, 0] = (
            *(np.array([[float(number)]]), synset, "words, of it", "what it is"),
            *(np.array([[2.0 * inner]]), children, np.array([[1.0 * inner]]), np.array([[3.0]])),
        )
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": table}, do_compression=True)
    return stream.getvalue()


def devkit_files() -> dict[str, bytes]:
    root = "ILSVRC2012_devkit_t12"
    return {
        f"{root}/readme.txt": b"this is the devkit",
        f"{root}/data/meta.mat": meta(),
        f"{root}/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{number}\n" for number in TRUTH
        ).encode(),
    }


DOWNLOADS = {
    "ILSVRC2012_img_train.tar": train_tar(),
    "ILSVRC2012_img_val.tar": tar_of(validated()),
    "ILSVRC2012_devkit_t12.tar.gz": tar_of(devkit_files(), "w:gz"),
}


@pytest.fixture
def downloads(tmp_path) -> pathlib.Path:
    return write(tmp_path / "downloads", DOWNLOADS)


def unpacked(tmp_path: pathlib.Path) -> tuple[FolderSource, FolderSource]:
    """Folders as everyone makes of the downloads."""
    root = write(tmp_path / "train", trained())
    sorted_ = {f"{LEAVES[n]}/{name}": validated()[name] for n, name in zip(TRUTH, NAMES)}
    return FolderSource(root), FolderSource(write(tmp_path / "val", sorted_))


def test_downloads_are_what_everyone_unpacks_them_to(downloads, tmp_path, capsys):
    assert run(downloads, tmp_path / "out") == 0
    for ours, theirs in zip(packed(data_config(tmp_path / "out")), unpacked(tmp_path)):
        assert ours.classes == theirs.classes == CLASSES
        assert contents(ours) == contents(theirs)
    said = capsys.readouterr().out
    assert "train: 12 images of 4 classes" in said
    assert "validation: 7 images of 4 classes" in said
    assert "a part of ILSVRC2012, which has 1,281,167 images of 1,000 classes" in said


def test_sources_are_those_of_the_folders_and_read_in_place(downloads, tmp_path):
    before = sorted(downloads.iterdir())
    found = open_input(downloads, None)
    assert list(found) == ["train", "validation"]
    for ours, theirs in zip(found.values(), unpacked(tmp_path)):
        assert ours.fingerprint == theirs.fingerprint
        assert contents(ours) == contents(theirs)
    assert found["train"].name(0) == "n01440764/n01440764_10026.JPEG"
    assert found["validation"].name(0) == "val/n01440764/ILSVRC2012_val_00000001.JPEG"
    assert sorted(downloads.iterdir()) == before


def lists() -> dict[str, str]:
    synsets = [LEAVES[number] for number in TRUTH]
    pairs = list(zip(NAMES, synsets))
    np.random.default_rng(0).shuffle(pairs)
    return {
        "pairs.txt": "".join(f"{name} {synset}\n" for name, synset in pairs),
        "tabs.tsv": "".join(f"{name}\t{synset}\r\n" for name, synset in pairs),
        "paths.txt": "".join(f"val/{synset}/{name}\n" for name, synset in pairs),
        "imagenet_2012_validation_synset_labels.txt": "\n".join(synsets),
        "LOC_val_solution.csv": "ImageId,PredictionString\n"
        + "".join(f"{n[:-5]},{s} 85 1 499 272 {s} 1 2 3 4 \n" for n, s in pairs),
    }


@pytest.mark.parametrize("name", lists())
def test_ground_truth_may_be_a_list(downloads, tmp_path, name):
    (downloads / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    path = write(tmp_path, {name: lists()[name].encode()}) / name
    assert read_ground_truth(path) == {i: LEAVES[n] for i, n in enumerate(TRUTH, 1)}
    found = open_input(downloads, None, (), path)
    assert contents(found["validation"]) == contents(unpacked(tmp_path)[1])
    beside = shutil.copy(path, downloads)
    if name.startswith(("LOC", "imagenet")):
        assert len(open_input(downloads, None)["validation"]) == 7
    else:
        assert "--ground_truth" in refusal(lambda: open_input(downloads, None))
    assert os.path.exists(beside)


def test_labels_are_those_of_training_where_validation_lacks_classes(downloads, tmp_path):
    path = tmp_path / "truth.txt"
    path.write_text("\n".join(max(CLASSES) for _ in TRUTH))
    source = open_input(downloads, None, (), path)["validation"]
    assert {source[i].label for i in range(len(source))} == {len(CLASSES) - 1}


def test_ground_truth_may_be_the_devkit_in_any_form(tmp_path):
    expected = {i: LEAVES[n] for i, n in enumerate(TRUTH, 1)}
    root = write(tmp_path, devkit_files()) / "ILSVRC2012_devkit_t12"
    (tmp_path / "x.tar").write_bytes(tar_of(devkit_files()))
    (tmp_path / "x.tar.gz").write_bytes(tar_of(devkit_files(), "w:gz"))
    numbers = root / "data/ILSVRC2012_validation_ground_truth.txt"
    for path in (root, tmp_path / "x.tar", tmp_path / "x.tar.gz", numbers):
        assert read_ground_truth(path) == expected
    (root / "data/meta.mat").unlink()
    assert "has numbers, whose meaning is in meta.mat" in refusal(
        lambda: read_ground_truth(numbers)
    )


MISSING = {
    "train": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_train.tar (Training images (Task 1 & 2)"),
    "val": ("ILSVRC2012_img_val.tar", "ILSVRC2012_img_val.tar (Validation images (all tasks))"),
    "devkit": ("ILSVRC2012_devkit_t12.tar.gz", "t12.tar.gz (Development kit (Task 1 & 2))"),
}


@pytest.mark.parametrize("which", MISSING)
def test_what_is_missing_is_named_with_where_it_is_found(downloads, tmp_path, which, capsys):
    name, says = MISSING[which]
    (downloads / name).unlink()
    assert run(downloads, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert says in said
    assert "image-net.org's download page of ILSVRC2012 has it" in said
    assert ("--ground_truth" in said) == (which == "devkit")
    assert ("--split train takes what is there" in said) == (which != "train")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    if which != "train":
        assert run(downloads, tmp_path / "out", "--split", "train") == 0


def test_tars_one_by_one_are_those_at_once(downloads, tmp_path, capsys):
    """Also in folders of their own, and under other names; the training comes first, or not."""
    tar, devkit = tmp_path / "v/flat.tar", downloads / "ILSVRC2012_devkit_t12.tar.gz"
    tar.parent.mkdir()
    shutil.copy(downloads / "ILSVRC2012_img_val.tar", tar)
    assert run(downloads, tmp_path / "at once") == 0
    assert run(downloads / "ILSVRC2012_img_train.tar", tmp_path / "a", "--split", "train") == 0
    assert "validation is still missing" in capsys.readouterr().out
    options = ("--split", "validation", "--ground_truth", devkit)
    assert run(tar, tmp_path / "a", *options) == run(tar, tmp_path / "b", *options) == 0
    assert run(downloads, tmp_path / "b", "--split", "train") == 0
    expected = packed(data_config(tmp_path / "at once"))
    for name in "ab":
        found = packed(data_config(tmp_path / name))
        assert [source.fingerprint for source in found] == [s.fingerprint for s in expected]
    assert run(tar, tmp_path / "c") == 2
    assert "v has no ILSVRC2012_devkit_t12.tar.gz" in capsys.readouterr().err
    assert run(tar, tmp_path / "c", "--split", "train") == 2
    assert "flat.tar has no train split, only validation" in capsys.readouterr().err


def test_subset_of_the_classes_takes_its_part_of_the_validation(downloads):
    (downloads / "ILSVRC2012_img_train.tar").write_bytes(train_tar(CLASSES[1:3]))
    for found in (open_input(downloads, None), open_input(downloads, "validation")):
        source = found["validation"]
        assert source.classes == CLASSES[1:3]
        counted = [source[i].label for i in range(len(source))]
        assert counted == [0, 0, 1, 1]  # n02100735 twice, n02119789 twice
        assert "left out: 3 images of classes that are not trained on" in source.notes[0]


def test_stopped_it_goes_on_and_again_there_is_nothing_to_do(downloads, tmp_path, capsys):
    assert run(downloads, tmp_path / "whole") == run(downloads, tmp_path / "out") == 0
    for part in ("train", "validation"):
        index = tmp_path / "out" / part / "index.json"
        made = json.loads(index.read_text())["made"]
        index.unlink()
        (index.parent / "preparing.json").write_text(json.dumps(made))
    capsys.readouterr()
    assert run(downloads, tmp_path / "out") == run(downloads, tmp_path / "out") == 0
    assert "nothing was left to do" in capsys.readouterr().out
    for path in (tmp_path / "whole").rglob("*.*"):
        twin = tmp_path / "out" / path.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == path.read_bytes()


def test_unpacked_folders_beside_the_tars_are_taken(downloads):
    """All is read from them where both splits are there."""
    images = {"a/1.jpg": encoded(picture(1)), "b/1.jpg": encoded(picture(2))}
    write(downloads / "train", images)
    assert len(open_input(downloads, None)["train"]) == 12
    write(downloads / "val", images)
    assert len(open_input(downloads, None)["train"]) == 2


def test_validation_images_in_folders_of_classes_are_any_images(tmp_path):
    """As Imagenette has some, in both of its splits."""
    names = [f"{LEAVES[n]}/{name}" for n, name in zip(TRUTH, NAMES)]
    images = {f"train/{name}": data for name, data in zip(names, validated().values())}
    (tmp_path / "x.tar").write_bytes(tar_of(images))
    found = open_input(tmp_path / "x.tar", None)
    assert list(found) == ["train"]
    assert found["train"].classes == CLASSES


def test_ground_truth_of_what_is_no_imagenet_is_an_error(tmp_path, capsys):
    write(tmp_path / "x", trained())
    assert run(tmp_path / "x", tmp_path / "out", "--ground_truth", "list.txt") == 2
    assert "--ground_truth is of ILSVRC2012_img_val.tar" in capsys.readouterr().err


def devkit(numbers: bytes | None = None, mat: bytes | None = None, **more: bytes) -> bytes:
    files = devkit_files()
    if numbers is not None:
        files["ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"] = numbers
    if mat is not None:
        files["ILSVRC2012_devkit_t12/data/meta.mat"] = mat
    return tar_of(files | more, "w:gz")


def other_mat(**variables) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables)
    return stream.getvalue()


def linked() -> bytes:
    """The devkit's files are links to others."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in devkit_files():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "has no synsets of images"),
        (b"a,b\n", "has no synsets of images"),
        (
            devkit(b"3\n1\n"),
            "has no class of ILSVRC2012_val_00000003.JPEG; does it belong to these",
        ),
        (devkit(b"3\n1\n77\n"), "image 3 has the number '77', which is not a class of meta.mat"),
        (devkit(b"3\n1001\n"), "image 2 has the number '1001', which is not a class of meta.mat"),
        (devkit(b"3\n" + b"9" * 5000), "image 2 has the number"),
        (devkit(b"3\n-1\n"), "image 2 has the number '-1'"),
        (devkit(b"3\n\xff\n"), "image 2 has the number"),
        (devkit(mat=b""), "meta.mat is damaged"),
        (devkit(mat=meta()[:300]), "meta.mat is damaged"),
        (devkit(mat=b"\x80\x04cposix\nsystem\n."), "meta.mat is damaged"),
        (devkit(mat=other_mat(x=3)), "meta.mat is damaged"),
        (devkit(mat=other_mat(synsets=3)), "meta.mat is damaged"),
        (
            devkit(mat=other_mat(synsets={"ILSVRC2012_ID": 1, "WNID": "../x", "num_children": 0})),
            "meta.mat is damaged .*[.][.]/x.* for a synset",
        ),
        (devkit()[:500], "is not a devkit, or it is damaged|has no .* synsets"),
        (tar_of({"a/readme.txt": b""}, "w:gz"), "is not a devkit of ILSVRC2012"),
        (linked(), "is not a devkit of ILSVRC2012"),
        (b"ILSVRC2012_val_00000001.JPEG 65\n", "line 1: .* is neither an image"),
        (b"n01440764 tench, Tinca tinca\nn02119789 kit fox\n", "line 2: .* is neither an image"),
        (b"n01440764\nn02119789\n", "has no class of ILSVRC2012_val_00000003.JPEG"),
        (
            b"ILSVRC2012_val_00000001 n01440764\nILSVRC2012_val_00000001 n02119789\n",
            "line 2: another synset for the same image",
        ),
        (b"3\n1\n", "has numbers, whose meaning is in meta.mat of the devkit"),
    ],
    ids=itertools.count(),  # of the data, which hold a time
)
def test_ground_truth_that_is_none_is_refused(downloads, tmp_path, data, says):
    (tmp_path / "truth").write_bytes(data)
    line = refusal(lambda: open_input(downloads, None, (), tmp_path / "truth"))
    assert re.search(says, line), line


def test_devkit_that_unpacks_to_more_than_any_is_refused(tmp_path, monkeypatch):
    """Without reading on."""
    monkeypatch.setattr(ground_truth, "MOST_BYTES", 10**5)
    (tmp_path / "x.tar.gz").write_bytes(tar_of({"zeros": bytes(10**6)} | devkit_files(), "w:gz"))
    line = refusal(lambda: read_ground_truth(tmp_path / "x.tar.gz"))
    assert "is too large to be the devkit" in line
    (tmp_path / "x.txt").write_bytes(b"n01440764\n" * 10**5)
    assert "is too large" in refusal(lambda: read_ground_truth(tmp_path / "x.txt"))


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_download_that_has_not_ended_is_refused(downloads, name):
    """Cut in the middle of an image; the class is named that it is of."""
    data = DOWNLOADS[name]
    (downloads / name).write_bytes(data[: data.rindex(b"\xff\xd8") + 100])
    line = refusal(lambda: open_input(downloads, None))
    assert f"{name} is not a tar, or it is damaged (unexpected end of data)" in line


def test_damaged_class_is_named(downloads):
    data = bytearray(DOWNLOADS["ILSVRC2012_img_train.tar"])
    at = data.index(b"n02119789_3.JPEG")
    data[at + 124 : at + 130] = b"777777"  # its size, and the checksum no longer fits
    (downloads / "ILSVRC2012_img_train.tar").write_bytes(data)
    line = refusal(lambda: open_input(downloads, None))
    assert "ILSVRC2012_img_train.tar: n02119789.tar is not a tar, or it is damaged" in line


def test_image_that_is_cut_off_later_is_corrupt(downloads):
    source = open_input(downloads, "train")["train"]
    os.truncate(downloads / "ILSVRC2012_img_train.tar", 2000)
    with pytest.raises(CorruptError, match="cut short"):
        source[0]
