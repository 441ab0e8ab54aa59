"""Measures what accumulation costs: images/s of one minibatch in 1, 2, 4, ... steps.

    python benchmarks/accumulation.py run      measures and writes docs/results/accumulation.json
    python benchmarks/accumulation.py table    prints the table from it

The placements take turns in one process on the same minibatch; a round's ratio is of neighbours in
time. Memory is what the compiled step needs for its temporaries.
"""

import json
import pathlib
import statistics

from command import run_or_table
from provenance import measured_on, provenance
from step import Running, our_step

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results" / "accumulation.json"
ROUNDS = 10

# Network, image size, kn, n, compute type; and numbers of accumulation steps.
CASES = [
    (("cifar_resnet20", 32, 128, 32, "float32"), (1, 2, 4)),
    (("resnet18", 64, 32, 8, "float32"), (1, 4)),
    (("resnet50", 64, 16, 4, "float32"), (1, 4)),
]


def measure(case, steps, rounds=ROUNDS, updates=1):
    """Seconds of an update in each round and bytes of temporaries, by the number of steps.

    Args:
      updates: of a round.
    """
    runs = {}
    for number in steps:
        parts, step, state, batch = our_step(*case, accumulation_steps=number)
        runs[number] = Running(step, state, (batch, parts.program.numbers.at(0)))
    seconds = {number: [] for number in steps}
    for attempt in range(rounds + 1):
        for number, run in runs.items():
            took = run.seconds(updates) / updates
            if attempt:  # after a round to warm up
                seconds[number].append(took)
    memory = {n: run.compiled.memory_analysis().temp_size_in_bytes for n, run in runs.items()}
    return seconds, memory


def run():
    """Measures every case."""
    results = []
    for case, steps in CASES:
        seconds, memory = measure(case, steps)
        results.append(
            {
                "case": case,
                "n": ROUNDS,
                "seconds": seconds,
                "temporary_bytes": memory,
                "machine": measured_on(),
            }
        )
        print(case, {n: round(case[2] / statistics.median(s), 1) for n, s in seconds.items()})
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table():
    """Median images/s, the median and range of the rounds' time ratios, and memory, as Markdown."""
    head = "| network | pixels | kn | n | type | steps | images/s | time, of one step's | MB |"
    lines = [head, "|---" * 9 + "|"]
    results = json.loads(RESULTS.read_text())
    for result in results:
        for steps, seconds in result["seconds"].items():
            ratios = [a / b for a, b in zip(seconds, result["seconds"]["1"])]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if steps != "1" else ""
            cells = [
                *result["case"],
                steps,
                f"{result['case'][2] / statistics.median(seconds):,.0f}",
                f"{statistics.median(ratios):.2f}{spread}",
                f"{result['temporary_bytes'][steps] / 1e6:,.0f}",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", provenance(results, *(result["n"] for result in results))])


if __name__ == "__main__":
    run_or_table(__doc__, run, table)
