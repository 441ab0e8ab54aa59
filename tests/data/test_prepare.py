"""`lbsgd prepare`: every kind of input, every option, every mistake."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from hanging import HANG_SECONDS
from image_files import (
    CLASSES,
    below,
    contents,
    encoded,
    picture,
    pillow,
    tree,
    truncated,
    variants,
    write,
)
from preparing import data_config, files, run

from lbsgd.data.command import main
from lbsgd.data.images.decode import decode, image_size
from lbsgd.data.images.resize import Box
from lbsgd.data.packed.reader import SPLITS, PackedSource, packed
from lbsgd.data.sources.folder import FolderSource, folder
from lbsgd.run.config import default_config

ROOT = pathlib.Path(__file__).parents[2]
IMAGENETTE = ROOT.parent / "shared/data/imagenette224/imagenette224_subset.tar"


def pack_tar(path: pathlib.Path, root: pathlib.Path, *names: str) -> pathlib.Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(root / name, name)
    return path


def made_of(index: str | bytes) -> dict:
    return json.loads(index)["made"]


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    """`train` of 3 classes, with every kind of file in one; `val` of 2 of the classes."""
    train = tree() | below("owl", variants())
    splits = below("train", train) | below("val", tree(3, CLASSES[1:], first=50))
    return write(tmp_path / "images", splits)


@pytest.fixture
def out(tmp_path) -> pathlib.Path:
    return tmp_path / "out"


def arrays(root: pathlib.Path, **counts: int) -> pathlib.Path:
    """`.npz` files of so many images of 3 classes."""
    root.mkdir()
    for name, count in counts.items():
        pixels = np.stack([picture(count + i, 9, 12) for i in range(count)])
        np.savez(root / f"{name}.npz", images=pixels, labels=np.arange(count) % 3)
    return root


def test_folder_keeps_its_bytes(images, out, capsys):
    assert run(images, out) == 0
    for ours, theirs in zip(packed(data_config(out)), folder(data_config(images))):
        assert contents(ours) == contents(theirs)
        assert ours.classes == theirs.classes == CLASSES
    said = capsys.readouterr()
    assert "train: 21 images of 3 classes" in said.out
    assert "validation: 6 images of 3 classes" in said.out
    assert "27 images in " in said.out
    assert f"--config.data.source=packed --config.data.dir={out}" in said.out
    assert said.err == ""


def test_said_command_line_is_of_keys_that_there_are(images, out, capsys):
    run(images, out)
    flags = [w for w in capsys.readouterr().out.split() if w.startswith("--config.")]
    config = default_config()
    for flag in flags:
        key, _, value = flag.removeprefix("--config.").partition("=")
        config.update_from_flattened_dict({key: value})
    config.data.crop = "inception"
    assert len(packed(config.data).train) == 21


def test_tar_gives_the_same_shards(images, tmp_path, out):
    tar = pack_tar(tmp_path / "images.tar", images, "val", "train")
    assert run(images, out) == run(tar, tmp_path / "of tar") == 0
    ours, theirs = files(out), files(tmp_path / "of tar")
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith("index.json"):
            ours_made, theirs_made = made_of(ours[name]), made_of(theirs[name])
            assert ours_made.pop("input") != theirs_made.pop("input")
            assert ours_made == theirs_made
        else:
            assert ours[name] == theirs[name]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_splits_one_by_one_are_those_at_once(images, tmp_path, out, kind, capsys):
    """The labels of the validation follow the training split that is there already."""
    for split, name in (("train", "train"), ("validation", "val")):
        source = images / name
        if kind == "tar":
            source = pack_tar(tmp_path / f"{split}.tar", images / name, *os.listdir(images / name))
        assert run(source, out, "--split", split) == 0
        said = capsys.readouterr().out
        missing = "validation is still missing: prepare it with --split validation" in said
        assert missing == (split == "train")
    assert [s.classes for s in packed(data_config(out))] == [CLASSES, CLASSES]
    for ours, theirs in zip(packed(data_config(out)), folder(data_config(images))):
        assert contents(ours) == contents(theirs)


def test_validation_before_training_with_other_classes_is_an_error(images, out, capsys):
    assert run(images / "val", out, "--split", "validation") == 0
    assert "train is still missing" in capsys.readouterr().out
    assert run(images / "train", out) == 2
    assert "the classes of train/ and validation/ differ; remove validation/" in (
        capsys.readouterr().err
    )


def test_one_split_of_several(images, out):
    assert run(images, out, "--split", "validation") == 0
    assert [path.name for path in out.iterdir()] == ["validation"]


def test_arrays_become_pixels(tmp_path, out):
    root = arrays(tmp_path / "arrays", train=12, validation=6)
    assert run(root, out) == 0
    for split, count in zip(packed(data_config(out)), (12, 6)):
        assert len(split) == count
        assert split.classes == ("0", "1", "2")
        for i in range(count):
            np.testing.assert_array_equal(split[i].image, picture(count + i, 9, 12))
            assert split[i].label == i % 3


def test_arrays_one_by_one_are_those_at_once(tmp_path, out):
    """From a folder with one file, and from a file of any name."""
    both = arrays(tmp_path / "both", train=12, validation=2)
    assert run(both, tmp_path / "at once") == 0
    assert run(arrays(tmp_path / "arrays", train=12), out) == 0
    file = (both / "validation.npz").rename(tmp_path / "held out.npz")
    assert run(file, out, "--split", "validation") == 0
    assert packed(data_config(out)).validation.classes == ("0", "1", "2")
    ours, theirs = files(out), files(tmp_path / "at once")
    for name in theirs:
        if not name.endswith("index.json"):
            assert ours[name] == theirs[name]


def test_arrays_with_unknown_labels_are_an_error(tmp_path, out, capsys):
    assert run(arrays(tmp_path / "a", train=2) / "train.npz", out) == 0
    later = arrays(tmp_path / "b", validation=3) / "validation.npz"
    assert run(later, out, "--split", "validation") == 2
    assert "validation.npz has a label 2, the training split only 0 to 1" in capsys.readouterr().err


def test_arrays_become_jpegs_where_a_quality_is_given(tmp_path, out):
    assert run(arrays(tmp_path / "arrays", train=3, validation=3), out, "--quality", 95) == 0
    split = packed(data_config(out)).train
    for i in range(3):
        expected = encoded(picture(3 + i, 9, 12), quality=95)
        np.testing.assert_array_equal(pillow(split[i].image), pillow(expected))
    assert split.image_shape == (9, 12, 3)


def test_tfds_keeps_its_bytes(pets, out):
    from lbsgd.data.sources.tfds import tfds_splits

    assert run(pets, out) == 0
    splits = tfds_splits(pets)
    assert [len(split) for split in packed(data_config(out))] == [30, 10]
    for ours, name in zip(packed(data_config(out)), ("train", "validation")):
        assert contents(ours) == contents(splits[name])


def test_raw_pixels_are_those_of_pillow(images, out):
    assert run(images, out, "--raw") == 0
    for ours, theirs in zip(packed(data_config(out)), folder(data_config(images))):
        for i in range(len(theirs)):
            np.testing.assert_array_equal(ours[i].image, pillow(theirs[i].image))
            assert ours[i].label == theirs[i].label


@pytest.mark.parametrize("raw", [(), ("--raw",)])
@pytest.mark.parametrize(("option", "pick"), [("--max_side", max), ("--short_side", min)])
def test_sides_shrink_to_what_is_asked_for(images, out, option, pick, raw):
    """20 to 41 pixels are there; those below 24 stay as they are."""
    assert run(images, out, option, 24, *raw) == 0
    before, after = FolderSource(images / "train"), PackedSource(out / "train")
    shrunk = 0
    for i in range(len(before)):
        image = after[i].image
        sides = image.shape[:2] if raw else image_size(image)
        side = pick(pillow(before[i].image).shape[:2])
        assert pick(sides) == min(24, side)
        shrunk += side > 24
    assert shrunk > 0
    assert after.image_shape[:2] == (image_size if not raw else np.shape)(after[0].image)[:2]


def test_jpegs_that_are_made_decode_from_any_row(images, out):
    """What the restart markers are for: a box is that of the whole image."""
    assert run(images, out, "--quality", 90) == 0
    source = PackedSource(out / "train")
    for i in range(len(source)):
        image = source[i].image
        height, width = image_size(image)
        box = Box(height - 7, 3, 6, width - 5)
        np.testing.assert_array_equal(decode(image, box), decode(image)[-7:-1, 3:-2])


@pytest.fixture
def damaged(images) -> pathlib.Path:
    """Two images are corrupt; one cannot be read at all."""
    (images / "train/dog/2.jpg").write_bytes(truncated())
    (images / "train/owl/0.jpg").write_bytes(b"no image")
    (images / "val/owl/1.jpg").unlink()
    (images / "val/owl/1.jpg").symlink_to("nowhere")
    return images


def test_corrupt_image_is_named(damaged, out, capsys):
    assert run(damaged, out) == 2
    said = capsys.readouterr().err
    assert said.startswith("lbsgd: train/dog/2.jpg is corrupt: the JPEG is cut short; mend it, or")
    assert said.count("\n") == 1
    assert not list(out.rglob("index.json"))


def test_corrupt_images_are_left_out_where_asked_for(damaged, out, capsys):
    assert run(damaged, out, "--on_corrupt", "skip") == 0
    said = capsys.readouterr().out
    assert "left out train/dog/2.jpg: the JPEG is cut short" in said
    assert "train: 19 images of 3 classes" in said
    assert "2 corrupt ones left out" in said
    index = json.loads((out / "train/index.json").read_text())
    assert index["corrupt"] == ["train/dog/2.jpg", "train/owl/0.jpg"]
    assert json.loads((out / "validation/index.json").read_text())["corrupt"] == ["val/owl/1.jpg"]
    for path in ("train/dog/2.jpg", "train/owl/0.jpg", "val/owl/1.jpg"):
        (damaged / path).unlink()
    for ours, theirs in zip(packed(data_config(out)), folder(data_config(damaged))):
        assert contents(ours) == contents(theirs)


@pytest.mark.parametrize("options", [(), ("--max_side", "25"), ("--raw",)])
def test_number_of_workers_changes_nothing(images, tmp_path, options):
    for workers in (1, 2, 5):
        assert run(images, tmp_path / f"{workers}", "--workers", workers, *options) == 0
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "5")


def test_again_there_is_nothing_to_do(images, out, capsys):
    run(images, out)

    def written() -> set[tuple]:
        stats = ((path, path.stat()) for path in out.rglob("*"))
        return {(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats}

    before = written()
    capsys.readouterr()
    assert run(images, out) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert written() == before


def test_other_options_on_a_set_are_an_error(images, out, capsys):
    run(images, out)
    assert run(images, out, "--raw") == 2
    said = capsys.readouterr().err
    assert (
        "train was begun with another option (raw False, now True); choose another OUTPUT" in said
    )


def test_verify_says_that_all_is_whole(images, out, capsys):
    run(images, out)
    capsys.readouterr()
    assert run("--verify", out) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["train", "validation"]
    assert all(line.endswith(": whole") for line in said)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_verify_names_the_shard_with_a_flipped_bit(images, out, capsys, split):
    run(images, out)
    path = out / split / "shard-00000.array_record"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert run("--verify", out) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lbsgd: damaged: {path} has another checksum; remove ")
    assert said.count("\n") == 1


def test_verify_of_an_unfinished_set_is_an_error(images, out, capsys):
    run(images, out)
    (out / "validation/index.json").unlink()
    assert run("--verify", out) == 2
    assert (
        "validation is not a packed set, or its preparation is not finished"
        in capsys.readouterr().err
    )


def test_set_does_not_go_into_its_own_images(images, capsys):
    before = files(images)
    assert run(images, images) == 2
    assert "images/train holds " in capsys.readouterr().err
    assert files(images) == before


def test_the_splits_that_can_be_asked_for_are_those_of_a_packed_set(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"--split {{{','.join(SPLITS)}}}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "INPUT and OUTPUT are needed, or one of --verify and --tfrecord"),
        (["images"], "INPUT and OUTPUT are needed, or one of --verify and --tfrecord"),
        (["images", "out", "more"], "unrecognized arguments: more"),
        (["images", "out", "--verify", "out"], "--verify takes the packed set alone"),
        (
            ["images", "out", "--tfrecord", "out"],
            "--tfrecord takes the folder of the dataset alone",
        ),
        (["--verify", "out", "--tfrecord", "out"], "--verify and --tfrecord exclude each other"),
        (["--tfrecord", "nowhere"], "nowhere"),
        (["--tfrecord", "images"], "images"),
        (["images", "out", "--side", "3"], "unrecognized arguments: --side 3"),
        (["images", "out", "--max_side", "3", "--short_side", "3"], "exclude each other"),
        (["images", "out", "--raw", "--quality", "3"], "--raw and --quality exclude each other"),
        (["images", "out", "--quality", "101"], "--quality must be within 1 and 100, not 101"),
        (["images", "out", "--max_side", "-1"], "numbers must be positive"),
        (["images", "out", "--workers", "two"], "argument --workers: invalid int value: 'two'"),
        (["images", "out", "--split", "test"], "argument --split: invalid choice: 'test'"),
        (["nowhere", "out"], "nowhere does not exist"),
        (["images/train/cat", "out"], "cat has no folder of images for each class"),
        (["images/train/cat/0.jpg", "out"], "0.jpg is not a tar, or it is damaged"),
        (["x.npz", "out"], "x.npz must be an npz file of arrays"),
        (["only", "out", "--split", "validation"], "only has no validation split, only train"),
        (
            ["--verify", "nowhere"],
            "nowhere is not a packed set: it has neither train/ nor validation/",
        ),
        (["--verify", "images"], "train is not a packed set, or its preparation is not finished"),
    ],
)
def test_mistake_is_one_line(images, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(images.parent)
    shutil.copytree(images / "train", "only/train")
    pathlib.Path("x.npz").write_text("no arrays")
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("lbsgd: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not pathlib.Path("out").exists()


def test_interrupted_it_ends_at_once_and_goes_on_later(images, out):
    """Though threads wait for files, as those of a network disk that is gone."""
    waits = (
        "import runpy, time\n"
        "from lbsgd.data.sources import folder\n"
        "read = folder.FolderSource.__getitem__\n"
        "def wait(self, index):\n"
        "    return read(self, index) if self._root.endswith('train') else time.sleep(1000)\n"
        "folder.FolderSource.__getitem__ = wait\n"
        "folder.first_image_shape = lambda source: (20, 30, 3)\n"
        "runpy.run_module('lbsgd.main', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", waits, "prepare", str(images), str(out), "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (out / "validation/preparing.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert said == "lbsgd: stopped; the same command resumes from here\n"
    assert not (out / "validation/index.json").exists()
    assert len(PackedSource(out / "train")) == 21


@pytest.mark.skipif(not IMAGENETTE.exists(), reason="Imagenette is not in ../shared/data")
def test_imagenette(out):
    """Its 1,000 images for validation, in the order of their names."""
    assert run(IMAGENETTE, out, "--split", "validation") == 0
    source = PackedSource(out / "validation")
    assert len(source) == 1000
    assert np.bincount([source[i].label for i in range(1000)]).tolist() == [100] * 10
    with tarfile.open(IMAGENETTE) as tar:
        members = {f"{m.name}": tar.extractfile(m).read() for m in tar if m.name.startswith("val/")}
    ordered = [members[name] for name in sorted(members)]
    assert [source[i].image for i in range(1000)] == ordered
