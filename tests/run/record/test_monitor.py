"""Metrics, progress and curves."""

import json
import math
import re
import subprocess
import sys

import pytest
import terminal

from lbsgd.run.record.metrics import MetricsFile, read_metrics, read_whole_lines
from lbsgd.run.record.progress import PlainProgress, open_progress
from lbsgd.system.errors import ConfigError
from lbsgd.tasks import Metric
from lbsgd.tasks.classification import classification

METRICS = classification(10).metrics


def test_metrics_are_one_json_object_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write(1, 0.25, {"train_loss": 2.5})
    file.write(2, 0.5, {"train_loss": math.nan, "train_error": math.inf})
    file.close()
    lines = path.read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 1, "epoch": 0.25, "train_loss": 2.5},
        {"step": 2, "epoch": 0.5, "train_loss": None, "train_error": None},
    ]


def test_a_run_that_goes_on_drops_what_it_will_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [{"step": step, "epoch": float(step)} for step in (1, 2, 3)]
    cut_short = '{"step": 4, "ep'
    path.write_text("".join(json.dumps(line) + "\n" for line in whole) + cut_short)
    file = MetricsFile(path, keep_until=2)
    file.write(3, 3.0, {"again": 1})
    file.close()
    assert read_metrics(path) == [*whole[:2], {"step": 3, "epoch": 3.0, "again": 1}]


@pytest.mark.parametrize("damaged", ['x{"step": 1}', "{", ""])
def test_a_damaged_line_is_an_error_and_nothing_is_lost(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    text = f'{damaged}\n{{"step": 2}}\n'
    path.write_text(text)
    with pytest.raises(ConfigError, match="line 1 is damaged"):
        MetricsFile(path, keep_until=5)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("text", "steps", "says"),
    [
        (b'{"step": 1}\n{"st\n{"step": 3}\n', [1, 3], "line 2 is damaged"),
        (b'\xff\x00\n{"step": 2}\n\n[]\n', [2], "line 1 and 2 more are damaged"),
        (b'{"step": 1}\n{"step": 2}\n{"cut', [1, 2], ""),
    ],
)
def test_of_a_damaged_file_what_is_whole_can_be_read(tmp_path, text, steps, says):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text)
    lines, damage = read_whole_lines(path)
    assert [line["step"] for line in lines] == steps
    assert damage == (f"{path}, {says}, and left out here" if says else "")


def test_plain_progress_prints_lines(capsys):
    progress = PlainProgress(total=10, metrics=METRICS, seconds=0.0)
    values = {"train_loss": 1.5, "train_error": 25.0, "learning_rate": 0.1}
    progress.show(5, 0.5, {**values, "images_per_second": 1234.0})
    out = capsys.readouterr().out
    for part in ("epoch 0.50", "update 5/10", "loss 1.500", "error 25.0%", "lr 0.1", "1,234 im"):
        assert part in out
    PlainProgress(total=10, metrics=METRICS, seconds=3600.0).show(1, 0.1, values)
    assert capsys.readouterr().out == ""


def test_progress_shows_the_metrics_of_the_task(capsys):
    metrics = {"iou": Metric("%", rises=True, words="overlap"), "depth": Metric()}
    progress = PlainProgress(total=10, metrics=metrics, seconds=0.0)
    values = {"train_loss": 1.5, "train_iou": 25.0, "train_depth": 12.345, "train_error": 1.0}
    progress.show(5, 0.5, values)
    assert "update 5/10  loss 1.500  overlap 25.0%  depth 12.3\n" in capsys.readouterr().out


def test_a_process_that_does_not_speak_writes_to_its_log_alone(capsys):
    said = []
    progress = open_progress(10, METRICS, said.append, shown=False)
    progress.begin(4)
    progress.line("a line")
    progress.close()
    assert said == ["a line"]
    assert capsys.readouterr().out == ""


# A file that can hold so many bytes, as on a full disk, and then more; writes that fail say so.
FULL = """
import json, os, pathlib, resource, signal, sys
from lbsgd.run.record.metrics import MetricsFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = pathlib.Path(sys.argv[1])
file = MetricsFile(path)
file.write(1, 0.1, {"train_loss": 1.0})
resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
for step in range(2, 6):
    file.write(step, 0.1, {"train_loss": 1.0})
print(path.stat().st_size, file.flush())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
file.write(6, 0.1, {"train_loss": 1.0})
print(repr(file.flush()))
file.close()
"""


def test_what_a_full_disk_refuses_is_written_when_there_is_room(tmp_path):
    """The line that was cut in the middle is completed, and none is lost or written twice."""
    path = tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, empty = done.stdout.splitlines()
    assert refused == f"60 {path} cannot be written (File too large)"
    assert empty == "''"
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6]


SHOW = """
from lbsgd.run.record.progress import open_progress
from lbsgd.tasks.classification import classification
said = []
progress = open_progress(125000, classification(10).metrics, said.append)
progress.begin(4)
progress.show(7, 1.5, {'train_loss': 2.0, 'train_error': 50.0, 'learning_rate': 0.1})
progress.line('a line [bold] above')
progress.show(123456, 1.5, {'train_loss': 2.0, 'train_error': 50.0, 'learning_rate': 0.1})
progress.close()
assert said == ['a line [bold] above'], said
"""


def test_a_terminal_gets_a_bar():
    """In a terminal of its own, as a user sees it."""
    code, shown = terminal.run([sys.executable, "-c", SHOW], columns=100)
    assert code == 0, shown
    assert "a line [bold] above" in terminal.frames(shown)
    for part in ("123456/125000", "epoch 1.5", "loss 2.000 error 50.0% lr 0.1", "━━━"):
        assert part in terminal.frames(shown)[-1]


@pytest.mark.parametrize(
    ("columns", "env"),
    [
        (45, {}),
        pytest.param(60, {}, marks=pytest.mark.long),
        pytest.param(200, {"COLUMNS": "60"}, marks=pytest.mark.long),
    ],
)
def test_on_a_narrow_terminal_the_bar_keeps_count_and_time(columns, env):
    code, shown = terminal.run([sys.executable, "-c", SHOW], columns, **env)
    assert code == 0, shown
    frame = terminal.frames(shown)[-1]
    assert re.match(r"epoch 1\.5 \S+ 123456/125000 (\d+:\d\d:\d\d|-:--:--) los", frame), frame
    assert len(frame.rstrip()) <= min(columns, 60)


@pytest.mark.parametrize(
    ("columns", "env"),
    [
        (100, {"TERM": "dumb"}),
        (8, {}),
        pytest.param(100, {"COLUMNS": "0"}, marks=pytest.mark.long),
        pytest.param(0, {}, marks=pytest.mark.long),
        pytest.param(0, {"FORCE_COLOR": "1"}, marks=pytest.mark.long),
    ],
)
def test_a_terminal_that_has_no_room_for_a_bar_gets_lines(columns, env):
    code, shown = terminal.run([sys.executable, "-c", SHOW], columns, **env)
    assert (code, shown) == (0, "a line [bold] above\r\n")
