"""What it costs to measure the gradient noise scale while training.

    python benchmarks/noise_scale.py run      measures and writes docs/results/noise_scale.json
    python benchmarks/noise_scale.py table    prints the table from it

A measurement takes the workers' gradients one by one, on the batch of an update that is about to be
made; meanwhile the devices do nothing else. The cost is its time as a part of the time of the
updates from one to the next, at the interval that is recommended. Both take turns; a round's ratio
is of neighbours in time.
"""

import json
import pathlib
import statistics
import time

import jax
from command import run_or_table
from provenance import measured_on, provenance
from step import ACCELERATOR_CASES, CASES, our_step

from lbsgd.diagnostics.confusion import neighbour_cosines
from lbsgd.diagnostics.workers_gradient import compiled

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results" / "noise_scale.json"
ROUNDS = 10
# Updates from one measurement to the next: diagnostics.workers.every_steps.
EVERY_STEPS = 100


def measure(name, size, batch_size, worker_batch_size, dtype):
    """Seconds of an update and of a measurement in each round."""
    parts, step, state, batch = our_step(name, size, batch_size, worker_batch_size, dtype)
    look = compiled(parts.plan.worker, parts.plan.placement, in_turn=False)
    numbers = parts.program.numbers.at(0)
    seconds = {"update": [], "measurement": []}
    repeats = 1
    for attempt in range(ROUNDS + 2):
        start = time.perf_counter()
        for _ in range(repeats):
            state, metrics = step(state, batch, numbers)
        jax.block_until_ready(metrics)
        middle = time.perf_counter()
        neighbour_cosines(jax.device_get(look(state.params, state.batch_stats, numbers, batch)))
        end = time.perf_counter()
        if attempt == 1:  # long enough to time, after a first round to warm up
            repeats = max(1, round(0.3 / (middle - start)))
        elif attempt > 1:
            seconds["update"].append((middle - start) / repeats)
            seconds["measurement"].append(end - middle)
    return seconds


def run():
    """Measures every case that this machine is for."""
    accelerator = jax.default_backend() != "cpu"
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    results = [r for r in results if r["machine"]["backend"] != jax.default_backend()]
    for case in ACCELERATOR_CASES if accelerator else CASES:
        if case[2] == case[3]:  # one worker, which has nothing to compare with
            continue
        seconds = measure(*case)
        results.append({"case": case, "n": ROUNDS, "seconds": seconds, "machine": measured_on()})
        print(case, {key: round(statistics.median(x), 4) for key, x in seconds.items()})
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table():
    """Median times, and the median and range of the rounds' costs, as Markdown."""
    head = "| network | pixels | kn | n | type | device | update ms | measurement ms "
    lines = [head + f"| cost at every_steps={EVERY_STEPS} |", "|---" * 9 + "|"]
    results = json.loads(RESULTS.read_text())
    for result in results:
        update, measurement = result["seconds"]["update"], result["seconds"]["measurement"]
        costs = [100 * m / (EVERY_STEPS * u) for m, u in zip(measurement, update)]
        cells = [
            *result["case"],
            result["machine"]["device"],
            f"{1e3 * statistics.median(update):,.0f}",
            f"{1e3 * statistics.median(measurement):,.0f}",
            f"{statistics.median(costs):.1f}% ({min(costs):.1f} to {max(costs):.1f})",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", provenance(results, *(result["n"] for result in results))])


if __name__ == "__main__":
    run_or_table(__doc__, run, table)
