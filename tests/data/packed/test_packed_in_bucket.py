"""Packed sets in a bucket: the examples are those on the disk, downloaded once and verified."""

import concurrent.futures
import pathlib
import shutil

import numpy as np
import pytest
from buckets import new_bucket
from image_files import contents, tree, write

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.images.encode import Encoding
from lbsgd.data.packed.reader import PackedSource, packed
from lbsgd.data.packed.shard_writer import Limits
from lbsgd.data.packed.writer import SplitJob, write_split
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.data.sources.folder import FolderSource
from lbsgd.run.config import default_config
from lbsgd.system.bucket import BucketPath
from lbsgd.system.errors import ConfigError
from lbsgd.system.progress import CountProgress

SHARD = "train/shard-00001.array_record"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    """24 images for training in shards of at most 7, 6 for validation."""
    root = tmp_path_factory.mktemp("packed")
    for split, count in (("train", 8), ("validation", 2)):
        source = FolderSource(write(root / "images" / split, tree(count)))
        progress = CountProgress("test", len(source))
        job = SplitJob(
            source, root / "set" / split, "test", Encoding(), progress, limits=Limits(examples=7)
        )
        write_split(job)
    return root / "set"


@pytest.fixture
def bucket(made, tmp_path, monkeypatch) -> BucketPath:
    """The set in a bucket, and no copy of it yet on the disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = new_bucket()
    for path in made.glob("*/*"):
        (root / path.relative_to(made).as_posix()).upload(path)
    return root


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """The names of what is downloaded."""
    names, real = [], BucketPath.download
    monkeypatch.setattr(
        BucketPath, "download", lambda self, file: (names.append(self.name), real(self, file))
    )
    return names


def data_config(root, **keys):
    config = default_config().data
    config.update({"source": "packed", "crop": "inception", "dir": str(root), **keys})
    return config


def test_examples_are_those_on_the_disk(made, bucket):
    here, there = packed(data_config(made)), packed(data_config(bucket))
    for one, other in zip(here, there):
        assert contents(one) == contents(other)
        assert (one.fingerprint, one.classes) == (other.fingerprint, other.classes)
        assert one.name(3) == other.name(3)


def test_opening_downloads_no_shard_and_reading_each_once(bucket, downloads):
    sources = [PackedSource(bucket / "train") for _ in range(2)]
    assert downloads == []
    for source in sources:
        contents(source)
    assert sorted(downloads) == [f"shard-0000{i}.array_record" for i in range(4)]


def test_threads_read_what_one_does(made, bucket, downloads):
    """All of them on shards that none has downloaded yet."""
    indices = np.random.default_rng(0).integers(0, 24, 400).tolist()
    expected, source = PackedSource(made / "train"), PackedSource(bucket / "train")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.__getitem__, indices))
    assert found == [expected[i] for i in indices]
    assert len(downloads) == 4


def test_a_damaged_shard_is_corrupt_and_downloaded_once(made, bucket, downloads):
    data = bytearray((bucket / SHARD).read_bytes())
    data[-1] ^= 1  # of what ArrayRecord itself does not look at
    (bucket / SHARD).write_bytes(bytes(data))
    source = PackedSource(bucket / "train")
    for index in range(7, 14):
        with pytest.raises(CorruptError, match=r"shard-00001\.array_record has another checksum"):
            source[index]
    assert downloads == ["shard-00001.array_record"]
    assert source[0] == PackedSource(made / "train")[0]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), r"cannot be read \(No such file or directory\)"),
        (lambda path: path.write_bytes(b"short"), r"has 5 bytes, not [\d,]+"),
    ],
)
def test_a_set_that_is_not_whole_does_not_open(bucket, damage, says):
    damage(bucket / SHARD)
    with pytest.raises(ConfigError, match=rf"{SHARD} {says}; copy the prepared set to .* again"):
        packed(data_config(bucket))


def test_a_bucket_that_fails_while_reading_is_a_line(bucket, monkeypatch):
    source = PackedSource(bucket / "train")

    def refuse(*_):
        raise OSError(5, "no route")

    monkeypatch.setattr(BucketPath, "download", refuse)
    with pytest.raises(ConfigError, match=rf"cannot open {bucket}/train/.* \(no route\)"):
        source[0]
    monkeypatch.undo()


def test_a_disk_without_room_is_a_line(bucket, monkeypatch):
    source = PackedSource(bucket / "train")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(ConfigError, match=r"cannot open .* bytes needed in .*, 100 free\)"):
        source[0]


def test_a_folder_that_is_not_there_is_a_line(bucket):
    with pytest.raises(ConfigError, match="is not a folder; make it by lbsgd prepare"):
        packed(data_config(bucket / "nowhere"))
    with pytest.raises(ConfigError, match="is one split of a prepared set"):
        packed(data_config(bucket / "train"))


@pytest.mark.parametrize("source", ["folder", "npz", "tfds"])
def test_other_sources_say_that_they_read_disks_only(source, bucket):
    config = data_config(bucket, source=source, tfds_name="mnist")
    with pytest.raises(ConfigError, match=r"is not on a disk, and only runs and packed data may"):
        build_sources(config)
