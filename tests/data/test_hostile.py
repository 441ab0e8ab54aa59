"""Files that were made to do harm: none takes memory without end, leaves its folder, or runs.

Damage at random is in ../test_fuzz_inputs.py.
"""

import json
import pathlib
import shutil
import struct
import sys
import zipfile
from typing import Any

import numpy as np
import pytest
from image_files import below, tree, write
from test_fuzz_inputs import DEEP, refusal

from lbsgd.data import command
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.packed import reader
from lbsgd.data.sources.arrays import read_npz
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> pathlib.Path:
    """A folder of images, and a packed set of their pixels."""
    root = tmp_path_factory.mktemp("sets")
    folder = write(root / "folder", below("train", tree(2)) | below("val", tree(1, first=20)))
    assert command.main([str(folder), str(root / "raw"), "--raw", "--short_side", "16"]) == 0
    return root


def data(source: str, folder: pathlib.Path) -> Any:
    config = default_config().data
    config.update({"source": source, "dir": str(folder), "crop": "inception"})
    return config


# What an index must not say, by the key that says it; of a shard where that is no key of the index.
HOSTILE = {
    "file": ["../../../etc/passwd", "/etc/passwd", "../train/shard-00000.array_record", "", 3, None,
             "shard-00000.array_record/../../x", "shard-00000.array_record\n", "\0"],
    "examples": [0, -1, 10**18, 2**63, 10**400, 1.5, "3", None, True, [1]],
    "bytes": [-1, 2**64, 10**400, 0.5, "1", None, True],
    "sha256": ["", "../x", 3, None, "g" * 64],
    "classes": [3, None, [], [1, 2, 3], ["a"] * 10**5, {"a": 1}],
    "class_examples": [None, [-1, 4, 12], [1.0, 2.0, 12.0], [10**400, 1, 1], "123", [[1]]],
    "image_shape": [[0, 1, 3], [-1, -1, 3], [10**9, 10**9, 3], [1, 2], ["a", 1, 3], [4, 4, 256],
                    [1.5, 2, 3], None, "abc", [True, True, True]],
    "one_shape": [1, "yes", None],
    "shards": [[], {}, None, [3], [{}], "x"],
    "corrupt": [3, [3], None],
    "made": [3, None, []],
    "format": ["another", None],
    "version": [2, "1", None],
}  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_an_index_with_what_no_index_has_is_refused(sets, tmp_path, key):
    folder = pathlib.Path(shutil.copytree(sets / "raw", tmp_path / "set"))
    path = folder / "train" / reader.INDEX
    whole = json.loads(path.read_bytes())
    for value in HOSTILE[key]:
        values = json.loads(json.dumps(whole))
        (values if key in values else values["shards"][0])[key] = value
        sys.set_int_max_str_digits(0)
        path.write_text(json.dumps(values))
        sys.set_int_max_str_digits(4300)
        assert "index.json is damaged" in refusal(lambda: build_sources(data("packed", folder)))


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"3", b"[]", b"{}", b"\xff\xfe", DEEP,
                                  b"9" * 10**5, b'{"format": NaN}'], ids=repr)  # fmt: skip
def test_a_file_of_json_that_is_none_is_refused(sets, tmp_path, text):
    """By training, by `prepare --verify`, and by a preparation that would go on."""
    folder = pathlib.Path(shutil.copytree(sets / "raw", tmp_path / "set"))
    made = json.loads((folder / "train" / reader.INDEX).read_bytes())["made"]
    (folder / "train" / reader.INDEX).write_bytes(text)
    assert "index.json is damaged" in refusal(lambda: build_sources(data("packed", folder)))
    assert command.main(["--verify", str(folder)]) == 2
    again = [str(sets / "folder"), str(folder), "--raw", "--short_side", "16"]
    assert command.main(again) == 2
    (folder / "train" / reader.INDEX).unlink()
    (folder / "train" / "preparing.json").write_bytes(text)
    assert command.main(again) == 2
    (folder / "train" / "preparing.json").write_text(json.dumps(made))
    (folder / "train" / "shard-00000.json").write_bytes(text)
    assert command.main(again) == 2


def record(height: int, width: int, channels: int, kind: int, data: bytes, label: int = 0) -> bytes:
    return reader.HEADER.pack(label, height, width, 0, channels, kind) + data


