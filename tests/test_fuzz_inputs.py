"""Files that are damaged at random, or made to do harm: read, refused in one line, or corrupt.

Each set is read in a process of its own, as training reads it: a crash of a library of C ends that
process, and fails the test. What single images do when damaged is in data/test_decode_damaged.py.

    python tests/test_fuzz_inputs.py KIND SET COUNT SEED

damages the files of a set COUNT times, and says what became of it.
"""

import collections
import faulthandler
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "data"))

from hanging import HANG_SECONDS
from image_files import below, tree, variants, write

from lbsgd.data import command, prepare
from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.packed import reader
from lbsgd.data.source import Source
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.data.views import CentreCrop, InceptionCrop, View, Whole
from lbsgd.run.config import default_config
from lbsgd.run.record.metrics import read_metrics
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError

# For one damaged set, and for all of them; far more than they take.
BYTES = 4 * 2**30
SIZE = 16


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut short, flipped, with blocks inserted, lost, cleared, doubled or written over."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(changed) + 1)
        some = changed[at : at + chance.choice([1, 2, 8, 64, len(changed) // 4])]
        noise = chance.randbytes(len(some))
        end = at + len(some)
        match chance.randrange(7):
            case 0:
                del changed[at:]
            case 1 if some:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                changed[at:at] = noise
            case 3:
                del changed[at:end]
            case 4:
                changed[at:end] = bytes(len(some))
            case 5:
                changed[at:at] = some
            case 6:
                changed[at:end] = noise
    return bytes(changed)


def check_line(error: Exception) -> str:
    """The kind of an error that is one line."""
    assert str(error)
    assert len(str(error).splitlines()) == 1, str(error)
    return type(error).__name__


def open_set(kind: str, folder: pathlib.Path) -> list[Source]:
    """As training opens it, or as `prepare` does."""
    if kind in ("tar", "tfds"):
        return list(
            prepare.open_input(folder / "a.tar" if kind == "tar" else folder, None).values()
        )
    config = default_config().data
    config.update({"source": kind, "dir": str(folder), "crop": "inception"})
    return list(build_sources(config))


def look_at_all(source: Source, seen: collections.Counter) -> None:
    """Every example by every view that training has."""
    height, width, channels = source.image_shape
    crop = (SIZE, SIZE, channels)
    views: list[View] = [InceptionCrop(crop, 0), CentreCrop(crop, SIZE)]
    if height * width < 10**6:
        views.append(Whole((height, width, channels)))
    for index in range(min(len(source), 40)):
        assert source.name(index)
        number = np.array([index])
        for view in views:
            try:
                image, label = source[index]
                assert 0 <= label < len(source.classes)
                view(image, view.draw(number, number)[0], np.empty(view.shape, np.uint8))
                seen["read"] += 1
            except (CorruptError, ConfigError) as error:
                seen[check_line(error)] += 1


def attempt(kind: str, folder: pathlib.Path, seen: collections.Counter) -> None:
    """Opens and reads a set; anything but what is allowed is an error."""
    signal.alarm(HANG_SECONDS)
    try:
        for source in open_set(kind, folder):
            look_at_all(source, seen)
    except ConfigError as error:
        check_line(error)
        seen["refused"] += 1
    finally:
        signal.alarm(0)


def spoil(folder: pathlib.Path, chance: random.Random) -> str:
    """Damages a file; half of the shards so that the sizes in the index fit. Its name."""
    path = chance.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
    path.write_bytes(damaged(path.read_bytes(), chance))
    index = path.parent / reader.INDEX
    if path.suffix == ".array_record" and index.exists() and chance.random() < 0.5:
        values = json.loads(index.read_bytes())
        values["shards"][0]["bytes"] = path.stat().st_size
        index.write_text(json.dumps(values))
    return str(path.relative_to(folder))


def work(kind: str, whole: pathlib.Path, count: int, seed: int) -> collections.Counter:
    """Damages and reads a set so many times: how often what happened."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, resource.RLIM_INFINITY))
    seen: collections.Counter[str] = collections.Counter()
    for number in range(seed, seed + count):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(shutil.copytree(whole, pathlib.Path(name, "set")))
            where = spoil(folder, random.Random(number))
            print(f"{number}: {where}", file=sys.stderr, flush=True)
            attempt(kind, folder, seen)
    return seen


def fuzz(kind: str, whole: pathlib.Path, count: int, seed: int = 0) -> dict[str, int]:
    """`work` in a process of its own."""
    command = [sys.executable, __file__, kind, str(whole), str(count), str(seed)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> pathlib.Path:
    """Whole sets of each kind, in folders of their names."""
    root = tmp_path_factory.mktemp("sets")
    train = tree(2) | {f"cat/{name}": data for name, data in variants().items()}
    folder = write(root / "folder", below("train", train) | below("val", tree(1, first=20)))
    assert command.main([str(folder), str(root / "packed")]) == 0
    assert command.main([str(folder), str(root / "raw"), "--raw", "--short_side", "16"]) == 0
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    for kind, save in {"npz": np.savez, "compressed": np.savez_compressed}.items():
        (root / kind).mkdir()
        for split in ("train", "validation"):
            save(root / kind / f"{split}.npz", images=images, labels=np.arange(6) % 3)
    (root / "tar").mkdir()
    with tarfile.open(root / "tar" / "a.tar", "w") as tar:
        tar.add(folder, "all")
    return root


# By name of the set: how it is read, and whether some examples of it are found corrupt.
KINDS = {
    "folder": ("folder", True),
    "packed": ("packed", True),
    "raw": ("packed", True),
    "npz": ("npz", False),
    "compressed": ("npz", False),
    "tar": ("tar", True),
}


@pytest.mark.parametrize(
    "count", [20, pytest.param(1000, marks=pytest.mark.long)], ids=["few", "many"]
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(k, marks=[] if k in ("packed", "tar") else pytest.mark.long) for k in KINDS],
)
def test_a_damaged_set_is_read_or_refused(sets, name, count):
    kind, has_corrupt = KINDS[name]
    seen = fuzz(kind, sets / name, count)
    assert seen["refused"] if name != "folder" else seen["read"]
    assert not has_corrupt or seen["CorruptError"]
    assert set(seen) <= {"read", "refused", "CorruptError", "ConfigError"}


def refusal(act: Callable[[], Any]) -> str:
    """The one line that it ends in."""
    with pytest.raises(ConfigError) as error:
        act()
    check_line(error.value)
    return str(error.value)


DEEP = b"[" * 10**5
BAD_LINES = [b"", b"{", b"3", b"null", b"[]", b"\xff", b'{"step": "1"}', b'{"epoch": 1}', DEEP,
             b'{"step": 1, "val_error": "low"}', b'{"step": 1, "x": [1]}']  # fmt: skip


@pytest.mark.parametrize("text", BAD_LINES, ids=repr)
def test_damage_in_a_workdir_is_a_line(tmp_path, text):
    folder = Workdir(tmp_path)
    folder.metrics.write_bytes(b'{"step": 1, "epoch": 0.5}\n' + text + b"\n")
    assert "metrics.jsonl, line 2 is damaged" in refusal(lambda: read_metrics(folder.metrics))
    folder.config.write_bytes(text)
    assert "config.json is not a run's config" in refusal(lambda: folder.claim({"a": 1}, {}, {}))
    folder.config.unlink()
    if text != b"[]":  # which is what a machine.json may be
        folder.machine.write_bytes(text)
        assert "machine.json is damaged" in refusal(lambda: folder.claim({"a": 1}, {}, {}))
    folder.corrupt.write_bytes(text + b"\n")
    assert "corrupt.jsonl is damaged" in refusal(lambda: CorruptExamples().log_to(folder.corrupt))


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_in_a_workdir_is_a_line_or_none(tmp_path, seed):
    chance = random.Random(seed)
    lines = [{"step": i, "epoch": i / 9, "train_loss": 0.5, "val_error": None} for i in range(20)]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    folder = Workdir(tmp_path)
    for _ in range(10):
        folder.metrics.write_bytes(damaged(text, chance))
        try:
            read_metrics(folder.metrics)
        except ConfigError as error:
            check_line(error)


if __name__ == "__main__":
    print(json.dumps(work(sys.argv[1], pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:]))))
