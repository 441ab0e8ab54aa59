"""Packing that is killed, interrupted, run by any number of threads, or out of disk."""

import fcntl
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from image_files import contents, encoded, picture, tree, truncated, write

from lbsgd.data.images.encode import Encoding
from lbsgd.data.packed.reader import PackedSource, read_index
from lbsgd.data.packed.shard_writer import Limits, finished_shards
from lbsgd.data.packed.writer import SplitJob, write_split
from lbsgd.data.source import numbered_classes
from lbsgd.data.sources.arrays import ArraySource
from lbsgd.data.sources.folder import FolderSource
from lbsgd.system.errors import ConfigError
from lbsgd.system.progress import CountProgress

ROOT = pathlib.Path(__file__).parents[3]
# Packs the split, and kills itself before its Nth file gets its name, or after.
CHILD = """
import os, pathlib, signal, sys
import test_packed_writer as test
images, out, number, when = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), *sys.argv[3:]
moves, move = iter(range(1, 1000)), os.replace
def killing_move(*paths):
    last = next(moves) == int(number)
    if when == "after":
        move(*paths)
    if last:
        os.kill(os.getpid(), signal.SIGKILL)
    if when == "before":
        move(*paths)
os.replace = killing_move
test.pack_split(images, out)
"""


def job(images: pathlib.Path, out: pathlib.Path, **options) -> SplitJob:
    """Small shards, encoded anew, what is corrupt left out."""
    source = FolderSource(images)
    chosen = {"encoding": Encoding(max_side=24), "skip": True, "limits": Limits(examples=7)}
    return SplitJob(
        source, out, "test", progress=CountProgress("", len(source)), **(chosen | options)
    )


def pack_split(images: pathlib.Path, out: pathlib.Path, **options):
    return write_split(job(images, out, **options))


def child(*arguments) -> list[str]:
    return [sys.executable, "-c", CHILD, *map(str, arguments)]


FOLDERS = (ROOT, *pathlib.Path(__file__).parents[:2])
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, FOLDERS))}


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    """27 images; 3 are corrupt: amid a shard, as the first after one, and as the last of all."""
    root = write(tmp_path / "images", tree(9))
    for path in ("cat/3.jpg", "cat/8.jpg", "owl/8.jpg"):
        (root / path).write_bytes(truncated())
    return root


@pytest.fixture
def whole(images, tmp_path) -> dict[str, bytes]:
    """What comes out where nothing goes wrong."""
    pack_split(images, tmp_path / "whole")
    return files(tmp_path / "whole")


def test_split_is_shards_and_an_index(whole):
    """24 good images in shards of 7 at most."""
    names = [f"shard-{number:05d}.array_record" for number in range(4)]
    assert sorted(whole) == ["index.json", *names]
    index = json.loads(whole["index.json"])
    assert [shard["examples"] for shard in index["shards"]] == [7, 7, 7, 3]
    assert index["class_examples"] == [7, 9, 8]
    assert index["corrupt"] == [f"images/{path}.jpg" for path in ("cat/3", "cat/8", "owl/8")]
    for name, shard in zip(names, index["shards"]):
        assert hashlib.sha256(whole[name]).hexdigest() == shard["sha256"]


@pytest.mark.parametrize("threads", [2, 7])
def test_number_of_threads_changes_nothing(images, tmp_path, whole, threads):
    pack_split(images, tmp_path / "out", threads=threads)
    assert files(tmp_path / "out") == whole


@pytest.mark.long
def test_killed_again_and_again_it_comes_to_the_same(images, tmp_path, whole):
    """Each time before its third file gets its name, so that no run gets far."""
    out, kills = tmp_path / "out", 0
    while True:
        done = subprocess.run(child(images, out, 3, "before"), env=ENVIRONMENT)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        assert not (out / "index.json").exists()
        kills += 1
        with pytest.raises(ConfigError, match="its preparation is not finished"):
            PackedSource(out)
    assert kills >= 3
    assert files(out) == whole


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(1, 11))
def test_killed_anywhere_it_goes_on_to_the_same(images, tmp_path, whole, number, when):
    """The files that get a name: of the beginning, four shards with a note each, and the index."""
    out = tmp_path / "out"
    done = subprocess.run(child(images, out, number, when), env=ENVIRONMENT)
    assert done.returncode == -signal.SIGKILL
    assert (out / "index.json").exists() == ((number, when) == (10, "after"))
    pack_split(images, out)
    assert files(out) == whole


