"""Checkpoints in a bucket: as on a disk, and an upload that was interrupted is none."""

import numpy as np
import orbax.checkpoint as ocp
import pytest
from buckets import new_bucket
from checkpoint_folder import Opened, filled, on_disk, restored, state

from lbsgd.checkpoint import manifest, store, transfer
from lbsgd.checkpoint.command import main
from lbsgd.system.bucket import BucketPath
from lbsgd.system.errors import ConfigError

ARRAYS = {"w": np.arange(3000, dtype=np.float32).reshape(3, 1000), "n": np.array(7, np.int32)}


@pytest.fixture(scope="module")
def pristine():
    """The objects of checkpoints 1 and 2, by name."""
    folder = new_bucket()
    filled(folder, [1, 2])
    return {name: (folder / name).read_bytes() for name in folder.sizes()}


@pytest.fixture
def folder(pristine):
    copy = new_bucket()
    for name, data in pristine.items():
        (copy / name).write_bytes(data)
    return copy


def names(folder):
    return sorted(on_disk(folder), key=int)


def test_the_newest_few_are_kept_and_the_newest_is_restored():
    folder = new_bucket()
    filled(folder, [1, 5, 20], keep=2)
    assert names(folder) == ["5", "20"]
    assert restored(folder) == (20, [])


def test_what_is_in_the_bucket_is_a_checkpoint_of_orbax(folder, tmp_path):
    """Which anyone may download, and read without lbsgd."""
    for name in (folder / "2").sizes():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "2" / name).download(tmp_path / name)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore())
    handler = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler())
    found = ocp.Checkpointer(handler).restore(tmp_path, args=args).state
    np.testing.assert_array_equal(found["params/head/kernel"], np.full((40, 30), 2, np.float32))


def damages(data):
    yield b""
    yield data[: len(data) // 2]
    yield data[:20] + bytes([data[20] ^ 1]) + data[21:] if len(data) > 20 else b"x"


FEW = ("2/manifest/metadata", "2/state/manifest.ocdbt")


@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.long)])
def test_any_damaged_object_leaves_the_same_state_or_the_one_before(which, folder, pristine):
    """`restored` compares the state bit by bit."""
    gone = 0
    for name in FEW if which == "few" else [n for n in pristine if n.startswith("2/")]:
        for data in (*damages(pristine[name]), None):
            (folder / name).write_bytes(data) if data is not None else (folder / name).unlink()
            update, said = restored(folder)
            assert update == 2 or (update == 1 and len(said) <= 1)
            gone += update == 1
        (folder / name).write_bytes(pristine[name])
    assert gone >= 4 * len(FEW)


def test_an_upload_without_a_manifest_is_no_checkpoint_and_is_cleared_away(folder, capsys):
    (folder / "2" / "manifest" / "metadata").unlink()
    assert store.updates_in(folder) == [1]
    assert main(["list", str(folder)]) == 0
    assert "2: a save that is under way, or was interrupted; never used" in capsys.readouterr().out
    assert restored(folder) == (1, [])
    assert names(folder) == ["1"]


# --- interrupted between any two objects -------------------------------------------------------


class KilledError(Exception):
    """Stands for the end of the process."""


def killed_at(monkeypatch, method, number):
    """Lets so many calls of a method of paths in buckets pass, and no more."""
    real, calls = getattr(BucketPath, method), iter(range(number))

    def counted(*args, **options):
        if next(calls, None) is None:
            raise KilledError
        return real(*args, **options)

    monkeypatch.setattr(BucketPath, method, counted)


def test_a_save_that_is_killed_before_its_last_object_is_none(monkeypatch):
    path = new_bucket() / "3"
    store.write(path, manifest.make_manifest(3, {}, ARRAYS), ARRAYS)
    assert store.updates_in(path.parent) == [3]
    objects = len(path.sizes())
    transfer.remove(path)
    # Orbax may write a file more or less another time: not by the number of the very last.
    for number in (0, objects // 2):
        with monkeypatch.context() as m:
            killed_at(m, "upload", number)
            with pytest.raises(KilledError):
                store.write(path, manifest.make_manifest(3, {}, ARRAYS), ARRAYS)
        assert store.updates_in(path.parent) == []


def test_a_removal_that_is_killed_at_any_object_leaves_none(folder, pristine, monkeypatch):
    for number in range(1, len((folder / "2").sizes())):
        with monkeypatch.context() as m:
            killed_at(m, "unlink", number)
            with pytest.raises(KilledError):
                transfer.remove(folder / "2")
        assert store.updates_in(folder) == [1]
        for name, data in pristine.items():
            (folder / name).write_bytes(data)


def test_a_bucket_that_fails_is_said_and_training_goes_on(folder, monkeypatch):
    def refuse(*_):
        raise OSError(5, "no route")

    with Opened(folder) as opened:
        with monkeypatch.context() as m:
            m.setattr(BucketPath, "upload", refuse)
            opened.checkpoints.save(3, state(3))
            opened.checkpoints.wait()
        opened.checkpoints.save(4, state(4))
    assert opened.said == [
        "checkpoint 3 could not be written (no route); training goes on, there is no good one"
    ]
    assert restored(folder)[0] == 4


def test_what_the_bucket_gives_back_is_what_counts(folder, monkeypatch):
    """It took the arrays, and has others."""
    real = BucketPath.upload

    def flips(self, file):
        real(self, file)
        if "/ocdbt.process_0/d/" in str(self):
            self.write_bytes(bytes(self.stat().st_size))

    with Opened(folder) as opened:
        with monkeypatch.context() as m:
            m.setattr(BucketPath, "upload", flips)
            opened.checkpoints.save(3, state(3))
            opened.checkpoints.wait()
        assert opened.checkpoints.newest is None
    assert "checkpoint 3 could not be written (reading it back: " in opened.said[0]
    assert names(folder) == ["1", "2"]


def test_an_object_cannot_lead_out_of_the_folder(folder, monkeypatch):
    real = BucketPath.sizes
    monkeypatch.setattr(BucketPath, "sizes", lambda self: {**real(self), "../../escaped/x": 1})
    with pytest.raises(store.DamagedError, match=r"may not hold one of"):
        store.read_manifest(folder / "2")


def test_the_command_takes_a_workdir_its_checkpoints_and_one_of_them(capsys):
    workdir = new_bucket()
    filled(workdir / "checkpoints", [1, 2])
    for place in (workdir, workdir / "checkpoints", workdir / "checkpoints" / "2"):
        assert main(["verify", str(place)]) == 0
        assert f"{workdir}/checkpoints/2: ok, " in capsys.readouterr().out
    assert main(["show", str(workdir), "1"]) == 0
    (workdir / "checkpoints" / "2" / "state" / "manifest.ocdbt").write_bytes(b"")
    assert main(["verify", str(workdir)]) == 1
    assert main(["list", str(workdir / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_no_good_checkpoint_is_a_line(folder):
    for update in ("1", "2"):
        (folder / update / "_CHECKPOINT_METADATA").unlink()
        (folder / update / "state" / "manifest.ocdbt").write_bytes(b"")
    with Opened(folder) as opened:
        with pytest.raises(ConfigError, match=r"none of the 2 checkpoints in .*://.* is good"):
            opened.checkpoints.restore(state())
