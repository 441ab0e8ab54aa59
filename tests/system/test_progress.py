"""What a preparation shows while it goes on."""

import re
import sys

import pytest
import terminal

from lbsgd.system import progress
from lbsgd.system.progress import Progress


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


SHOW = """
import contextlib, sys
from lbsgd.system.progress import Progress
with contextlib.closing(Progress('verify, bytes', 150_000_000_000)) as shown:
    shown.start(1000)
    shown.advance(140_000_000_000)
    shown.line('a line [bold] above')
    sys.exit({code})
"""
COUNT = "140,000,001,000 of 150,000,000,000"


@pytest.mark.parametrize("code", [0, 1])
def test_on_a_terminal_it_is_a_bar_that_goes_away(code):
    """Also where an error ends it: the cursor, which a bar hides, is back."""
    ended, shown = terminal.run([sys.executable, "-c", SHOW.format(code=code)], columns=100)
    assert ended == code, shown
    assert "a line [bold] above" in terminal.frames(shown)
    assert re.match(rf"verify, bytes \S{{20,}} {COUNT} \S+", terminal.frames(shown)[-1])
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0


def test_on_a_narrow_terminal_the_bar_keeps_count_and_time():
    _, shown = terminal.run([sys.executable, "-c", SHOW.format(code=0)], columns=60)
    last = terminal.frames(shown)[-1]
    assert re.search(rf" {COUNT} (\d+:\d\d:\d\d|-:--:--)", last), last
    assert len(last.rstrip()) <= 60


@pytest.mark.parametrize(
    ("columns", "env"), [(100, {"TERM": "dumb"}), (100, {"COLUMNS": "0"}), (0, {}), (8, {})]
)
def test_on_a_terminal_that_has_no_room_for_a_bar_it_is_lines(columns, env):
    ended, shown = terminal.run([sys.executable, "-c", SHOW.format(code=0)], columns, **env)
    assert (ended, shown) == (0, "a line [bold] above\r\n")
