r"""Runs what is left of a sweep: all rows of a config, each with several seeds.

    lbsgd sweep run goyal_table1:mini --workdir runs/table1 \
        [--parallel 2] [--seeds 8] [--only ROW ...] [--config.KEY=VALUE ...]
    lbsgd sweep run CONFIG --workdir DIR --list | --dry_run
    lbsgd sweep run CONFIG --workdir DIR --engine slurm [--slurm.partition=gpu ...]

The same command goes on after any end, also after a kill. What is complete or diverged is left
alone, what failed is tried again. More seeds and more rows can be added later to the same folder.

--config.KEY=VALUE counts for all rows that do not set that key themselves. --slurm.KEY=VALUE is a
parameter of submitit: partition, timeout_min, cpus_per_task, gpus_per_node, array_parallelism, ...

Exit codes: 0 all runs are complete or diverged, 1 some failed, 2 a mistake of the user, 75 stopped
by a signal, 130 killed by a second Ctrl-C.
"""

import argparse
import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lbsgd.config.keys import options_key
from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import OVER, Status
from lbsgd.experiments.running.board import Board, Line, say_finals
from lbsgd.experiments.running.naming import sweep_name
from lbsgd.experiments.running.session import Engine, board_of, check_rows, describe, run_sweep
from lbsgd.experiments.sweep import Row, Sweep, read_sweep
from lbsgd.run.config import KEYS
from lbsgd.run.flags import literal
from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER, ConfigError
from lbsgd.system.files import user_path

# Of what --explain says, that in which rows mostly differ.
_MAIN_LINES = (
    "network",
    "data",
    "minibatch",
    "length",
    "learning rate",
    "optimizer",
    "without effect",
)


