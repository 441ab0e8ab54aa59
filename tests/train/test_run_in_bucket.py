"""A run in a bucket is the run on the disk, however often it is killed, stopped and damaged."""

import json
import threading
import time

import pytest
from buckets import new_bucket
from tiny_run import tiny_config

from lbsgd import train
from lbsgd.checkpoint import store
from lbsgd.run import flags, workdir
from lbsgd.run.record.metrics import read_metrics
from lbsgd.run.workdir import Workdir
from lbsgd.system import locks
from lbsgd.system.errors import ConfigError


def metrics_without_speed(folder) -> list[dict]:
    timed = ("images_per_second", "data_wait_percent")
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def killed_after(update: int):
    def die(done: int) -> bool:
        if done == update:
            raise KeyboardInterrupt
        return False

    return die


def checksums(folder) -> dict[str, str]:
    """Of all arrays of the last state; they were compared with what was read back."""
    arrays = store.read_manifest(folder / "checkpoints" / "12").arrays
    return {name: entry.sha256 for name, entry in arrays.items()}


@pytest.mark.long
def test_a_run_that_was_killed_and_damaged_is_the_run_on_the_disk(whole_run, capsys):
    folder = new_bucket()
    with pytest.raises(KeyboardInterrupt):
        train.run(tiny_config(), str(folder), should_stop=killed_after(10))
    # Metrics of updates that no checkpoint has, which are made again.
    assert store.updates_in(folder / "checkpoints") == [8, 4]
    assert metrics_without_speed(folder)[-1]["step"] > 8
    (folder / "checkpoints" / "8" / "state" / "manifest.ocdbt").write_bytes(b"")
    capsys.readouterr()
    assert train.run(tiny_config(), folder).complete
    out = capsys.readouterr().out
    assert "checkpoint 8 is passed over: " in out
    assert f"resumes after update 4 from {folder}/checkpoints" in out
    assert checksums(folder) == checksums(whole_run)
    assert metrics_without_speed(folder) == metrics_without_speed(whole_run)
    check_what_is_there(folder, whole_run)


@pytest.mark.long
@pytest.mark.parametrize("stops", [(4, 7), (2, 5, 12), (0, 11)])
def test_a_run_that_was_stopped_is_the_run_on_the_disk(stops, whole_run):
    folder = new_bucket()
    for stop in stops:
        outcome = train.run(tiny_config(), folder, should_stop=lambda done, stop=stop: done == stop)
        assert (outcome.updates, outcome.complete) == (stop, False)
    assert train.run(tiny_config(), folder).complete
    assert checksums(folder) == checksums(whole_run)
    assert metrics_without_speed(folder) == metrics_without_speed(whole_run)


def check_what_is_there(folder, disk) -> None:
    """The same files as on the disk, but for the lock; and what is in them."""
    there = {name for name in folder.sizes() if not name.startswith("checkpoints")}
    files = {str(p.relative_to(disk)) for p in disk.rglob("*") if p.is_file()}
    assert there == {n for n in files if not n.startswith("checkpoints")} - {".lock"}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "result.json").read_bytes())["complete"]
    assert (folder / "parameters.txt").read_bytes() == (disk / "parameters.txt").read_bytes()
    log = (folder / "logs" / "0.log").read_text()
    assert log.count("process 0 of 1: pid ") == 2
    assert "KeyboardInterrupt" in log
    assert flags.parse([f"--workdir={folder}"]).workdir == folder


def take_over(folder) -> None:
    """Takes a workdir, as one may whose lock was not renewed: its machine slept."""
    other = {"holder": "process 7 on b", "token": "x"}
    (folder / ".lock" / "2").write_bytes(json.dumps(other).encode())


def test_a_workdir_that_was_taken_over_is_not_held():
    folder = Workdir(new_bucket())
    folder.check_held()  # as of processes that never claim it
    lock = folder.claim({}, {}, {})
    folder.check_held()
    take_over(folder.path)
    with pytest.raises(ConfigError, match=r"was taken over by process 7 on b, .* it ends here"):
        folder.check_held()
    lock.close()


@pytest.mark.long
def test_a_run_whose_workdir_was_taken_over_ends():
    folder = new_bucket()

    def another_comes(done: int) -> bool:
        if done == 6:
            take_over(folder)
        return False

    with pytest.raises(ConfigError, match=r"was taken over by process 7 on b, .* it ends here"):
        train.run(tiny_config(), folder, should_stop=another_comes)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["4"]
    assert [p.name for p in (folder / ".lock").iterdir()] == ["2"]


def test_a_workdir_in_a_bucket_is_one_process_s_at_a_time(monkeypatch):
    folder, said = Workdir(new_bucket()), []
    held = folder.claim({}, {}, {})
    monkeypatch.setattr(workdir, "LOCK_SECONDS", 0.8)
    with pytest.raises(ConfigError, match=r"in use by process .* end that or choose another --wor"):
        Workdir(folder.path).claim({}, {}, {}, say=said.append)
    (line,) = said
    assert line.startswith(f"waits for workdir {folder.path}, which is in use by process ")
    threading.Timer(0.2, held.close).start()
    monkeypatch.setattr(workdir, "LOCK_SECONDS", 60.0)
    Workdir(folder.path).claim({}, {}, {}, say=said.append).close()


def test_a_workdir_of_a_dead_process_is_taken_over(monkeypatch):
    folder, said = new_bucket(), []
    Workdir(folder).claim({}, {}, {})
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.2)
    begun = time.monotonic()
    Workdir(folder).claim({}, {}, {}, say=said.append).close()
    assert time.monotonic() - begun > 0.2
    assert len(said) == 1


def test_a_workdir_in_a_bucket_belongs_to_its_run():
    folder = Workdir(new_bucket())
    folder.claim({"batch_size": 8}, {}, {}).close()
    (folder.path / "metrics.jsonl").write_bytes(b"{}\n")
    with pytest.raises(ConfigError, match="holds a run that differs in batch_size"):
        folder.claim({"batch_size": 16}, {}, {})


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("az://bucket/run", "of buckets gs:// and s3:// are known"),
        ("s3:/bucket", "names no bucket; write s3://BUCKET/FOLDER"),
    ],
)
def test_other_places_are_no_workdir(place, says):
    with pytest.raises(ConfigError, match=says):
        flags.parse([f"--workdir={place}"])
    with pytest.raises(ConfigError, match=says):
        train.run(tiny_config(), place)


def test_a_bucket_that_cannot_be_written_is_a_line(monkeypatch):
    folder = new_bucket()

    def refuse(*_, **__):
        raise OSError(13, "Access Denied")

    monkeypatch.setattr(type(folder), "create", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written \(Access Denied\); choose another"):
        Workdir(folder).claim({}, {}, {})
