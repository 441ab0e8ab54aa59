"""Commands on a terminal of their own, and what a user sees there."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from hanging import HANG_SECONDS

# Importing readline, as pytest does, puts sizes into the environment.
UNSIZED = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}


def open_terminal(columns: int) -> tuple[int, int]:
    """Its two ends: that which shows, and that of the command."""
    shows, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return shows, end


# The first terminal that the leader of a session opens hangs up on it.
OPENS = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.argv[1], sys.argv[1:])
"""


def start(
    command: list[str], end: int, hangs_up: bool = False, **env: str
) -> subprocess.Popen[bytes]:
    """Starts a command on a terminal; `end` is closed here, and so only the command has it.

    Args:
      hangs_up: whether the command gets SIGHUP when the terminal goes away.
    """
    env = {**UNSIZED, "TERM": "xterm", **env}
    if hangs_up:
        command = [sys.executable, "-c", OPENS, *command]
    process = subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, env=env, start_new_session=hangs_up
    )
    os.close(end)
    return process


def run(command: list[str], columns: int, **env: str) -> tuple[int, str]:
    """Exit code, and all that was shown, with the codes that move the cursor."""
    shows, end = open_terminal(columns)
    process = start(command, end, **env)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while data := os.read(shows, 1024):
            shown += data
    os.close(shows)
    return process.wait(timeout=HANG_SECONDS), shown.decode()


def frames(shown: str) -> list[str]:
    """The lines that were seen one after another, without codes."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]
