"""The command line.

python -m lbsgd.main --config configs/x.py[:arg] [--config.key=value ...] [--workdir DIR]
"""

import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from lbsgd import config as config_lib
from lbsgd.errors import ConfigError

EXIT_DONE = 0
EXIT_USER = 2
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 75

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file: configs/x.py[:arg].")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/ and the name of the config."
)
_EXPLAIN = flags.DEFINE_bool("explain", False, "Print how the run is resolved, and train nothing.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Which of them this is.")


def _fail(message: str) -> None:
    line = " ".join(message.split())
    print(f"lbsgd: {line}", file=sys.stderr)
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
            last = text.strip().splitlines()[-1].removeprefix("lbsgd.errors.ConfigError: ")
            text = f"{_config_path(argv)}: {last}"
        wrong = re.match(r"flag --(?:no)?config\.([\w.]+)=(.*?): ", text)
        if wrong:
            kind = config_lib.kind_of(wrong.group(1))
            text = f"{wrong.group(1)} must be {kind}, not {wrong.group(2)!r}"
        _fail(text)
    except Exception as error:
        _fail(_explain_load_error(error, argv))
    return rest


def _explain_load_error(error: Exception, argv: Sequence[str]) -> str:
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
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(path.name)
    ]
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


def _quiet() -> None:
    """Leaves the terminal to the run: libraries speak up from warnings on."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it says that they are on
    logging.set_verbosity(logging.WARNING)


def main(argv: Sequence[str]) -> int:
    """Runs, and returns the exit code."""
    _quiet()
    from lbsgd import (
        build,
        explain,
        runtime,
        train,
    )  # jax takes its time; mistakes in flags need not wait for it

    try:
        runtime.start_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        config = config_lib.resolve(_CONFIG.value)
        if _EXPLAIN.value:
            parts = build.build(config)
            print("\n".join([explain.parameter_table(parts), *explain.explain(parts)]))
            return EXIT_DONE
        workdir = _WORKDIR.value or _default_workdir(sys.argv)
        with runtime.StopSignal() as stop:
            outcome = train.run(config, workdir, should_stop=stop.reached)
    except ConfigError as error:
        _fail(str(error))
    except train.DivergedError as error:
        print(f"lbsgd: diverged: {error}", file=sys.stderr)
        return EXIT_DIVERGED
    return EXIT_DONE if outcome.complete else EXIT_PREEMPTED


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