@pytest.mark.parametrize(
    "made",
    [
        b"",
        b"\0" * 15,
        record(0, 5, 3, reader.PIXELS, b""),
        record(2**32 - 1, 2**32 - 1, 255, reader.PIXELS, b"12"),
        record(4, 4, 3, reader.PIXELS, b"\0" * 47),
        record(4, 4, 0, reader.PIXELS, b""),
        record(4, 4, 3, 7, bytes(48)),
        struct.pack("<IIIHBB", 0, 1, 1, 0xFFFF, 3, reader.PIXELS) + b"123",
    ],
)
def test_a_record_that_no_image_has_is_corrupt(made):
    with pytest.raises(CorruptError):
        reader.unpack(made)


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def shaped(shape: str, kind: str = "|u1") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


class Executed:
    """A pickle of it makes a file on being loaded."""

    def __init__(self, file: pathlib.Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (pathlib.Path.touch, (self.file,))


LABELS = npy(shaped("(2,)", "<i8"), bytes(16))
IMAGES = npy(shaped("(2, 4, 4, 3)"), bytes(96))
BAD_ARRAYS = {
    "100 GB that are not there": (npy(shaped("(10000, 1000, 1000, 10)")), "as large as its header"),
    "more than 64 bits": (npy(shaped("(10000000000, 10000000000)")), "as large as its header"),
    "negative": (npy(shaped("(-1, 4)"), bytes(96)), "npz file"),
    "no header": (b"\x93NUMPY\1\0\xff\xff", "npz file"),
    "code for a header": (npy("__import__('os').system('true')"), "npz file"),
    "another version": (npy(shaped("(2,)"), b"ab", b"\3\0"), "another version"),
    "nothing": (b"", "npz file"),
    "channels first": (npy(shaped("(2, 3, 32, 32)"), bytes(6144)), "c is 1, 3 or 4"),
    "no pixels": (npy(shaped("(2, 0, 4, 3)")), "without pixels"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_an_array_that_is_none_is_refused(tmp_path, name):
    content, says = BAD_ARRAYS[name]
    with zipfile.ZipFile(tmp_path / "train.npz", "w") as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", LABELS)
    with pytest.raises(ConfigError, match=says):
        read_npz(tmp_path / "train.npz")


def test_a_pickle_in_an_npz_is_refused_and_not_run(tmp_path):
    executed = tmp_path / "executed"
    np.savez(
        tmp_path / "train.npz", images=np.array([Executed(executed), None]), labels=np.arange(2)
    )
    line = refusal(lambda: read_npz(tmp_path / "train.npz"))
    assert "images holds Python objects (a pickle), which are never loaded" in line
    assert not executed.exists()


def test_an_npz_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    """Deflated it is small: 1,000 bytes of zeros are one."""
    np.savez_compressed(
        tmp_path / "train.npz", images=np.zeros((9, 99, 99, 3), np.uint8), labels=np.arange(9)
    )
    monkeypatch.setattr("lbsgd.data.sources.arrays.memory_limit", lambda: 10**5)
    assert "images has 0.0 GB, the machine 0.0" in refusal(lambda: read_npz(tmp_path / "train.npz"))


def test_a_member_that_is_larger_than_it_says_is_not_unpacked_further(tmp_path):
    path = tmp_path / "train.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", IMAGES + bytes(10**6))
        archive.writestr("labels.npy", LABELS)
    content = path.read_bytes()
    size, claimed = struct.pack("<I", len(IMAGES) + 10**6), struct.pack("<I", len(IMAGES))
    path.write_bytes(content.replace(size, claimed))
    assert "npz file" in refusal(lambda: read_npz(path))


@pytest.mark.parametrize("label", [10**6, 2**62])
def test_a_label_that_would_need_a_billion_classes_is_refused(tmp_path, label):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.array([0, label]))
    assert f"a label {label}" in refusal(lambda: read_npz(tmp_path / "train.npz"))


def test_a_prepared_set_in_the_wrong_place_says_the_right_one(sets):
    line = refusal(lambda: build_sources(data("folder", sets / "raw")))
    assert line.endswith("is a prepared set; set data.source='packed'")
    line = refusal(lambda: build_sources(data("packed", sets / "raw" / "train")))
    assert "is one split of a prepared set; set data.dir to the folder around it" in line