class _Asked(NamedTuple):
    """Holds what a command line asks for.

    Attributes:
      flags: of the command itself.
      config: `--config.KEY=VALUE`.
      slurm: parameters of submitit.
    """

    flags: argparse.Namespace
    config: list[str]
    slurm: dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Runs, lists or plans, and returns the exit code."""
    try:
        return _act(_parse(argv))
    except ConfigError as error:
        complain(error)
        return EXIT_USER


def _act(asked: _Asked) -> int:
    flags = asked.flags
    sweep = _with_numbers(read_sweep(flags.file, asked.config), flags)
    rows = _chosen(sweep.rows, flags.only)
    folder = SweepFolder(user_path(flags.workdir or _default_folder(flags.file)))
    if flags.list:
        return _list(sweep, folder, board_of(sweep, folder, rows))
    if flags.dry_run:
        check_rows(sweep, folder, sweep.rows)
        return _dry_run(sweep, folder, rows)
    engine = _engine(asked)
    return run_sweep(sweep, folder, rows, engine, flags.parallel or 1)


def _default_folder(file: str) -> str:
    """Names a folder by the file and its variant, whose rows are others."""
    return str(pathlib.Path("runs") / re.sub(r"[^\w.=,+-]+", "_", sweep_name(file)))


def _with_numbers(sweep: Sweep, flags: argparse.Namespace) -> Sweep:
    """Takes the numbers that the command line sets for those of the file."""
    numbers = {"seeds": flags.seeds, "seeds_at_once": flags.seeds_at_once}
    given = {name: number for name, number in numbers.items() if number is not None}
    return dataclasses.replace(sweep, settings=dataclasses.replace(sweep.settings, **given))


def _chosen(rows: Sequence[Row], only: Sequence[str] | None) -> list[Row]:
    """Selects rows by their names, or by what no other name begins with."""
    if not only:
        return list(rows)
    wanted = {_one(rows, name).name for name in only}
    return [row for row in rows if row.name in wanted]


def _one(rows: Sequence[Row], name: str) -> Row:
    found = [row for row in rows if row.name == name]
    found = found or [row for row in rows if row.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"--only {name!r} begins the names of {len(found)} rows: "
            f"{', '.join(repr(row.name) for row in found)}; write more of it"
        )
    (near,) = difflib.get_close_matches(name, [row.name for row in rows], 1, 0.0)
    raise ConfigError(f"--only {name!r} is no row; the nearest is {near!r}, --list shows all")


def _engine(asked: _Asked) -> Engine:
    if asked.flags.engine == "slurm":
        from lbsgd.experiments.running.slurm import slurm_engine

        return slurm_engine(asked.slurm, asked.flags.parallel or 0)
    if asked.slurm:
        raise ConfigError(f"--slurm.{next(iter(asked.slurm))} is used with --engine slurm alone")
    from lbsgd.experiments.running.pool import local_engine

    return local_engine(asked.flags.parallel or 1, os.environ)


def _list(sweep: Sweep, folder: SweepFolder, board: Board) -> int:
    """Prints the rows, with how many of their runs stand how."""
    print(describe(sweep, board))
    rows = {row.name: row for row in sweep.rows}
    for line in board.lines.values():
        counts = [f"{line.count(status)} {status}" for status in Status if line.count(status)]
        said = [*counts, say_finals(line), _changed(sweep, folder, rows[line.name])]
        print(f"  {line.name}: {', '.join(filter(None, said))}")
    return EXIT_DONE


def _changed(sweep: Sweep, folder: SweepFolder, row: Row) -> str:
    """Says whether a row has another config than the runs that are there."""
    try:
        check_rows(sweep, folder, [row])
    except ConfigError:
        return "its config has changed since, so it cannot go on: --dry_run says where"
    return ""


def _dry_run(sweep: Sweep, folder: SweepFolder, rows: Sequence[Row]) -> int:
    """Plans each row, says what of it is left to do, and which cannot be run."""
    from lbsgd.experiments.tuning import points
    from lbsgd.system.libraries import set_up_libraries

    set_up_libraries()
    code, board = EXIT_DONE, board_of(sweep, folder, rows)
    print(describe(sweep, board))
    for row in rows:
        line = board.lines[row.name]
        first = next(iter(points(sweep.file, sweep.settings)), {})
        print(f"\n{row.name}: {_left(line)}")
        try:
            for text in _plan(sweep.config(row, 0, **first)):
                print(f"  {text}")
        except ConfigError as error:
            code = EXIT_USER
            complain(f"row {row.name!r} cannot be run: {error}")
    return code


def _left(line: Line) -> str:
    """Says what is left to do of a row: "3 of 5 runs"."""
    left = len(line.standings) - line.count(*OVER)
    return f"{left} of {len(line.standings)} runs to do"


def _plan(config: Any) -> list[str]:
    """Plans a run, and explains it in the lines in which rows mostly differ."""
    from lbsgd.run.build import plan_run
    from lbsgd.run.explain import explain

    lines = explain(plan_run(config))
    return [text for text in lines if text.split(":")[0] in _MAIN_LINES]


_OF_CONFIG, _OF_SLURM = re.compile(r"--?(?:no)?config\."), re.compile(r"--?slurm\.")


def _parse(argv: Sequence[str]) -> _Asked:
    """Reads the command line.

    Raises:
      ConfigError: a mistake in it.
    """
    own, config, slurm = [], [], {}
    words = iter(argv)
    for word in words:
        if _OF_CONFIG.match(word):
            config += [word, next(words, "")] if _awaits_value(word) else [word]
        elif _OF_SLURM.match(word):
            name, equals, value = word.partition("=")
            value = value if equals else next(words, "")
            slurm[_OF_SLURM.sub("", name)] = literal(value)
        else:
            own.append(word)
    flags = _parser().parse(own)
    return _Asked(flags, config, slurm)


def _awaits_value(flag: str) -> bool:
    """Tells whether the value of a key is the next word, as in `--config.total_epochs 9`."""
    key = _OF_CONFIG.sub("", flag)
    if "=" in flag or key not in KEYS:
        return "=" not in flag and bool(options_key(key))
    return not isinstance(KEYS[key].default, bool)


def _parser() -> Parser:
    parser = Parser("lbsgd sweep run", __doc__)
    add = parser.add_argument
    add(
        "file",
        metavar="CONFIG[:VARIANT]",
        help="a config file that has a function sweep, or a name that `lbsgd configs` lists",
    )
    add(
        "--workdir",
        metavar="DIR",
        help="the folder of the sweep; by default runs/NAME_VARIANT of the file",
    )
    add(
        "--parallel",
        metavar="P",
        type=_whole(1),
        help="how many processes train on this machine, each with its share of cores or GPUs (1); "
        "with --engine slurm, how many tasks an array has at most (one for each job)",
    )
    add("--engine", choices=("local", "slurm"), default="local", help="where it runs (local)")
    add("--only", metavar="ROW", nargs="+", help="these rows alone, by name or how it begins")
    add("--seeds", metavar="N", type=_whole(1), help="how many runs each row has")
    add(
        "--seeds_at_once",
        metavar="S",
        type=_whole(0),
        help="how many seeds are trained in one compiled step; 0 measures what is fastest",
    )
    add("--list", action="store_true", help="list the rows and how they stand")
    add("--dry_run", action="store_true", help="plan each row, and run nothing")
    return parser


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a number from {least} on, not {text!r}")
        return int(text)

    return parse
