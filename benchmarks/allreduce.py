"""All-reduces against XLA's own, on CPU devices of one process and on processes over loopback.

    python benchmarks/allreduce.py run      measures and writes docs/results/allreduce.json
    python benchmarks/allreduce.py table    prints the table from it
    python benchmarks/allreduce.py costs    prints what each sends

What is timed is one all-reduce of an array, compiled, a call at a time. All algorithms of one array
take turns in a round; a round's ratio is to its own psum in float32.

CPU devices share one memory: a message is a copy, all ranks wait for the same cores, and XLA's own
sums in place. Processes talk over loopback (gloo), which is TCP without a network. So these
times show that the algorithms run and what they cost here. They rank nothing for GPUs or a cluster.
"""

import json
import math
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

from command import run_or_table
from provenance import measured_on, provenance

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "allreduce.json"
ROUNDS = 7
# Bytes in float32, and calls in a round.
SIZES = {2**14: 20, 2**20: 5, 2**24: 1}
DTYPES = ("own", "bfloat16")
# Of one process the devices, of several one each. Binary blocks of 2^j are halving and doubling.
PLACES = [("devices", 2), ("devices", 4), ("devices", 8)]
PLACES += [("processes", 2), ("processes", 3), ("processes", 4)]
SHOWN = [("devices", 8), ("processes", 3), ("processes", 4)]
# Of the page's table of costs; a host has 8 devices there.
RANKS, HOST = (4, 6, 8, 32, 44, 256), 8


def algorithms(ranks):
    """Name and grid of those that differ on so many."""
    chosen = {"psum": (0, 0), "ring": (0, 0)}
    if ranks & (ranks - 1):
        return {**chosen, "binary_blocks": (0, 0)}
    chosen["halving_doubling"] = (0, 0)
    if ranks > 2:
        chosen |= {"torus_2d": (0, 0), "hierarchical": (ranks // 2, 2)}
    return chosen


def program(mesh, spec, algorithm, grid, dtype):
    """The compiled all-reduce of an array `[ranks, n]`, a row on each device."""
    import jax

    from lbsgd.workers.collectives.allreduce import allreduce

    def on_device(x):
        return allreduce(
            x, "rank", algorithm=algorithm, grid=grid, dtype=None if dtype == "own" else dtype
        )

    f = jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(f)


def measure(ranks, size):
    """Seconds of a call in each round, by algorithm and dtype."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:ranks]), ("rank",))
    spec = PartitionSpec("rank")
    values = np.random.default_rng(0).normal(size=(ranks, size // 4)).astype(np.float32)
    x = jax.make_array_from_callback(
        values.shape, NamedSharding(mesh, spec), lambda index: values[index]
    )
    runs = {
        (name, dtype): program(mesh, spec, name, grid, dtype).lower(x).compile()
        for name, grid in algorithms(ranks).items()
        for dtype in DTYPES
    }
    times = {key: [] for key in runs}
    for turn in range(ROUNDS + 1):
        for key, call in runs.items():
            start = time.perf_counter()
            for _ in range(SIZES[size]):
                jax.block_until_ready(call(x))
            if turn:  # after one to warm up
                times[key].append((time.perf_counter() - start) / SIZES[size])
    return times


def child(place, ranks, process, port):
    """Measures all sizes at one place; the first process prints them as JSON."""
    import jax

    from lbsgd.launch import startup
    from lbsgd.run.config import default_config

    if place == "devices":
        jax.config.update("jax_num_cpu_devices", ranks)
    else:
        address = f"127.0.0.1:{port}"
        startup.start_processes(address, ranks, process, default_config().runtime)
    results = []
    for size in SIZES:
        for (algorithm, dtype), seconds in measure(ranks, size).items():
            case = {"place": place, "ranks": ranks, "algorithm": algorithm, "dtype": dtype}
            results.append({**case, "bytes": size, "seconds": seconds})
    if process == 0:
        print(json.dumps({"machine": measured_on(), "results": results}))


def measured(place, ranks):
    """What the children of a place print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    if place == "processes":
        env["JAX_NUM_CPU_DEVICES"] = "1"
    group = [
        subprocess.Popen(
            [sys.executable, __file__, "child", place, *map(str, (ranks, process, port))],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(ranks if place == "processes" else 1)
    ]
    said = [process.communicate()[0] for process in group]
    if any(process.returncode for process in group):
        sys.exit(f"{ranks} {place} failed")
    return json.loads(said[0].splitlines()[-1])


def run():
    """Measures every place."""
    results, machines = [], {}
    for place, ranks in PLACES:
        found = measured(place, ranks)
        results += found["results"]
        machines[f"{ranks} {place}"] = found["machine"]
        print(f"{ranks} {place}: done", file=sys.stderr)
    RESULTS.write_text(json.dumps({"machines": machines, "results": results}, indent=1) + "\n")


def cell(result, base):
    """Milliseconds, bus bandwidth, and the ratio to psum in the same rounds."""
    from lbsgd.workers.collectives.cost import bus_bandwidth

    seconds = statistics.median(result["seconds"])
    ratios = [a / b for a, b in zip(result["seconds"], base["seconds"])]
    bandwidth = bus_bandwidth("allreduce", result["ranks"], result["bytes"], seconds) / 1e9
    return (
        f"{1e3 * seconds:.3g} ms, {bandwidth:.2g} GB/s, {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def table():
    """Of the largest places: median time, bus bandwidth, ratio to psum (median, range)."""
    stored = json.loads(RESULTS.read_text())
    results = stored["results"]
    by_case = {(r["place"], r["ranks"], r["algorithm"], r["dtype"], r["bytes"]): r for r in results}
    head = [f"{size // 1024:,} KiB" for size in SIZES]
    lines = ["| ranks | algorithm | sent in | " + " | ".join(head) + " |", "|---" * 6 + "|"]
    for place, ranks in SHOWN:
        for algorithm in algorithms(ranks):
            for dtype in DTYPES:
                cells = [
                    cell(
                        by_case[place, ranks, algorithm, dtype, size],
                        by_case[place, ranks, "psum", "own", size],
                    )
                    for size in SIZES
                ]
                sent = "float32" if dtype == "own" else dtype
                row = [f"{ranks} {place}", algorithm, sent, *cells]
                lines.append("| " + " | ".join(row) + " |")
    rounds = {len(result["seconds"]) for result in results}
    return "\n".join([*lines, "", provenance(stored, *rounds)])


def costs():
    """Steps and the most bytes that a rank sends, in units of n, as Markdown."""
    from lbsgd.workers.collectives import cost

    def entry(algorithm, ranks):
        grid = (HOST, ranks // HOST) if algorithm == "hierarchical" else None
        whole = grid is None or math.prod(grid) == ranks
        if not whole or (algorithm == "halving_doubling" and ranks & (ranks - 1)):
            return "-"
        load = float(cost.load(algorithm, ranks, grid))
        return f"{cost.steps(algorithm, ranks, grid)}, {load:.4g}"

    lines = ["| p | " + " | ".join(map(str, RANKS)) + " |", "|---" * (1 + len(RANKS)) + "|"]
    for algorithm in ("ring", "halving_doubling", "binary_blocks", "torus_2d", "hierarchical"):
        cells = [entry(algorithm, ranks) for ranks in RANKS]
        lines.append(f"| `{algorithm}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], *map(int, sys.argv[3:]))
    elif sys.argv[1:] == ["costs"]:
        print(costs())
    else:
        run_or_table(__doc__, run, table)
