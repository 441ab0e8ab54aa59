"""Many seeds in one compiled step against one after the other: seconds of an update of each seed.

    python benchmarks/seeds_at_once.py run        measures, writes docs/results/seeds_at_once.json
    python benchmarks/seeds_at_once.py run 2 8    of these numbers of seeds
    python benchmarks/seeds_at_once.py table      prints the table from it

Separate runs share one compiled program, whose time is that of an update of one run. All numbers of
seeds take turns with it in one process, on the same random images.
"""

import json
import pathlib
import statistics
import sys

import jax
from command import run_or_table
from provenance import measured_on, provenance
from synthetic import synthetic_config

from lbsgd.experiments.timing import Timed, measure
from lbsgd.run.build import build
from lbsgd.run.config import resolve
from lbsgd.system.errors import ConfigError

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results" / "seeds_at_once.json"
COUNTS = (2, 4, 8)
ROUNDS = 5

# Network, image size, channels, kn, n, compute type.
CASES = [
    ("cifar_resnet8", 8, 1, 256, 32, "float32"),
    ("cifar_resnet20", 32, 3, 128, 32, "float32"),
]
ACCELERATOR_CASES = [*CASES, ("cifar_resnet20", 32, 3, 128, 128, "bfloat16")]


def program_of(name, size, channels, batch_size, worker_batch_size, dtype):
    """The program of a run on one device."""
    grey = {"data.source": "digits", "data.crop": "padded", "data.crop_padding": 1}
    own = grey if channels == 1 else {}
    config = synthetic_config(name, size, batch_size, worker_batch_size, dtype, **own)
    return build(resolve(config)).program


def measure_case(case, counts=COUNTS, rounds=ROUNDS):
    """Seconds of an update per seed, in every round, by number of seeds; 1 is a run alone.

    What does not fit into the memory of the device is left out.
    """
    program = program_of(*case)
    timed = [Timed.alone(program)]
    for count in counts:
        try:
            timed.append(Timed.together(program, count))
        except ConfigError as error:
            print(f"{count} at once: {error}")
    times = measure(timed, rounds)
    return {each.runs: [t / each.runs for t in row] for each, row in zip(timed, times)}


def run(*counts):
    """Measures every case that this machine is for, and keeps what others measured."""
    backend = jax.default_backend()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    results = [r for r in results if r["machine"]["backend"] != backend]
    for case in CASES if backend == "cpu" else ACCELERATOR_CASES:
        seconds = measure_case(case, tuple(int(c) for c in counts if int(c) > 1) or COUNTS)
        results.append({"case": case, "n": ROUNDS, "seconds": seconds, "machine": measured_on()})
        print(case, {key: statistics.median(row) for key, row in seconds.items()}, flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table():
    """Medians, and the ratio of neighbouring rounds with its range, as Markdown."""
    head = (
        "| network | pixels | kn | n | type | device | at once | ms an update and seed | of alone |"
    )
    lines = [head, "|---" * 9 + "|"]
    results = json.loads(RESULTS.read_text())
    for result in results:
        name, size, _, *rest = result["case"]
        alone = result["seconds"]["1"]
        for count, row in result["seconds"].items():
            ratios = [a / b for a, b in zip(row, alone)]
            cells = [name, size, *rest, result["machine"]["device"], count]
            cells.append(f"{1e3 * statistics.median(row):.3g}")
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            cells.append(spread if count != "1" else "1")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", provenance(results, *(result["n"] for result in results))])


if __name__ == "__main__":
    run_or_table(__doc__, run, table, arguments=max(0, len(sys.argv) - 2))
