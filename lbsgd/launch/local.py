r"""Starts the processes of a run on this machine, and starts them again when one of them fails.

    lbsgd launch --num_processes 2 [--devices_per_process 2] \
        [--platform auto|cpu|cuda] [--max_restarts 3] [--grace_seconds 60] \
        -- --config digits --workdir runs/x --config.batch_size=512

What follows `--` goes to `lbsgd train` in every process. They find each other at a free port of the
loopback address, a new one for every start.

Devices. The GPUs of `CUDA_VISIBLE_DEVICES`, or else all of the machine, are split evenly, or into
`--devices_per_process` each. On a machine without GPUs, with `--platform cpu` and with
JAX_PLATFORMS=cpu a process gets `--devices_per_process` CPU devices, one by default.

Output. A line of process 1 is printed as `[1] line`, on stdout or stderr as the process did. The
launcher's own lines start with `[launcher]`, on stderr.

Exit codes 0, 2 (the user's mistake), 3 (diverged) and 75 (preempted) are results of the run, and
the launcher ends with them. Where processes end differently, the first of 2, 3, 75 that one of
them ended with counts: the others died of it. Everything else is a failure: a process killed by a
signal n (128 + n), any other code, or one that is still running `--grace_seconds` after another
ended with 0 or 75. The launcher names the process, kills the others, whose collectives are dead,
and starts all of them again, which resumes from the last checkpoint. After `--max_restarts`
restarts it ends with the code of the process that failed.

Signals. SIGTERM is passed on to all processes, which save a checkpoint and end with 75; what still
runs `--grace_seconds` later is killed. SIGHUP does the same, unless ignored (`nohup`). SIGINT is
passed on as it is; a second one kills all, and the exit code is 130. After a signal nothing is
restarted. The processes have sessions of their own, so Ctrl-C in a terminal reaches them once.

If the launcher itself is killed (SIGKILL), Linux kills its processes with it, and the same command
starts anew. Other systems do not: end them by hand before that.
"""

import argparse
import itertools
import math
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from lbsgd.launch.process_group import Group, Output, Signals, Verdict
from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_USER, ConfigError
from lbsgd.system.text import pluralize


def launch(
    command: Sequence[str],
    arguments: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    max_restarts: int,
    grace_seconds: float,
) -> int:
    """Runs one process for each of `environments`, and restarts them until the run has a result.

    Args:
      command: the program; it is followed by the flags that name the coordinator, the number of
        processes and the process, and by `arguments`.
      arguments: flags of the run.
      environments: for each process, variables to add to the environment of this one.
      max_restarts: how often the processes are restarted after a failure.
      grace_seconds: how long processes that should end may take before they are killed.

    Returns:
      The exit code.
    """
    restart = 0
    with Output(grace_seconds) as output, Signals() as signals:
        while True:
            restart += 1
            group = Group(output, signals, grace_seconds)
            try:
                group.start(_commands(command, arguments, len(environments)), environments)
                verdict = group.wait()
                if verdict.text:
                    what_next = _what_next(verdict, group.received, restart, max_restarts)
                    output.say(verdict.text + what_next)
            finally:
                group.end()
            if not verdict.failed or group.received or restart > max_restarts:
                return verdict.code
            if signals.wait(0):
                output.say("asked to stop; not restarting")
                return verdict.code


