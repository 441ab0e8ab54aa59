"""Which checkpoints stay, and which are written or removed."""

import shutil

import numpy as np
import pytest
from checkpoint_folder import Opened, damage, filled, on_disk, restored, state


def test_the_newest_few_are_kept(tmp_path):
    filled(tmp_path, [1, 5, 9, 20], keep=2)
    assert on_disk(tmp_path) == ["20", "9"]


def test_damaged_ones_do_not_count_and_go_once_they_are_old(tmp_path):
    """3 was damaged while nobody looked: 1 and 2 are what there is besides 4."""
    filled(tmp_path, [1, 2, 3])
    damage(tmp_path / "3")
    with Opened(tmp_path, keep=3) as opened:
        opened.checkpoints.save(4, state(4))
        opened.checkpoints.wait()
        assert on_disk(tmp_path) == ["1", "2", "3", "4"]
        opened.checkpoints.save(5, state(5))
        opened.checkpoints.wait()
        assert on_disk(tmp_path) == ["2", "3", "4", "5"]
        opened.checkpoints.save(6, state(6))
        opened.checkpoints.wait()
        assert on_disk(tmp_path) == ["4", "5", "6"]
    assert opened.said == []


def test_a_run_that_went_back_keeps_what_it_saves(tmp_path):
    """Newer ones than its own are not its newest: here one of another run, and a damaged one."""
    filled(tmp_path, [3])
    filled(tmp_path, [8], identity={"seed": 5})
    filled(tmp_path, [9])
    damage(tmp_path / "9")
    with Opened(tmp_path, keep=1) as opened:
        assert opened.checkpoints.restore(state())[0] == 3
        opened.checkpoints.save(6, state(6))
        opened.checkpoints.wait()
        assert opened.checkpoints.newest == 6
    assert on_disk(tmp_path) == ["6", "8", "9"]
    assert restored(tmp_path)[0] == 6


def test_a_run_that_looks_at_none_keeps_what_it_saves(tmp_path):
    """Though there is a newer good one."""
    filled(tmp_path, [9])
    filled(tmp_path, [6], keep=1)
    assert on_disk(tmp_path) == ["6", "9"]


def test_one_is_left_though_none_are_to_be_kept(tmp_path):
    filled(tmp_path, [1, 2], keep=0)
    assert on_disk(tmp_path) == ["2"]


def test_a_good_one_is_not_written_again(tmp_path):
    """Neither in this process nor in the next, which has to read it for that."""
    filled(tmp_path, [5])
    before = (tmp_path / "5" / "manifest" / "metadata").stat().st_ino
    with Opened(tmp_path) as opened:
        for _ in range(2):
            opened.checkpoints.save(5, state(6))
            opened.checkpoints.wait()
        assert opened.checkpoints.newest == 5
    assert opened.checkpoints.costs.saved == 0
    assert (tmp_path / "5" / "manifest" / "metadata").stat().st_ino == before
    assert restored(tmp_path) == (5, [])


@pytest.mark.parametrize("look", [True, False])
def test_a_damaged_one_is_replaced(tmp_path, look):
    filled(tmp_path, [4, 5])
    damage(tmp_path / "5")
    with Opened(tmp_path) as opened:
        if look:
            assert opened.checkpoints.restore(state())[0] == 4
        opened.checkpoints.save(5, state(5))
    assert restored(tmp_path) == (5, [])
    assert on_disk(tmp_path) == ["4", "5"]


def test_what_interrupted_saves_left_is_never_used_and_is_cleared_away(tmp_path):
    """Even if it is whole: a save is what its name says."""
    filled(tmp_path, [1, 2])
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "1", tmp_path / "8.orbax-checkpoint-tmp-removed")
    assert restored(tmp_path) == (1, [])
    assert on_disk(tmp_path) == ["1"]


def test_old_ones_that_cannot_be_removed_are_named(tmp_path, monkeypatch):
    filled(tmp_path, [1, 2])

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    with Opened(tmp_path, keep=1) as opened:
        monkeypatch.setattr(shutil, "rmtree", refuse)
        opened.checkpoints.save(3, state(3))
    assert opened.said == ["old checkpoints could not be removed (Permission denied)"]
    assert opened.checkpoints.newest == 3


def saved(opened, update, best=False):
    opened.checkpoints.save(update, state(update), best=best)
    opened.checkpoints.wait()


def test_the_best_is_kept_until_a_better_one_is_saved(tmp_path):
    with Opened(tmp_path, keep=2) as opened:
        saved(opened, 1)
        saved(opened, 1, best=True)  # it was saved before it was evaluated
        for update in (2, 3, 4):
            saved(opened, update)
        assert on_disk(tmp_path) == ["1", "3", "4"]
        saved(opened, 5, best=True)
        assert on_disk(tmp_path) == ["4", "5"]
        saved(opened, 6)
        assert on_disk(tmp_path) == ["5", "6"]
        assert opened.checkpoints.best == 5
        saved(opened, 6, best=True)
        saved(opened, 7)
        assert on_disk(tmp_path) == ["6", "7"]
    assert opened.said == []


def test_the_best_stays_where_a_better_one_cannot_be_saved(tmp_path):
    with Opened(tmp_path, keep=1) as opened:
        saved(opened, 1, best=True)
        saved(opened, 2)
        opened.checkpoints.save(3, {"x": np.array(np.nan)}, best=True)
        opened.checkpoints.wait()
        assert opened.checkpoints.best == 1
        saved(opened, 4)
        assert on_disk(tmp_path) == ["1", "4"]


def test_the_best_of_before_is_the_first_that_is_there_and_good(tmp_path):
    filled(tmp_path, [1, 2, 3])
    damage(tmp_path / "2")
    with Opened(tmp_path, keep=1) as opened:
        assert opened.checkpoints.keep_best_of([9, 2, 1, 3]) == 1
        saved(opened, 4)
        assert on_disk(tmp_path) == ["1", "4"]
        assert opened.checkpoints.keep_best_of([9, 8]) is None