def test_killed_from_outside_it_goes_on_without_what_is_finished(tmp_path):
    """No finished shard is written again."""
    images = write(tmp_path / "images", tree(100))
    pack_split(images, tmp_path / "whole")
    out = tmp_path / "out"
    process = subprocess.Popen(child(images, out, 0, "before"), env=ENVIRONMENT)
    while not (out / "shard-00003.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    parts = finished_shards(out)
    assert 4 <= len(parts) < 43
    before = [(out / part.shard.file).stat() for part in parts]
    again = job(images, out)
    write_split(again)
    assert again.progress.advanced == 300 - 7 * len(parts)
    assert [(out / part.shard.file).stat() for part in parts] == before
    assert files(out) == files(tmp_path / "whole")


def test_whole_split_is_left_alone(images, tmp_path, whole):
    before = {path: path.stat() for path in (tmp_path / "whole").iterdir()}
    assert pack_split(images, tmp_path / "whole") == read_index(tmp_path / "whole")
    assert {path: path.stat() for path in (tmp_path / "whole").iterdir()} == before


def test_whole_split_that_lost_a_shard_is_an_error(images, tmp_path, whole):
    (tmp_path / "whole/shard-00001.array_record").unlink()
    with pytest.raises(ConfigError, match=r"shard-00001.array_record cannot be read"):
        pack_split(images, tmp_path / "whole")


def begun(images: pathlib.Path, out: pathlib.Path) -> None:
    """Two shards are finished, and then comes an end."""
    assert subprocess.run(child(images, out, 5, "after"), env=ENVIRONMENT).returncode
    assert len(finished_shards(out)) == 2


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": Encoding()}, r"another option \(max_side 24, now 0\)"),
        pytest.param(
            {"encoding": Encoding(max_side=24, quality=80)},
            r"another option \(quality 0, now 80\)",
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"limits": Limits(examples=8)},
            r"another size of shards \(examples 7, now 8\)",
            marks=pytest.mark.long,
        ),
    ],
)
def test_other_options_than_before_are_an_error(
    images, tmp_path, whole, options, message, is_whole
):
    out = tmp_path / "whole" if is_whole else tmp_path / "out"
    if not is_whole:
        begun(images, out)
    with pytest.raises(ConfigError, match=f"was begun with {message}; choose another OUTPUT, or"):
        pack_split(images, out, **options)
    pack_split(images, out)
    assert files(out) == whole


def test_other_input_than_before_is_an_error(images, tmp_path):
    begun(images, tmp_path / "out")
    write(images, {"dog/new.jpg": encoded(picture(77))})
    with pytest.raises(ConfigError, match="was begun with another input "):
        pack_split(images, tmp_path / "out")


def test_input_may_move(images, tmp_path, whole):
    begun(images, tmp_path / "out")
    (tmp_path / "moved").mkdir()
    pack_split(images.rename(tmp_path / "moved/images"), tmp_path / "out")
    assert files(tmp_path / "out") == whole


def test_finished_shard_that_is_lost_is_written_again(images, tmp_path, whole):
    """And those after it."""
    begun(images, tmp_path / "out")
    os.truncate(tmp_path / "out/shard-00000.array_record", 100)
    again = job(images, tmp_path / "out")
    write_split(again)
    assert again.progress.advanced == 27
    assert files(tmp_path / "out") == whole


@pytest.mark.long
def test_shards_after_one_that_is_lost_do_not_count(images, tmp_path):
    """Not even when the next run, too, is killed: other software may fill shards otherwise."""
    out = tmp_path / "out"
    begun(images, out)
    (out / "shard-00000.array_record").unlink()
    assert subprocess.run(child(images, out, 1, "after"), env=ENVIRONMENT).returncode
    assert not (out / "shard-00001.json").exists()


class SlowStart:
    """Gives its first example once nobody asks for more, and notes how many were asked for."""

    def __init__(self, source: ArraySource) -> None:
        self.source, self.asked, self.ahead = source, 0, 0
        self.classes, self.fingerprint = source.classes, source.fingerprint
        self.image_shape, self.name = source.image_shape, source.name
        self.notes = source.notes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int):
        self.asked += 1
        while index == 0 and self.ahead != self.asked:
            self.ahead = self.asked
            time.sleep(0.1)
        return self.source[index]


def test_memory_is_bounded(tmp_path):
    """Behind an example that takes long no more than 2 x threads + 1 times 8 are held."""
    arrays = ArraySource(
        np.zeros((500, 2, 2, 3), np.uint8), np.zeros(500, int), numbered_classes(1)
    )
    source = SlowStart(arrays)
    write_split(SplitJob(source, tmp_path, "", Encoding(), CountProgress("", 500), threads=3))
    assert 1 < source.ahead <= 7 * 8
    assert contents(PackedSource(tmp_path)) == contents(arrays)


