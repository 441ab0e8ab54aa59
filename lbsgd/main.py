"""The command line.

python -m lbsgd.main --config configs/x.py[:arg] [--config.key=value ...] [--workdir DIR]
"""

import logging as python_logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from lbsgd.run import config as config_lib
from lbsgd.system.command_line import complain
from lbsgd.system.errors import (
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_PREEMPTED,
    EXIT_USER,
    ConfigError,
    DivergedError,
)
from lbsgd.system.files import expand_home
from lbsgd.system.limits import num_cores
from lbsgd.system.preemption import StopSignal
from lbsgd.system.streams import protect_streams

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file: configs/x.py[:arg].")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/ and the name of the config."
)
_EXPLAIN = flags.DEFINE_bool("explain", False, "Print how the run is resolved, and train nothing.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is.")


def _fail(message: str) -> None:
    complain(message)
    raise SystemExit(EXIT_USER)


def _check_keys(argv: Sequence[str]) -> None:
    """Names the nearest known key where absl would print its usage."""
    for arg in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]+)", arg)
        if match:
            config_lib.check_is_key(match.group(1))


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's flags, any mistake in them being one line and exit code 2."""
    logging.set_verbosity(logging.ERROR)  # absl warns of mistakes that are said here
    try:
        _check_keys(argv)
        rest = flags.FLAGS(list(argv))
        if len(rest) > 1:
            raise ConfigError(f"unexpected argument {rest[1]!r}; flags start with --")
        if not flags.FLAGS["config"].present:
            raise ConfigError("no config; give one with --config configs/digits.py")
        value = _CONFIG.value
        if value is None:
            raise ConfigError(f"{_config_path(argv)}: get_config returns no config")
        dict(value)  # what went wrong in reading the file surfaces here
    except ConfigError as error:
        _fail(str(error))
    except flags.Error as error:
        text = str(error)
        if "Traceback" in text:  # of an error in get_config, which absl packs into its message
            last = text.strip().splitlines()[-1].removeprefix("lbsgd.system.errors.ConfigError: ")
            text = f"{_config_path(argv)}: {last}"
        wrong = re.match(r"flag --(?:no)?config\.([\w.]+)=(.*?): ", text)
        if wrong:
            kind = config_lib.kind_of(wrong.group(1))
            text = f"{wrong.group(1)} must be {kind}, not {wrong.group(2)!r}"
        _fail(text)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not _frames_in(_config_path(argv), error):
            raise  # of --help
        _fail(_explain_load_error(error, argv))
    return rest


def _frames_in(path: pathlib.Path, error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [f for f in frames if path.name and f.filename.endswith(path.name)]


def _explain_load_error(error: BaseException, argv: Sequence[str]) -> str:
    """One line for whatever came up while the config file was read."""
    path = _config_path(argv)
    text = str(error)
    if not path.is_file():
        return f"config file {path} {'is no file' if path.exists() else 'does not exist'}"
    if "has no attribute 'get_config'" in text:
        return f"{path} has no function get_config(arg='')"
    unknown = re.search(r'Key "(\w+)" does not exist', text)
    if unknown:
        near = config_lib.nearest_key(unknown.group(1))
        return f"{path}: unknown config key {unknown.group(1)!r}; the nearest known one is {near!r}"
    frames = _frames_in(path, error)
    where = f", line {frames[-1].lineno}" if frames else ""
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"{path}{where}: {type(error).__name__}: {first}"


def _config_path(argv: Sequence[str]) -> pathlib.Path:
    for arg, following in zip(argv, [*argv[1:], ""]):
        match = re.fullmatch(r"--?config(?:=(.*))?", arg)
        if match:
            value = match.group(1) if match.group(1) is not None else following
            return pathlib.Path(value.split(":")[0])
    return pathlib.Path()


def _default_workdir(argv: Sequence[str]) -> pathlib.Path:
    return pathlib.Path("runs") / _config_path(argv).stem


def _set_up_libraries() -> None:
    """Leaves the terminal to the run, the home to the user, and cores to others that share them.

    Libraries speak up from warnings on.
    """
    # Else XLA starts a thread for each core, whatever quota of them this process has.
    os.environ.setdefault("NPROC", str(num_cores()))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it says that they are on
    # Else tensorflow brings a folder of Keras, even one called ~ where there is no home.
    os.environ.setdefault("KERAS_HOME", os.path.join(os.devnull, "keras"))
    logging.set_verbosity(logging.WARNING)
    # It warns where it cannot keep a cache in the home.
    python_logging.getLogger("matplotlib").setLevel(python_logging.ERROR)


def main(argv: Sequence[str]) -> int:
    """Runs, and returns the exit code."""
    _set_up_libraries()
    with StopSignal() as stop:
        # jax takes its time; mistakes in flags need not wait for it.
        from lbsgd.system.processes import exit_distributed, is_collective_error

        try:
            return _run(stop)
        except ConfigError as error:
            complain(error)
            code = EXIT_USER
        except DivergedError as error:
            complain(f"diverged: {error}")
            return EXIT_DIVERGED  # all processes have
        except Exception as error:
            traceback.print_exc()
            if is_collective_error(error):
                complain("a collective failed: see what the other processes say, and their logs")
            code = EXIT_FAILED
        exit_distributed(code)
        return code


def _run(stop: StopSignal) -> int:
    from lbsgd import train

    config = config_lib.resolve(_CONFIG.value)
    if _EXPLAIN.value:
        return _explain(config)
    _start_processes(config)
    workdir = expand_home(_WORKDIR.value) if _WORKDIR.value else _default_workdir(sys.argv)
    outcome = train.run(config, workdir, should_stop=lambda done: stop.should_stop())
    return EXIT_DONE if outcome.complete else EXIT_PREEMPTED


def _start_processes(config: ml_collections.ConfigDict) -> None:
    from lbsgd.launch import startup

    startup.start_processes(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, config.runtime
    )


def _explain(config: ml_collections.ConfigDict) -> int:
    """Prints the plan of a run; asks the machine only for what the config leaves open."""
    from lbsgd.run.build import plan_run
    from lbsgd.run.explain import explain, parameter_table
    from lbsgd.system.processes import is_first
    from lbsgd.workers.topology import Topology

    asks = Topology.planned(config) is None
    if asks:
        _start_processes(config)
    plan = plan_run(config)
    if not asks or is_first():
        print("\n".join([*explain(plan), parameter_table(plan)]))
    return EXIT_DONE


if __name__ == "__main__":
    protect_streams()
    logging.get_absl_handler().python_handler.stream = sys.stderr  # that was made before
    app.run(main, flags_parser=_parse_flags)
