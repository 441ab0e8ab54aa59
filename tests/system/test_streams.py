"""Output that nobody takes ends nothing."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hanging import HANG_SECONDS
from terminal import open_terminal, start

from lbsgd.data.packed.reader import read_index
from lbsgd.run.record.metrics import read_metrics
from lbsgd.system import streams
from lbsgd.system.streams import never_failing

ROOT = pathlib.Path(__file__).parents[2]


def writer(file: int, encoding: str = "utf-8") -> io.TextIOWrapper:
    """A stream as Python opens it for print, and a never-failing one in its place."""
    return never_failing(io.TextIOWrapper(io.FileIO(file, "w", closefd=False), encoding))


@contextlib.contextmanager
def pipe_without_reader():
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@contextlib.contextmanager
def full_disk():
    file = os.open("/dev/full", os.O_WRONLY)
    yield file
    os.close(file)


@contextlib.contextmanager
def terminal_that_is_gone():
    shows, end = open_terminal(80)
    os.close(shows)
    yield end
    os.close(end)


@contextlib.contextmanager
def file_not_to_be_written():
    file = os.open(os.devnull, os.O_RDONLY)
    yield file
    os.close(file)


@pytest.mark.parametrize(
    "nobody", [pipe_without_reader, full_disk, terminal_that_is_gone, file_not_to_be_written]
)
def test_what_nobody_takes_is_lost_without_an_error(nobody):
    with nobody() as file:
        with pytest.raises(OSError, match=r"\[Errno"):  # what is tested does happen
            os.write(file, b"x")
        stream = writer(file)
        print("a line", file=stream, flush=True)
        print("x" * 100_000, file=stream)
        stream.close()


def test_a_disk_that_has_room_again_is_written_again(tmp_path):
    with full_disk() as file:
        stream = writer(file)
        print("lost", file=stream, flush=True)
        with (tmp_path / "out").open("wb") as room:
            os.dup2(room.fileno(), file)
        print("kept", file=stream, flush=True)
    assert (tmp_path / "out").read_text() == "kept\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"r_\xe9 \u4e2d \udce9"),
        ("latin-1", b"r_\xe9 \\u4e2d \\udce9"),
        ("utf-8", b"r_\xc3\xa9 \xe4\xb8\xad \\udce9"),  # the last is of a name that is not UTF-8
    ],
)
def test_characters_that_a_stream_has_not_are_escaped(tmp_path, encoding, shown):
    path = tmp_path / "out"
    with path.open("wb") as file:
        stream = writer(file.fileno(), encoding)
        print("r_\xe9 \u4e2d \udce9", file=stream, flush=True)
        assert stream.encoding == encoding
    assert path.read_bytes() == shown + b"\n"


def test_a_file_that_would_block_is_waited_for():
    read, write = os.pipe()
    os.set_blocking(write, False)
    data = bytes(range(256)) * 4096  # 16 times what a pipe holds

    def write_and_close():
        streams.write_or_lose(write, data)
        os.close(write)

    with subprocess.Popen(["cat"], stdin=read, stdout=subprocess.PIPE) as reader:
        os.close(read)
        threading.Thread(target=write_and_close).start()
        assert reader.stdout.read() == data


# --- commands ----------------------------------------------------------------------------------

COMMANDS = ["train", "prepare", "checkpoint", "diagnose", "launch", "configs"]


def shell(text: str, **env: str) -> tuple[int, str]:
    """Exit code and stderr of a line of bash, in which $lbsgd is `python -m lbsgd.main`."""
    env = {**os.environ, "lbsgd": f"{sys.executable} -m lbsgd.main", **env}
    env.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_outlives_its_output(command):
    """At its last flush too, of which Python makes the exit code 120."""
    assert shell(f"$lbsgd {command} --help >/dev/full") == (0, "")


def test_a_file_is_not_printed_over_where_streams_were_closed(tmp_path):
    script = (
        "import os, sys\n"
        "from lbsgd.system.streams import protect_streams\n"
        "protect_streams()\n"
        "file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "assert file > 2, file\n"
        "print('\\u4e2d \\udce9'); print('lost', file=sys.stderr)\n"
        "os.write(1, b'lost'); os.write(2, b'lost')\n"
        "os.write(file, b'kept')\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, str(out)]
    done = subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command], cwd=ROOT)
    assert done.returncode == 0
    assert out.read_text() == "kept"


def test_streams_of_others_stay(monkeypatch):
    """As those of a notebook."""
    theirs = io.StringIO()
    monkeypatch.setattr(sys, "stdout", theirs)
    monkeypatch.setattr(sys, "stderr", theirs)
    streams.protect_streams()
    assert sys.stdout is sys.stderr is theirs


SMALL = (
    "--config=configs/digits.py",
    "--config.model.width=0.25",
    "--config.total_epochs=0",
    "--config.learning_rate.warmup_epochs=0.1",
    "--config.total_steps=4",
)


def whole_log(workdir: pathlib.Path) -> bool:
    """Whether the log has the first and the last line of a run."""
    text = (workdir / "logs" / "0.log").read_text()
    return "process 0 of 1" in text and f"metrics    {workdir / 'metrics.jsonl'}" in text


@pytest.mark.long
@pytest.mark.parametrize(
    "how", [">/dev/full", ">/dev/full 2>&1", ">&-", "<&- >&- 2>&-", "| true", "2>&1 | head -1"]
)
def test_a_run_goes_on_and_saves(how, tmp_path):
    line = f"$lbsgd {' '.join(SMALL)} --workdir={tmp_path} {how} ; exit ${{PIPESTATUS[0]}}"
    code, err = shell(line)
    assert (code, err) == (0, "")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert whole_log(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_run_in_a_folder_with_another_name(encoding, tmp_path):
    workdir = tmp_path / "r_é中"
    line = f"$lbsgd {' '.join(SMALL)} --workdir={workdir} >{tmp_path / 'out'}"
    assert shell(line, PYTHONIOENCODING=encoding) == (0, "")
    shown = f"metrics    {workdir / 'metrics.jsonl'}".encode(encoding, "backslashreplace")
    assert shown in (tmp_path / "out").read_bytes()
    assert whole_log(workdir)


@pytest.mark.long
@pytest.mark.parametrize("how", ["| head -1 >/dev/null", ">/dev/full", ">&-"])
def test_explain_that_nobody_reads(how):
    assert shell(f"$lbsgd {SMALL[0]} --explain {how}; exit ${{PIPESTATUS[0]}}") == (0, "")


@pytest.mark.parametrize("how", ["| true", "2>&1 >&-"])
def test_a_preparation_that_nobody_watches(how, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 4, 4, 3), np.uint8), labels=np.arange(9))
    prepare = f"$lbsgd prepare {tmp_path / 'a.npz'} {tmp_path / 'out'}"
    assert shell(f"{prepare} {how}; exit ${{PIPESTATUS[0]}}") == (0, "")
    assert read_index(tmp_path / "out" / "train").examples == 9


@pytest.mark.long
def test_a_launcher_that_nobody_watches(tmp_path):
    run = f"--num_processes=2 -- {' '.join(SMALL)} --workdir={tmp_path}"
    assert shell(f"$lbsgd launch {run} <&- >&- 2>&-") == (0, "")
    assert "process 0 of 2" in (tmp_path / "logs" / "0.log").read_text()


@pytest.mark.long
@pytest.mark.parametrize(("hangs_up", "code", "steps"), [(False, 0, 60), (True, 75, 4000)])
def test_a_run_whose_terminal_goes_away_is_saved(hangs_up, code, steps, tmp_path):
    """With SIGHUP it stops; without, as one that is not in the terminal's session, it goes on."""
    shows, end = open_terminal(80)
    command = [sys.executable, "-m", "lbsgd.main", *SMALL[:4], f"--config.total_steps={steps}"]
    process = start([*command, f"--workdir={tmp_path}"], end, hangs_up)
    metrics, shown = tmp_path / "metrics.jsonl", b""
    while not (metrics.exists() and metrics.stat().st_size):
        shown += os.read(shows, 1024)  # which fails where the process has ended
    os.close(shows)
    assert process.wait(timeout=HANG_SECONDS) == code
    lines = read_metrics(metrics)
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == lines[-1]["step"]
    assert (saved == steps) == (code == 0)
    assert whole_log(tmp_path)