def test_damaged_notes_are_an_error(images, tmp_path):
    begun(images, tmp_path / "out")
    for name in ("shard-00001.json", "preparing.json"):
        (tmp_path / "out" / name).write_text("{")
        with pytest.raises(ConfigError, match=f"{name} is damaged; remove .*out and prepare it ag"):
            pack_split(images, tmp_path / "out")


def test_corrupt_image_stops_it_by_default(images, tmp_path):
    with pytest.raises(ConfigError, match=r"images/cat/3.jpg is corrupt: .*; mend it, or leave it"):
        pack_split(images, tmp_path / "out", skip=False)
    assert not (tmp_path / "out/index.json").exists()


def test_after_an_error_it_may_skip(images, tmp_path, whole):
    """What has been written by then counts."""
    (images / "cat/3.jpg").write_bytes(tree(9)["cat/3.jpg"])
    with pytest.raises(ConfigError, match=r"cat/8.jpg is corrupt"):
        pack_split(images, tmp_path / "out", skip=False)
    assert len(finished_shards(tmp_path / "out")) == 1
    again = job(images, tmp_path / "out")
    write_split(again)
    assert again.progress.advanced == 27 - 7
    pack_split(images, tmp_path / "at once")
    assert files(tmp_path / "out") == files(tmp_path / "at once")


def test_nothing_but_corrupt_images_is_an_error(tmp_path):
    torn = {f"{'cd'[i % 2]}/{i}.jpg": truncated() for i in range(9)}
    images = write(tmp_path / "images", torn)
    with pytest.raises(ConfigError, match="none of the 9 images can be read"):
        pack_split(images, tmp_path / "out")


def test_shards_are_bounded_in_bytes(tmp_path):
    """Records of 16 + 7 or 8 + 300 bytes: three fit into 1,000; a larger one has its own shard."""
    images = [np.full((10, 10, 3), i, np.uint8) for i in range(12)]
    source = ArraySource(np.stack(images), np.zeros(12, int), numbered_classes(1))
    for limit, each in ((1000, 3), (100, 1)):
        out = tmp_path / f"{limit}"
        done = SplitJob(
            source, out, "", Encoding(), CountProgress("", 12), limits=Limits(100, limit)
        )
        index = write_split(done)
        assert [shard.examples for shard in index.shards] == [each] * (12 // each)
        assert contents(PackedSource(out)) == contents(source)


def test_two_at_once_are_an_error(images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match=r"another process is preparing .*out"):
        pack_split(images, out)
    assert list(out.iterdir()) == []
    os.close(descriptor)
    pack_split(images, out)


def test_folder_of_something_else_is_left_alone(images, tmp_path):
    out = write(tmp_path / "out", {"shard-00000.array_record": b"", "thesis.tex": b"text"})
    with pytest.raises(
        ConfigError, match=r"holds 'thesis.tex', which does not belong to a packed set"
    ):
        pack_split(images, out)
    assert files(out) == {"shard-00000.array_record": b"", "thesis.tex": b"text"}


def test_full_disk_is_an_error_and_it_goes_on_later(images, tmp_path, whole):
    """Files may not grow past 40 kB here: some shards are larger."""
    out = tmp_path / "out"
    script = (
        "import pathlib, resource, sys, test_packed_writer as test\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "test.pack_split(*map(pathlib.Path, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, str(images), str(out)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert "ConfigError: cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert "the same command resumes from here" in done.stderr
    pack_split(images, out)
    assert files(out) == whole


def test_what_was_written_is_read_back(images, tmp_path, monkeypatch):
    """A shard that loses bits between the writing and the reading does not count."""

    def flip(path, *rest):
        data = bytearray(path.read_bytes())
        data[500] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(os, "fsync", lambda file: flip(partial) if partial.exists() else None)
    partial = tmp_path / "out/shard-00000.array_record.tmp"
    with pytest.raises(ConfigError, match=r"shard-00000.* cannot be read back .*check the disk"):
        pack_split(images, tmp_path / "out")
    assert finished_shards(tmp_path / "out") == []


def test_records_are_uncompressed_and_alone_in_their_groups(images, tmp_path, whole):
    """So that one is read without others: the options that random access needs."""
    options = ArrayRecordReader(
        str(tmp_path / "whole/shard-00000.array_record")
    ).writer_options_string()
    assert "group_size:1," in options
    assert "uncompressed" in options
