"""What a preparation shows while it goes on."""

import contextlib
import os
import pty
import subprocess
import sys

import pytest

from lbsgd.data import progress
from lbsgd.data.progress import Progress


def test_elsewhere_it_is_a_line_every_so_often(capsys, monkeypatch):
    clock = iter([0.0, 4.0, 12.0, 13.0, 22.5])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    shown = Progress("train, images", 5000)
    shown.start(1000)
    for _ in range(4):
        shown.advance(500)
    shown.line("beside")
    shown.close()
    assert capsys.readouterr().out.splitlines() == [
        "train, images: 2,000 of 5,000",
        "train, images: 3,000 of 5,000",
        "beside",
    ]
    assert shown.advanced == 2000


@pytest.mark.parametrize("code", [0, 1])
def test_on_a_terminal_it_is_a_bar_that_goes_away(code):
    """Also where an error ends it: the cursor, which a bar hides, is back."""
    script = (
        "import contextlib, sys\n"
        "from lbsgd.data.progress import Progress\n"
        "with contextlib.closing(Progress('train, images', 5000)) as shown:\n"
        "    shown.start(1000)\n"
        "    shown.advance(500)\n"
        "    shown.line('a line [bold] above')\n"
        f"    sys.exit({code})\n"
    )
    terminal, end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", script], stdin=end, stdout=end, stderr=end)
    os.close(end)
    text = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while data := os.read(terminal, 1024):
            text += data
    os.close(terminal)
    assert process.wait(timeout=60) == code, text
    for part in (b"train, images", b"1,500 of 5,000", b"a line [bold] above"):
        assert part in text
    assert text.rfind(b"\x1b[?25h") > text.rfind(b"\x1b[?25l")