# A bar, which a thread draws again and again, of which the terminal goes away in between.
BARS = {
    "of a run": """
from lbsgd.run.record.progress import BarProgress
bar = BarProgress(100, {})
bar.begin(4)
advance = lambda i: bar.show(i, 1.5, {"train_loss": 2.0})
""",
    "of a preparation": """
from lbsgd.system.progress import CountProgress
bar = CountProgress("images", 100)
bar.start(4)
advance = lambda i: bar.advance(1)
""",
}
GOES_AWAY = """
import os, pathlib, sys, time
from lbsgd.system.streams import protect_streams
protect_streams()
{bar}
pathlib.Path("here").touch()
while os.isatty(1):
    time.sleep(0.01)
for i in range(5, 9):
    advance(i)
    bar.line("a line")
    time.sleep(0.15)
bar.close()
pathlib.Path("went on").touch()
"""


@pytest.mark.parametrize("bar", BARS)
def test_a_bar_whose_terminal_goes_away(bar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shows, end = open_terminal(80)
    script = GOES_AWAY.format(bar=BARS[bar])
    process = start([sys.executable, "-c", script], end, PYTHONPATH=str(ROOT))
    while not (tmp_path / "here").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.close(shows)
    assert process.wait(timeout=HANG_SECONDS) == 0
    assert (tmp_path / "went on").exists()
