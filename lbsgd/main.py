"""The command `lbsgd`: its first word says what to do; flags alone are those of `lbsgd train`.

`python -m lbsgd.main` is the same command. Nothing is imported before it is needed, so that help
and a mistake come at once, and a launcher stays small.
"""

import contextlib
import difflib
import faulthandler
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lbsgd.system.command_line import asks_for_help, complain
from lbsgd.system.errors import (
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER,
    ConfigError,
    DivergedError,
)
from lbsgd.system.libraries import set_up_libraries
from lbsgd.system.preemption import StopSignal
from lbsgd.system.streams import protect_streams
from lbsgd.system.text import short_repr

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from lbsgd.run.flags import TrainFlags


def train(argv: Sequence[str]) -> int:
    """Trains, resumes or explains a run, and returns the exit code."""
    from lbsgd.run import flags

    if asks_for_help(argv):
        print(flags.help_text())
        return EXIT_DONE
    try:
        parsed = flags.parse(argv)
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    set_up_libraries()
    with StopSignal() as stop:
        # jax takes its time; mistakes in flags need not wait for it.
        from lbsgd.system.processes import exit_distributed, is_collective_error

        try:
            return _run(parsed, stop)
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


def _run(parsed: "TrainFlags", stop: StopSignal) -> int:
    from lbsgd import train
    from lbsgd.run.config import resolve
    from lbsgd.system.processes import is_first

    config = resolve(parsed.config)
    if parsed.explain:
        return _explain(parsed, config)
    _start_processes(parsed, config)
    if parsed.sweep and is_first():
        print(parsed.sweep)
    outcome = train.run(config, parsed.workdir, should_stop=lambda done: stop.should_stop())
    return EXIT_DONE if outcome.complete else EXIT_PREEMPTED


def _start_processes(parsed: "TrainFlags", config: "ConfigDict") -> None:
    from lbsgd.launch import startup

    startup.start_processes(
        parsed.coordinator, parsed.num_processes, parsed.process_id, config.runtime
    )


def _explain(parsed: "TrainFlags", config: "ConfigDict") -> int:
    """Prints the plan of a run; asks the machine only for what the config leaves open."""
    from lbsgd.run.build import plan_run
    from lbsgd.run.explain import explain, parameter_table
    from lbsgd.system.cache import explain_kept
    from lbsgd.system.processes import is_first
    from lbsgd.workers.topology import Topology

    asks = Topology.planned(config, parsed.num_processes) is None
    if asks:
        _start_processes(parsed, config)
    plan = plan_run(config, parsed.num_processes)
    # No group was started where nothing was asked, and each process knows itself alone.
    first = is_first() if asks else not parsed.process_id
    if first:
        said = [parsed.sweep] if parsed.sweep else []
        print("\n".join([*said, *explain(plan), "", parameter_table(plan), explain_kept()]))
    return EXIT_DONE


def export(argv: Sequence[str]) -> int:
    """Exports the network of a run, and returns the exit code."""
    from lbsgd.use.export import command

    return command.main(argv)


def prepare(argv: Sequence[str]) -> int:
    """Packs images, and returns the exit code."""
    from lbsgd.data import command

    return command.main(argv)


def checkpoint(argv: Sequence[str]) -> int:
    """Looks at the checkpoints of a run, and returns the exit code."""
    from lbsgd.checkpoint import command

    return command.main(argv)


def diagnose(argv: Sequence[str]) -> int:
    """Draws what a run measured of itself, and returns the exit code."""
    from lbsgd.diagnostics import command

    return command.main(argv)


def launch(argv: Sequence[str]) -> int:
    """Starts the processes of a run, and returns the exit code."""
    own, run = _split_at_dashes(argv)
    if asks_for_help(run) and not asks_for_help(own):
        return train(["--help"])
    from lbsgd.launch import local

    return local.main(argv)


