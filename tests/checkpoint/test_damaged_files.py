"""Whatever becomes of the files: the same weights, or the previous ones and the reason."""

import os
import pathlib
import shutil

import pytest
from two_checkpoints import restored, same_or_previous


def truncate(size):
    return lambda path: os.truncate(path, int(path.stat().st_size * size))


def flip(at):
    """Flips one bit of the byte at a part of the file."""

    def change(path):
        data = bytearray(path.read_bytes())
        at_ = min(int(len(data) * at), len(data) - 1)
        data[at_] ^= 1 << (at_ % 8)
        path.write_bytes(data)

    return change


def add(path):
    path.write_bytes(path.read_bytes() + b"}")


HARM = {
    "empty": truncate(0),
    "half": truncate(0.5),
    "nearly all": truncate(0.999),
    "delete": pathlib.Path.unlink,
    "one byte more": add,
    **{f"flip at {at}": flip(at) for at in (0.0, 0.3, 0.5, 0.7, 1.0)},
}
# The end of the largest file is an index that is not in use any more.
OF_DATA = ("empty", "half", "delete", "flip at 0.3", "flip at 0.5", "flip at 0.7")


def files(checkpoint):
    return sorted(p.relative_to(checkpoint) for p in checkpoint.rglob("*") if p.is_file())


def harm_every_file(pristine, tmp_path, harms):
    """Restores after each harm to each file of checkpoint 2: updates by (file, harm)."""
    shutil.copytree(pristine / "1", tmp_path / "1")
    outcome = {}
    for name in files(pristine / "2"):
        for how, harm in harms.items():
            shutil.copytree(pristine / "2", tmp_path / "2")
            harm(tmp_path / "2" / name)
            outcome[str(name), how] = same_or_previous(tmp_path)
            shutil.rmtree(tmp_path / "2")
    return outcome


def largest(checkpoint):
    return max(files(checkpoint), key=lambda name: (checkpoint / name).stat().st_size)


@pytest.mark.parametrize("how", HARM)
def test_every_file_of_the_newest_checkpoint_harmed(pristine, tmp_path, how):
    outcome = harm_every_file(pristine, tmp_path, {how: HARM[how]})
    assert len(outcome) >= 8
    assert outcome["manifest/metadata", how] == 1
    if how in OF_DATA:
        assert outcome[str(largest(pristine / "2")), how] == 1
    assert outcome["commit_success.txt", how] == 2  # of no use to a folder that was renamed


@pytest.mark.long
def test_every_file_flipped_at_many_places(pristine, tmp_path):
    places = [i / 64 for i in range(65)]
    outcome = harm_every_file(pristine, tmp_path, {at: flip(at) for at in places})
    data = str(largest(pristine / "2"))
    assert all(outcome["manifest/metadata", at] == 1 for at in places)
    # Orbax compares nothing there; parts of the file are its index, not all of which is in use.
    assert sum(outcome[data, at] == 1 for at in places) > 60


def test_folders_that_are_missing(folder):
    shutil.rmtree(folder / "2" / "state")
    assert same_or_previous(folder) == 1
    shutil.rmtree(folder / "2" / "manifest")
    assert same_or_previous(folder) == 1
    shutil.rmtree(folder / "2")
    (folder / "2").mkdir()
    assert same_or_previous(folder) == 1


def test_weights_of_another_checkpoint_are_noticed(folder):
    """Whole and sound in every respect, but not those of the manifest."""
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(folder / "1" / "state", folder / "2" / "state")
    update, said = restored(folder)
    assert update == 1
    assert said[0].startswith("checkpoint 2 is passed over: ")
    assert said[0].endswith(" does not have the checksum that it was saved with")


def test_damage_between_two_reads_of_a_process_is_noticed(folder):
    """Nothing is believed for having been read before."""
    assert restored(folder) == (2, [])
    flip(0.5)(folder / "2" / largest(folder / "2"))
    assert restored(folder)[0] == 1
