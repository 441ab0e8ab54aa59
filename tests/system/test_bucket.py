"""Paths in buckets do what pathlib does on a disk, and only names that can be read are taken."""

import pathlib
import sys

import pytest
from buckets import new_bucket

from lbsgd.data import command as prepare
from lbsgd.diagnostics import command as diagnose
from lbsgd.system.bucket import BucketPath
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import any_path, append_line, expand_home, replace_file, user_path


def error_of(action):
    """What an action returns, or the number of its error."""
    try:
        return action()
    except OSError as error:
        return error.errno


def story(root):
    """What a sequence of questions and changes answers, whatever kind of path it is about."""

    def below(path):
        return sorted(str(p).removeprefix(str(root)) for p in path.iterdir())

    file = root / "a" / "b.txt"
    yield file.is_file(), file.is_dir(), file.exists(), (root / "a").is_dir()
    yield error_of(file.read_bytes), error_of(file.stat)
    file.unlink(missing_ok=True)
    (root / "a").mkdir(parents=True, exist_ok=True)
    replace_file(file, "größer\n")
    yield file.read_text(), file.read_bytes(), file.stat().st_size
    replace_file(file, b"\x00\xff")
    yield file.read_bytes(), file.is_file(), file.is_dir(), (root / "a").is_file()
    append_line(root / "lines", "one")
    append_line(root / "lines", "two")
    yield (root / "lines").read_text()
    (root / "a" / "c").mkdir()
    (root / "a" / "c" / "empty").write_bytes(b"")
    (root / "ab").write_bytes(b"not below a")
    yield below(root), below(root / "a"), (root / "a" / "c" / "empty").stat().st_size
    yield file.name, str(file.parent).removeprefix(str(root)), file == root / "a/b.txt"
    file.unlink()
    yield file.exists(), below(root / "a")


def test_a_bucket_answers_as_a_disk_does(tmp_path):
    told = list(story(tmp_path))
    assert len(told) == 8
    assert list(story(new_bucket())) == told


def test_sizes_are_those_of_all_objects_below():
    root = new_bucket()
    for name, size in (("x/1", 3), ("x/y/2", 0), ("x1", 5)):
        (root / name).write_bytes(bytes(size))
    assert (root / "x").sizes() == {"1": 3, "y/2": 0}
    assert (root / "z").sizes() == {}


def test_an_object_is_created_once():
    path = new_bucket() / "lock"
    assert path.create(b"mine")
    assert not path.create(b"yours")
    assert path.create(b"mine")  # as when an answer was lost
    assert path.read_bytes() == b"mine"


def test_files_go_up_and_down_as_they_are(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "up").write_bytes(data)
    (new_bucket() / "one").upload(tmp_path / "up")
    path = new_bucket() / "two"
    path.upload(tmp_path / "up")
    path.download(tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == path.read_bytes() == data


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("az://bucket/x", r"of buckets gs:// and s3:// are known, others must be mounted"),
        ("file:///etc", r"of buckets gs:// and s3:// are known"),
        ("http://a/b", r"of buckets gs:// and s3:// are known"),
        ("c:/x", r"of buckets gs:// and s3:// are known.* is written \./"),
        ("memory:/bucket/x", r"names no bucket; write memory://BUCKET/FOLDER"),
        ("memory://", r"names no bucket; write memory://BUCKET/FOLDER"),
        ("memory:///x", r"names no bucket"),
        ("memory://b/r*", r"may not hold one of"),
        ("memory://b/[lr=1]", r"may not hold one of"),
        ("memory://b/a/../c", r"may not hold one of"),
        ("memory://b/r\udce9", r"may not hold one of"),
        ("memory://b/x\ny", r"may not hold one of"),
        ("memory://b/x::gs://y", r"may not hold one of"),
    ],
)
def test_a_name_that_cannot_be_read_is_a_line(path, says):
    for reads in (any_path, user_path, BucketPath):
        with pytest.raises(ConfigError, match=says) as error:
            reads(path)
        assert str(error.value).isprintable()


def test_slashes_that_say_nothing_are_left_out():
    assert str(BucketPath("memory://b//x/y//")) == "memory://b/x/y"


@pytest.mark.parametrize("path", ["x", "./s3:/x", "/tmp/gs://x", "a b/s3:/x", ""])
def test_other_paths_are_on_the_disk(path):
    assert user_path(path) == any_path(path) == pathlib.Path(path)


@pytest.mark.parametrize(("scheme", "module"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_what_is_not_installed_is_named(scheme, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    says = rf"is read by {module}, which is not installed; pip install 'lbsgd\[{scheme}\]'"
    with pytest.raises(ConfigError, match=says):
        any_path(f"{scheme}://bucket/run")


class Failing:
    """A file system whose library raises errors of its own."""

    def cat_file(self, key):
        raise RuntimeError("no credentials\nat all")


def test_errors_of_libraries_are_those_of_a_disk_in_one_line(monkeypatch):
    monkeypatch.setattr(BucketPath, "_fs", Failing())
    with pytest.raises(OSError, match="RuntimeError: no credentials at all"):
        (new_bucket() / "x").read_bytes()


def test_what_is_on_the_disk_only_says_so(capsys):
    with pytest.raises(ConfigError, match=r"is not on a disk, and only runs and packed data may"):
        expand_home("s3://bucket/images")
    assert prepare.main(["images", "gs://bucket/set"]) == 2
    assert "gs://bucket/set is not on a disk; prepare the set on one" in capsys.readouterr().err
    assert prepare.main(["--verify", "s3://bucket/set"]) == 2
    assert "s3://bucket/set is not on a disk" in capsys.readouterr().err


def test_pictures_of_no_run_in_a_bucket_are_a_line(capsys):
    assert diagnose.main([str(new_bucket())]) == 2
    assert "is not the workdir of a run" in capsys.readouterr().err
