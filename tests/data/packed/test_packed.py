"""Packed sets: what was packed comes out, and damage is never taken for an image."""

import concurrent.futures
import json
import pathlib
import shutil
import struct

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import example, given
from hypothesis import strategies as st
from image_files import CLASSES, contents, picture, tree, write

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.images.encode import Encoding
from lbsgd.data.packed.reader import PackedSource, packed, unpack, verify_split
from lbsgd.data.packed.shard_writer import Limits
from lbsgd.data.packed.writer import SplitJob, write_split
from lbsgd.data.sources.arrays import ArraySource
from lbsgd.data.sources.folder import FolderSource
from lbsgd.data.views import InceptionCrop
from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError
from lbsgd.system.progress import CountProgress

LIMITS = Limits(examples=7)


def pack_split(source, folder: pathlib.Path, encoding: Encoding | None = None) -> PackedSource:
    progress = CountProgress("test", len(source))
    write_split(SplitJob(source, folder, "test", encoding or Encoding(), progress, limits=LIMITS))
    return PackedSource(folder)


def arrays(count: int = 20) -> ArraySource:
    """Pixels of one size."""
    images = np.stack([picture(i, 9, 11) for i in range(count)])
    return ArraySource(images, np.arange(count) % 3, CLASSES)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    """`images`, and `set`: 24 of them for training, 6 for validation, in shards of at most 7."""
    root = tmp_path_factory.mktemp("packed")
    for split, count in (("train", 8), ("validation", 2)):
        source = FolderSource(write(root / "images" / split, tree(count)))
        pack_split(source, root / "set" / split)
    return root


@pytest.fixture
def copy(made, tmp_path) -> pathlib.Path:
    """The set, to damage."""
    return pathlib.Path(shutil.copytree(made / "set", tmp_path / "set"))


def data_config(root: pathlib.Path | str):
    config = default_config().data
    config.crop = "inception"
    config.update({"source": "packed", "dir": str(root)})
    return config


def change_index(folder: pathlib.Path, **values) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | values))


