"""The launcher passes on what its processes say: every byte, line by line, and who said it."""

import os
import re
import signal
import subprocess
import time

from hanging import HANG_SECONDS
from launching import finish, launch, launcher, starts, wait_until_dead, words

from lbsgd.launch import process_group


def test_stdout_and_stderr_stay_apart_and_every_byte_is_kept(tmp_path):
    program = r"""
os.write(1, b"out \xff\r\n\n  indented\nno end")
os.write(2, b"err\nno end either")
"""
    process = launcher(tmp_path, program, processes=1)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert out == b"[0] out \xff\r\n[0] \n[0]   indented\n[0] no end\n"
    assert err.splitlines()[1:] == [b"[0] err", b"[0] no end either"]


def test_lines_are_never_mixed(tmp_path):
    """Of three processes and both streams, into one file, each line written in two pieces."""
    program = """
for i in range(100):
    for file in (1, 2):
        os.write(file, f"<{me}{file} {i} {'x' * 3000}".encode())
        os.write(file, f"{'y' * 3000}>\\n".encode())
"""
    _, out, _ = launch(tmp_path, program, processes=3, stderr=subprocess.STDOUT)
    lines = [line for line in out.splitlines() if not line.startswith("[launcher]")]
    for me in range(3):
        for file in (1, 2):
            assert [line for line in lines if line.startswith(f"[{me}] <{me}{file}")] == [
                f"[{me}] <{me}{file} {i} {'x' * 3000}{'y' * 3000}>" for i in range(100)
            ]
    assert len(lines) == 600


def test_output_comes_line_by_line(tmp_path):
    """Python holds back what it writes into a pipe, unless told."""
    process = launcher(tmp_path, "print('now'); wait_for('go')", processes=1)
    assert process.stdout.readline() == b"[0] now\n"
    (tmp_path / "go").touch()
    assert finish(process)[0] == 0


def test_line_without_end_needs_no_memory_without_end(tmp_path):
    longest = process_group.LONGEST_LINE
    program = f"os.write(1, b'x' * {2 * longest + 5}); os.write(1, b'!\\nnext')"
    _, out, _ = launch(tmp_path, program, processes=1)
    pieces = ["x" * longest, "x" * longest, "xxxxx!", "next"]
    assert out.splitlines() == [f"[0] {piece}" for piece in pieces]


def test_last_words_come_before_what_is_said_of_the_process(tmp_path):
    program = "[print(i, file=sys.stderr) for i in range(500)]; end(1)"
    first = """
import time
copy = process_group.Output.copy
process_group.Output.copy = lambda *args: (time.sleep(0.3), copy(*args))
"""
    _, _, err = launch(tmp_path, program, processes=1, first=first)
    assert err.splitlines()[1:] == [
        *(f"[0] {i}" for i in range(500)),
        re.search(r"\[launcher\] process 0 failed.*", err).group(),
    ]


def test_training_goes_on_when_nobody_reads_any_more(tmp_path):
    read, write = os.pipe()
    os.close(read)
    program = "[print('x' * 1000) for _ in range(1000)]; note('result', 'done')"
    code, _, _ = launch(tmp_path, program, processes=1, stdout=write, stderr=write)
    os.close(write)
    assert code == 0
    assert words(tmp_path, "result") == ["done"]


def test_signals_arrive_while_the_terminal_is_stuck(tmp_path):
    program = """
on_signals(75)
pathlib.Path(f"ready-{me}").touch()
while True:
    os.write(1, b"x" * 10000 + b"\\n")
"""
    process = launcher(tmp_path, program, grace_seconds=3)  # whose output is not read
    for i in range(2):
        while not (tmp_path / f"ready-{i}").exists():
            time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    wait_until_dead(starts(tmp_path, 0) + starts(tmp_path, 1))
    assert words(tmp_path, "signals-0") == words(tmp_path, "signals-1") == ["SIGTERM"]
    assert finish(process)[0] == 75
