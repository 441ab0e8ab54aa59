"""Files that grow: on a disk at once, in a bucket when they are synced, and as time goes by."""

import faulthandler
import time

import pytest
from buckets import new_bucket

from lbsgd.system import appending
from lbsgd.system.appending import open_appended
from lbsgd.system.bucket import BucketPath

PATIENCE = 60


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    return tmp_path if request.param == "disk" else new_bucket()


def test_what_is_written_follows_what_was_there(folder):
    for text in (b"one\n", b"", b"two\n"):
        file = open_appended(folder / "lines")
        assert file.write(text) == len(text)
        file.sync()
        local = file.local
        file.close()
    assert (folder / "lines").read_bytes() == b"one\ntwo\n"
    assert local.exists() == (not isinstance(folder, BucketPath))


def test_what_was_synced_is_there(folder):
    file = open_appended(folder / "lines")
    file.write(b"one\n")
    file.sync()
    assert (folder / "lines").read_bytes() == b"one\n"
    file.write(b"two\n")
    file.sync()
    assert (folder / "lines").read_bytes() == b"one\ntwo\n"
    file.close()


def test_stacks_are_written_by_descriptor(folder):
    file = open_appended(folder / "log")
    file.write(b"before\n")
    faulthandler.dump_traceback(file.fileno())
    file.write(b"after\n")
    file.close()
    before, *stack, after = (folder / "log").read_text().splitlines()
    assert (before, after) == ("before", "after")
    assert any("test_stacks_are_written" in line for line in stack)


def test_an_object_is_rewritten_by_and_by_and_not_for_nothing(monkeypatch):
    monkeypatch.setattr(appending, "REWRITE_SECONDS", 0.01)
    written, real = [], BucketPath.write_bytes
    monkeypatch.setattr(
        BucketPath, "write_bytes", lambda self, data: (written.append(data), real(self, data))
    )
    path = new_bucket() / "lines"
    file = open_appended(path)
    file.write(b"one\n")
    give_up = time.monotonic() + PATIENCE
    while not path.is_file():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    time.sleep(0.1)
    file.close()
    assert written == [b"one\n"]


def test_what_cannot_be_brought_into_a_bucket_waits(monkeypatch):
    path = new_bucket() / "lines"
    file = open_appended(path)
    file.write(b"one\n")
    with monkeypatch.context() as m:

        def refuse(*_):
            raise OSError(5, "no route")

        m.setattr(BucketPath, "write_bytes", refuse)
        with pytest.raises(OSError, match="no route"):
            file.sync()
        lost = open_appended(path)
        lost.write(b"two\n")
        lost.close()
        assert lost.local.read_bytes() == b"two\n"
        lost.local.unlink()
    file.sync()
    assert path.read_bytes() == b"one\n"
    file.close()
