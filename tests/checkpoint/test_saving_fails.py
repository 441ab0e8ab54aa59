"""A checkpoint that cannot be written is one line, and costs no good one."""

import logging

import pytest
from checkpoint_folder import IDENTITY, Opened, flip, on_disk, restored, state

from lbsgd.checkpoint import store
from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.system.errors import ConfigError

GONE = "could not be written (FOLDER is not there any more)"


def test_a_vanished_folder_is_said_and_training_goes_on(tmp_path):
    """It is not made again: that would be on another file system."""
    folder = tmp_path / "checkpoints"
    with Opened(folder) as opened:
        for update in (1, 2, 3):
            if update == 2:
                opened.checkpoints.wait()
                folder.rename(tmp_path / "away")
            opened.checkpoints.save(update, state(update))
        opened.checkpoints.wait()
        assert not folder.exists()
        assert opened.checkpoints.newest == 1
        (tmp_path / "away").rename(folder)
        opened.checkpoints.save(4, state(4))
    gone = GONE.replace("FOLDER", str(folder))
    assert opened.said == [
        f"checkpoint {update} {gone}; training goes on, the newest good one is 1"
        for update in (2, 3)
    ]
    assert restored(folder) == (4, [])
    assert opened.checkpoints.costs[:2] == (2, 2)


@pytest.mark.parametrize("call", ["save", "check", "close"])
def test_the_run_stops_if_it_is_to(tmp_path, call):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, 2, IDENTITY, on_error="stop", say=pytest.fail)
    folder.rmdir()
    checkpoints.save(1, state())
    checkpoints.wait()
    calls = {"save": lambda: checkpoints.save(2, state(2))}
    with pytest.raises(ConfigError) as error:
        calls.get(call, getattr(checkpoints, call))()
    gone = GONE.replace("FOLDER", str(folder))
    assert str(error.value) == (
        f"checkpoint 1 {gone}; there is no good one; make room or mend {folder}, and the same "
        "command starts anew"
    )
    checkpoints.close()  # once is enough


class ExoticError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ExoticError("all\x1b[31m is\n  lost"),
            "ExoticError: all\N{REPLACEMENT CHARACTER}[31m is lost",
        ),
        (MemoryError(), "MemoryError"),
        (OSError(116, "Stale file handle"), "Stale file handle"),
        (OSError("no number"), "OSError: no number"),
        (ValueError("RESOURCE_EXHAUSTED: x [os_error_code='28'] y"), "No space left on device"),
        (ValueError("DATA_LOSS: x [tensorstore_spec='{...}']"), "ValueError: DATA_LOSS: x"),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 283 + "..."),
    ],
)
def test_whatever_a_library_raises_is_a_line(tmp_path, monkeypatch, error, words):
    def fail(*args):
        raise error

    with Opened(tmp_path) as opened:
        monkeypatch.setattr(store, "write", fail)
        opened.checkpoints.save(1, state())
        opened.checkpoints.wait()
        monkeypatch.undo()
        opened.checkpoints.save(2, state(2))
    assert opened.said == [
        f"checkpoint 1 could not be written ({words}); training goes on, there is no good one"
    ]
    assert restored(tmp_path) == (2, [])


def test_what_was_written_is_read_back(tmp_path, monkeypatch):
    """A disk that does not keep what it is given. The one before stays."""
    real = store.write

    def fading(path, *args):
        real(path, *args)
        largest = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        flip(largest, largest.stat().st_size // 2)

    with Opened(tmp_path, keep=1) as opened:
        opened.checkpoints.save(1, state())
        opened.checkpoints.wait()
        monkeypatch.setattr(store, "write", fading)
        opened.checkpoints.save(2, state(2))
    assert opened.said == [
        "checkpoint 2 could not be written (reading it back: params/head/kernel does not have the "
        "checksum that it was saved with); training goes on, the newest good one is 1"
    ]
    assert on_disk(tmp_path) == ["1"]
    assert restored(tmp_path) == (1, [])


def test_someone_who_cannot_be_told_stops_nothing(tmp_path):
    def say(line):
        raise BrokenPipeError

    checkpoints = Checkpoints(tmp_path / "x", 2, IDENTITY, say=say)
    (tmp_path / "x").rmdir()
    checkpoints.save(1, state())
    checkpoints.close()
    assert checkpoints.costs.failed == 1


def test_what_orbax_leaves_unasked_for_is_not_logged(caplog):
    """Whether asyncio logs it depends on when memory is cleared."""
    store.quiet_orbax()
    logger = logging.getLogger("asyncio")
    logger.error(
        "Task exception was never retrieved\nfuture: <Task defined at /x/orbax/checkpoint/y>"
    )
    logger.error("Task exception was never retrieved\nfuture: <Task defined at /x/mine/y>")
    assert [record.getMessage()[-7:] for record in caplog.records] == ["mine/y>"]