def flip(path: pathlib.Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_files_come_out_as_they_went_in(made):
    splits = packed(data_config(made / "set"))
    for split, name in zip(splits, ("train", "validation")):
        source = FolderSource(made / "images" / name)
        assert contents(split) == contents(source)
        assert split.classes == source.classes
        assert split.image_shape == source.image_shape
        assert len(split) == len(source)


def test_pixels_come_out_as_they_went_in(tmp_path):
    source = arrays()
    split = pack_split(source, tmp_path)
    for i in range(len(source)):
        np.testing.assert_array_equal(split[i].image, source.images[i])
        assert split[i].image.dtype == np.uint8
        assert split[i].label == source.labels[i]
    assert split.image_shape == (9, 11, 3)


def test_record_is_of_the_documented_form(made):
    """Label, height, width, bytes of the name, channels, kind; the name; the image."""
    record = ArrayRecordReader(str(made / "set/train/shard-00001.array_record")).read([1])[0]
    label, height, width, named, channels, kind = struct.unpack("<IIIHBB", record[:16])
    assert (label, height, width, channels, kind) == (1, 21 - 1, 30, 3, 0)  # example 8: dog/0.jpg
    assert record[16 : 16 + named].decode() == "train/dog/0.jpg"
    assert record[16 + named :] == (made / "images/train/dog/0.jpg").read_bytes()


def test_index_tells_what_is_there(made):
    index = json.loads((made / "set/train/index.json").read_text())
    assert index["classes"] == list(CLASSES)
    assert index["class_examples"] == [8, 8, 8]
    assert [shard["examples"] for shard in index["shards"]] == [7, 7, 7, 3]
    for shard in index["shards"]:
        path = made / "set/train" / shard["file"]
        assert path.stat().st_size == shard["bytes"]
        assert ArrayRecordReader(str(path)).num_records() == shard["examples"]
    assert (index["image_shape"], index["one_shape"]) == ([20, 30, 3], False)


@pytest.mark.parametrize("crop", ["none", "padded"])
def test_images_of_several_sizes_need_a_crop_that_takes_them(made, tmp_path, crop):
    config = data_config(made / "set")
    config.crop = crop
    with pytest.raises(ConfigError, match=r"several sizes; set data\.crop='inception'"):
        packed(config)
    for split in ("train", "validation"):
        pack_split(arrays(), tmp_path / split)
    config.dir = str(tmp_path)
    assert len(packed(config).train) == 20


def test_index_tells_that_all_images_have_one_shape(tmp_path):
    pack_split(arrays(), tmp_path)
    assert json.loads((tmp_path / "index.json").read_text())["one_shape"]


def test_name_is_the_record_and_the_original(made, copy):
    split = PackedSource(copy / "train")
    assert split.name(8) == "train/shard-00001.array_record, record 1 (train/dog/0.jpg)"
    path = copy / "train/shard-00001.array_record"
    path.write_bytes(bytes(path.stat().st_size))
    assert PackedSource(copy / "train").name(8) == "train/shard-00001.array_record, record 1"


@pytest.mark.parametrize("index", [-1, 24, 10**9])
def test_there_is_no_example_past_the_ends(made, index):
    with pytest.raises(IndexError):
        PackedSource(made / "set/train")[index]


def test_threads_read_what_one_does(made, tmp_path):
    """All of them on shards that none has opened yet."""
    indices = np.random.default_rng(0).integers(0, 24, 4000).tolist()
    expected = contents(PackedSource(made / "set/train"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(PackedSource(made / "set/train").__getitem__, indices))
    assert [(x.image, CLASSES[x.label]) for x in found] == [expected[i] for i in indices]


def test_views_see_packed_pixels_as_they_see_arrays(tmp_path):
    """Though packed ones cannot be written to."""
    source = arrays()
    split = pack_split(source, tmp_path)
    view = InceptionCrop((8, 8, 3), seed=0)
    for i, draw in enumerate(view.draw(np.zeros(20, int), np.arange(20))):
        ours, theirs = np.empty((2, 8, 8, 3), np.uint8)
        view(split[i].image, draw, ours)
        view(source[i].image, draw, theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_opening_reads_no_shard(copy):
    """What is in them is found out by who asks for it."""
    before = PackedSource(copy / "train").fingerprint
    for path in (copy / "train").glob("*.array_record"):
        path.write_bytes(bytes(path.stat().st_size))
    split = PackedSource(copy / "train")
    assert split.fingerprint == before
    for i in range(len(split)):
        with pytest.raises(CorruptError):
            split[i]


def test_fingerprint_is_of_the_contents(made, copy, tmp_path):
    same = PackedSource(made / "set/train").fingerprint
    assert PackedSource(copy / "train").fingerprint == same
    assert PackedSource(copy / "validation").fingerprint != same
    change_index(copy / "train", made={"input": "elsewhere"})
    assert PackedSource(copy / "train").fingerprint == same
    change_index(copy / "train", classes=["cat", "dog", "hen"])
    assert PackedSource(copy / "train").fingerprint != same
    source = arrays()
    source.images[3, 0, 0, 0] ^= 1
    packs = [pack_split(s, tmp_path / f"{i}") for i, s in enumerate((arrays(), arrays(), source))]
    prints = [split.fingerprint for split in packs]
    assert prints[0] == prints[1] != prints[2]


def test_flipped_bit_is_corrupt_or_does_not_matter(made, copy):
    """A record is what it was, or CorruptError; and whatever bit it was, verify names the shard."""
    expected = contents(PackedSource(made / "set/train"))
    path = copy / "train/shard-00001.array_record"
    whole = path.read_bytes()
    corrupt = 0
    # The end of the file is padding, which only verify looks at.
    for position in [*np.random.default_rng(0).integers(0, 20_000, 150).tolist(), len(whole) - 1]:
        flip(path, position)
        split = PackedSource(copy / "train")
        for i in range(7, 14):
            try:
                assert (split[i].image, CLASSES[split[i].label]) == expected[i]
            except CorruptError:
                corrupt += 1
        path.write_bytes(whole)
    assert corrupt > 20


@pytest.mark.parametrize("position", [0, 100, 30_000, -1])
def test_verify_names_the_damaged_shards(copy, position):
    assert verify_split(copy / "train") == []
    for number in (1, 3):
        flip(copy / f"train/shard-{number:05d}.array_record", position)
    for threads in (1, 4):
        damage = verify_split(copy / "train", threads)
        names = [shard.file for shard in damage]
        assert names == ["shard-00001.array_record", "shard-00003.array_record"]
        assert all("checksum" in shard.reason for shard in damage)


def test_verify_counts_the_records(copy):
    """Where the file is what the index says, but the number is not."""
    index = json.loads((copy / "train/index.json").read_text())
    index["shards"][0]["examples"], index["shards"][1]["examples"] = 6, 8
    change_index(copy / "train", shards=index["shards"])
    reasons = [shard.reason for shard in verify_split(copy / "train")]
    assert "has 7 records, not 6" in reasons[0]
    assert "has 7 records, not 8" in reasons[1]


def test_verify_tells_when_each_shard_is_done(made):
    seen = []
    verify_split(made / "set/train", 2, seen.append)
    assert [shard.examples for shard in seen] == [7, 7, 7, 3]


def remove_shard(folder):
    (folder / "shard-00002.array_record").unlink()


def cut_shard(folder):
    path = folder / "shard-00002.array_record"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_shard, r"shard-00002.array_record cannot be read \(No such file or directory\); "),
        (cut_shard, r"shard-00002.array_record has [\d,]+ bytes, not [\d,]+; "),
    ],
)
def test_set_with_a_shard_that_is_not_whole_does_not_open(copy, damage, message):
    damage(copy / "train")
    with pytest.raises(ConfigError, match=f"train.{message}.*prepare --verify .* prepare it again"):
        packed(data_config(copy))
    assert [shard.file for shard in verify_split(copy / "train")] == ["shard-00002.array_record"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format": "lbsgd packed images", "version": 1}', "\xff"],
)
def test_damaged_index_is_an_error(copy, text):
    (copy / "train/index.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"train.index.json is damaged, or of another version"):
        packed(data_config(copy))


@pytest.mark.parametrize(
    "values",
    [
        {"version": 2},
        {"format": "another"},
        {"classes": ["cat", "dog"]},
        {"class_examples": [8, 8, 9]},
        {"shards": [{"file": "shard-00000.array_record"}]},
        {"shards": [], "class_examples": [0, 0, 0]},
        {"image_shape": None},
        {"more": 1},
    ],
)
def test_index_that_does_not_add_up_is_an_error(copy, values):
    change_index(copy / "train", **values)
    with pytest.raises(ConfigError, match=r"train.index.json is damaged, or of another version"):
        packed(data_config(copy))


def test_label_without_a_class_is_corrupt(copy):
    change_index(copy / "train", classes=["cat", "dog"], class_examples=[8, 16])
    split = PackedSource(copy / "train")
    assert split[15].label == 1
    with pytest.raises(CorruptError, match="label 2, of 2 classes"):
        split[16]


@given(st.binary(max_size=60))
@example(bytes(15) + b"\1")
@example(struct.pack("<IIIHBB", 2, 2, 1, 3, 3, 1) + b"abc" + bytes(range(6)))
def test_bytes_that_are_no_record_are_corrupt(data):
    """Unless they happen to be one: of a file, or of as many pixels as it says."""
    if len(data) >= 16:
        _, height, width, named, channels, kind = struct.unpack("<IIIHBB", data[:16])
        image = data[16 + named :]
        if kind == 0:
            assert unpack(data).image == image
            return
        if kind == 1 and 0 < height * width * channels == len(image):
            np.testing.assert_array_equal(np.ravel(unpack(data).image), list(image))
            return
    with pytest.raises(CorruptError, match="not the record of an image"):
        unpack(data)


def test_unfinished_set_does_not_open(copy):
    (copy / "train/index.json").unlink()
    with pytest.raises(
        ConfigError, match=r"train is not a packed set, or its preparation is not fin"
    ):
        packed(data_config(copy))


def test_splits_of_other_classes_are_an_error(copy):
    change_index(copy / "validation", classes=["cat", "dog", "hen"])
    with pytest.raises(ConfigError, match=r"the classes of train/ and validation/ differ; remove"):
        packed(data_config(copy))


@pytest.mark.parametrize("place", ["", "nowhere"])
def test_no_folder_is_an_error(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"data.dir='{place}' is not a folder; make it by lbsgd prepare"
    ):
        packed(data_config(place))


def test_folder_without_splits_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"train is not a packed set.*prepare INPUT .* \(again\)"):
        packed(data_config(tmp_path))
