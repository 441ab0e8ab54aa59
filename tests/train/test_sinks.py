"""Where the metrics of a run go besides metrics.jsonl."""

import pathlib
import sys
import types

import pytest
from tiny_run import UPDATES, tiny_config

from lbsgd import train
from lbsgd.run.record.metrics import read_metrics

# TensorBoard reads without tensorflow, which takes seconds to import, where this is set.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))

MINE = '''\
import json

class Lines:
    """Appends lines to a file in the workdir, and fails at some step."""

    def __init__(self, folder, start, fails_at):
        self.fails_at = fails_at
        self.file = (folder / "lines.jsonl").open("a")

    def __call__(self, step, values):
        if step == self.fails_at:
            raise OSError("no route to host")
        self.file.write(json.dumps({"step": step, **values}) + "\\n")
        values.clear()

    def close(self):
        self.file.close()
'''


def shown_by_tensorboard(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    names = events.Tags()["scalars"]
    return sorted(
        (event.step, name, event.value) for name in names for event in events.Scalars(name)
    )


KEYS = {
    "log.sinks": ("sinks_of_a_run:Lines", "tensorboard"),
    "log.sink_options": {"Lines": {"fails_at": 11}},
}
# TensorBoard's numbers have 24 bits.
FLOAT32 = 2.0**-24


class Told(list):
    """The lines of metrics that `on_metrics` was told of."""

    def __call__(self, step, values):
        self.append({"step": step, **values})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The workdir of a run, which is started where there is a sink of a user."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sinks_of_a_run.py").write_text(MINE)
    return tmp_path / "run"


def check(folder, lines, capsys) -> None:
    """Compares what metrics.jsonl, `on_metrics` and TensorBoard have; one sink has failed."""
    written = read_metrics(folder / "metrics.jsonl")
    assert [{**line, "epoch": round(line["epoch"], 6)} for line in lines] == written
    assert {line["step"] for line in written} == {*range(1, UPDATES + 1)}
    expected = sorted(
        (line["step"], name, value)
        for line in lines
        for name, value in line.items()
        if name != "step"
    )
    for shown, (*of, value) in zip(shown_by_tensorboard(folder / "tensorboard"), expected):
        assert shown == (*of, pytest.approx(value, rel=FLOAT32))
    assert len(shown_by_tensorboard(folder / "tensorboard")) == len(expected)
    said = "line 12: OSError: no route to host; the run continues without it\n"
    assert capsys.readouterr().out.count(said) == 1


@pytest.mark.long
def test_sinks_and_on_metrics_get_each_line_of_metrics(folder, capsys):
    told = Told()
    assert train.run(tiny_config(**KEYS), folder, on_metrics=told).complete
    check(folder, told, capsys)
    own = [line["step"] for line in read_metrics(folder / "lines.jsonl")]
    assert own == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]


@pytest.mark.long
def test_a_run_that_was_killed_and_resumes_has_each_step_once(folder, capsys):
    told = Told()

    def die(done):
        if done == 7:
            raise RuntimeError("killed")
        return False

    with pytest.raises(RuntimeError, match="killed"):
        train.run(tiny_config(**KEYS), folder, should_stop=die, on_metrics=told)
    assert told[-1]["step"] > 4  # of which the checkpoint is that there is
    told = Told(line for line in told if line["step"] <= 4)
    assert train.run(tiny_config(**KEYS), folder, on_metrics=told).complete
    check(folder, told, capsys)


@pytest.mark.long
def test_a_run_that_is_complete_opens_no_sink(folder):
    config = tiny_config(**KEYS)
    assert train.run(config, folder).complete
    before = sorted((folder / "tensorboard").iterdir())
    assert train.run(config, folder).complete
    assert sorted((folder / "tensorboard").iterdir()) == before