def _split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits words at the first `--`."""
    cut = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:cut]), list(argv[cut + 1 :])


def sweep(argv: Sequence[str]) -> int:
    """Runs the sweep of a config file, or reports on sweeps, and returns the exit code."""
    from lbsgd.experiments import command

    return command.main(argv)


def compare(argv: Sequence[str]) -> int:
    """Compares runs and rows of sweeps, and returns the exit code."""
    from lbsgd.experiments import compare_command

    return compare_command.main(argv)


def evaluate(argv: Sequence[str]) -> int:
    """Evaluates a trained network, and returns the exit code."""
    from lbsgd.use import evaluate_command

    return evaluate_command.main(argv)


def predict(argv: Sequence[str]) -> int:
    """Predicts the classes of images, and returns the exit code."""
    from lbsgd.use import predict_command

    return predict_command.main(argv)


def configs(argv: Sequence[str]) -> int:
    """Lists the recipes, and returns the exit code."""
    from lbsgd.config import command

    return command.main(argv)


def completion(argv: Sequence[str]) -> int:
    """Prints the completion script of a shell, and returns the exit code."""
    from lbsgd.run.completion import command

    return command.main(argv, COMMANDS, _help_of)


def _help_of(words: Sequence[str]) -> str:
    """Returns the help of a command, or of a command within it."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        COMMANDS[words[0]].main([*words[1:], "--help"])
    return text.getvalue()


class Command(NamedTuple):
    """Holds what a first word does.

    Attributes:
      main: takes the words after it, and returns the exit code.
      summary: for `lbsgd --help`.
    """

    main: Callable[[Sequence[str]], int]
    summary: str


COMMANDS = {
    "train": Command(train, "trains a config, resumes a run from its workdir, or explains it"),
    "sweep": Command(sweep, "runs a table of runs with seeds, and reports it"),
    "compare": Command(compare, "compares runs: what differs, which is better, is it significant"),
    "evaluate": Command(evaluate, "evaluates a trained network, on its own or on other images"),
    "predict": Command(predict, "predicts the classes of images by a trained network"),
    "export": Command(export, "exports a network to safetensors, Flax, StableHLO, ONNX; checked"),
    "prepare": Command(prepare, "packs images for fast loading, verifies them, converts TFRecord"),
    "checkpoint": Command(checkpoint, "lists, verifies and shows the checkpoints of a run"),
    "diagnose": Command(diagnose, "draws what a run measured of itself, such as its noise scale"),
    "launch": Command(launch, "starts the processes of a run on this machine, again when one dies"),
    "configs": Command(configs, "lists the recipes with their variants, or prints what one says"),
    "completion": Command(completion, "prints a script that has bash, zsh or fish complete words"),
}

USAGE = "usage: lbsgd COMMAND ..."
EXAMPLES = """\
lbsgd COMMAND --help says more of a command. Flags without a command are those of train.

  lbsgd train --config digits --config.batch_size=512 --workdir runs/x
  lbsgd train --workdir runs/x
  lbsgd launch --num_processes 2 -- --config digits"""


def help_text() -> str:
    """Lists the commands."""
    lines = [f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [USAGE, "", "Trains networks with large minibatches.", "", *lines, "", EXAMPLES]
    )


def main(argv: Sequence[str]) -> int:
    """Does what the words say, and returns the exit code."""
    word, *rest = argv or ["help"]
    if word == "help" and rest:  # of a command
        word, rest = rest[0], ["--help"]
    if asks_for_help([word]):
        print(help_text())
        return EXIT_DONE
    if word.startswith("-"):
        return train(argv)
    if word not in COMMANDS:
        (near,) = difflib.get_close_matches(word[:100], COMMANDS, 1, 0.0)
        complain(
            f"there is no command {short_repr(word)}; the nearest is {near!r}; --help lists all"
        )
        return EXIT_USER
    return COMMANDS[word].main(rest)


def run() -> None:
    """Runs the command of this process, and ends it."""
    protect_streams()
    with contextlib.suppress(OSError, ValueError):  # stderr may be no file
        faulthandler.enable()
    code = main(sys.argv[1:])
    if code == EXIT_INTERRUPTED:
        sys.stdout.flush()
        os._exit(code)  # without waiting for threads, as of a preparation that still reads a shard
    sys.exit(code)


if __name__ == "__main__":
    run()