def _commands(command: Sequence[str], arguments: Sequence[str], processes: int) -> list[list[str]]:
    group = [f"--coordinator=127.0.0.1:{_free_port()}", f"--num_processes={processes}"]
    return [[*command, *group, f"--process_id={i}", *arguments] for i in range(processes)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _what_next(
    verdict: Verdict, seen: Sequence[signal.Signals], restart: int, max_restarts: int
) -> str:
    if not verdict.failed:
        return ""
    if seen:
        return f"; not restarting after {seen[0].name}"
    if restart <= max_restarts:
        return f"; restarting the run (restart {restart} of {max_restarts})"
    return f"; giving up after {pluralize(max_restarts, 'restart')}, with exit code {verdict.code}"


def find_gpus(environment: Mapping[str, str]) -> list[str]:
    """Lists the GPUs that this process may use, by their names for CUDA_VISIBLE_DEVICES."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(i) for i in range(_count_gpus())]
    names = [name.strip() for name in listed.split(",")]
    # CUDA ignores the names after the first that is not a GPU.
    return list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))


def _count_gpus() -> int:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False
        )
    except FileNotFoundError:
        folder = pathlib.Path("/proc/driver/nvidia/gpus")
        return len(list(folder.iterdir())) if folder.is_dir() else 0
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def split_devices(
    platform: str, processes: int, devices_per_process: int | None, gpus: Sequence[str]
) -> list[dict[str, str]]:
    """Returns the environment variables by which each process sees its own devices.

    Args:
      platform: "cpu", "cuda", or "auto" for GPUs if there are any.
      processes: how many processes share the devices.
      devices_per_process: None for one CPU device, or for an equal share of all GPUs.
      gpus: names of the GPUs to share.

    Raises:
      ConfigError: there are too few GPUs, or they cannot be split evenly.
    """
    if platform == "cpu" or (platform == "auto" and not gpus):
        devices = str(devices_per_process or 1)
        return [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": devices}] * processes
    each = devices_per_process or max(1, len(gpus) // processes)
    if each * processes > len(gpus):
        raise ConfigError(
            f"{pluralize(processes, 'process', 'processes')} with {pluralize(each, 'GPU')} "
            f"{'needs' if processes == 1 else 'each need'} {each * processes}, but "
            f"{len(gpus)} can be used here (CUDA_VISIBLE_DEVICES, nvidia-smi -L); "
            "start fewer, or take --platform cpu"
        )
    if not devices_per_process and each * processes < len(gpus):
        raise ConfigError(
            f"{len(gpus)} GPUs cannot be split evenly among {processes} processes; "
            "say with --devices_per_process how many each gets"
        )
    shares = [gpus[i * each : (i + 1) * each] for i in range(processes)]
    # If this is set, JAX does not fall back to the CPU.
    asked = {"JAX_PLATFORMS": "cuda,cpu"} if platform == "cuda" else {}
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share), **asked} for share in shares]


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a number from {least} on, not {text!r}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return value


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the launcher's flags, and splits off those of the run."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    parser = Parser("lbsgd launch", __doc__)
    add = parser.add_argument
    add(
        "--num_processes",
        metavar="N",
        type=_at_least(1),
        required=True,
        help="how many processes to start",
    )
    add(
        "--devices_per_process",
        metavar="N",
        type=_at_least(1),
        help="how many devices each process has; an equal share by default",
    )
    add(
        "--platform",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="the kind of devices; auto takes GPUs if there are any",
    )
    add(
        "--max_restarts",
        metavar="N",
        type=_at_least(0),
        default=3,
        help="how often all processes are started anew (3)",
    )
    add(
        "--grace_seconds",
        metavar="S",
        type=_seconds,
        default=60.0,
        help="how long the others have to end after one process ends, or after a signal (60)",
    )
    flags, arguments = parser.parse(argv[:cut]), list(argv[cut + 1 :])
    _check_arguments(arguments)
    return flags, arguments


def _check_arguments(arguments: Sequence[str]) -> None:
    names = [re.sub(r"^--?([^=]*).*", r"\1", argument, flags=re.DOTALL) for argument in arguments]
    if "config" not in names and "workdir" not in names:
        raise ConfigError(
            "no config; the run's own flags follow --, as in "
            "lbsgd launch --num_processes 2 -- --config digits"
        )
    for name in ("coordinator", "num_processes", "process_id"):
        if name in names:
            raise ConfigError(f"--{name} after -- is the launcher's to give; leave it out")


def main(argv: Sequence[str]) -> int:
    """Launches a run, and returns the exit code."""
    try:
        flags, arguments = _parse(argv)
        gpus = [] if _wants_cpu(flags.platform) else find_gpus(os.environ)
        environments = split_devices(
            flags.platform, flags.num_processes, flags.devices_per_process, gpus
        )
        asked = os.environ.get("JAX_PLATFORMS")
        if flags.platform == "auto" and asked:  # which the processes refuse where it cannot be
            environments = [{**own, "JAX_PLATFORMS": asked} for own in environments]
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    command = [sys.executable, "-m", "lbsgd.main", "train"]
    return launch(command, arguments, environments, flags.max_restarts, flags.grace_seconds)


def _wants_cpu(platform: str) -> bool:
    return platform == "cpu" or (platform == "auto" and os.environ.get("JAX_PLATFORMS") == "cpu")
