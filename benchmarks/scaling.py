"""Measures weak and strong scaling over CPU cores: images/s of one core and of two.

    python benchmarks/scaling.py run      measures and writes docs/results/scaling.json
    python benchmarks/scaling.py table    prints the table from it

ResNet-20 on images of 32 pixels, a core for each device: one process with one device, two processes
with one each that talk by gloo over loopback, and one process with two devices. Weak: the minibatch
grows with the devices; strong: it does not. Each process is pinned to its cores, so that one device
computes on one core. All take turns; the efficiency is the images/s of two over twice those of one
in the same round. Linux alone can pin processes.
"""

import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
from typing import NamedTuple

from command import run_or_table

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "scaling.json"
ROUNDS, SECONDS, END_SECONDS = 15, 1.0, 30.0
# Before what a process answers, for gloo prints lines too.
ANSWER = "answer:"
# Network, image size, kn of one device, n, compute type.
CASE = ("cifar_resnet20", 32, 128, 32, "float32")


class Place(NamedTuple):
    """Says where the devices are."""

    processes: int
    devices: int  # of each process

    @property
    def name(self):
        """For people and in the results."""
        processes = f"{self.processes} process{'es' * (self.processes > 1)}"
        return f"{processes} x {self.devices} device{'s' * (self.devices > 1)}"

    @property
    def total(self):
        """All devices."""
        return self.processes * self.devices


ONE, OTHERS = Place(1, 1), (Place(2, 1), Place(1, 2))


def batch_size(place, scaling, case):
    """Images of a minibatch."""
    return case[2] * (place.total if scaling == "weak" else 1)


def child(processes, devices, process, port, cores, case):
    """Compiles the updates of both scalings; for each line "SCALING UPDATES" prints their time."""
    os.sched_setaffinity(0, cores)  # before JAX starts its threads, as many as there are cores
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        from lbsgd.launch import startup
        from lbsgd.run.config import default_config

        address = f"127.0.0.1:{port}"
        startup.start_processes(address, processes, process, default_config().runtime)
    from step import Running, our_step

    runs, (name, size, _, n, dtype), place = {}, case, Place(processes, devices)
    for scaling in ("weak", "strong"):
        kn = batch_size(place, scaling, case)
        parts, compiled, state, batch = our_step(name, size, kn, n, dtype, devices=place.total)
        runs[scaling] = Running(compiled, state, (batch, parts.program.numbers.at(0)))
    print(ANSWER, "ready", flush=True)
    for line in sys.stdin:
        scaling, updates = line.split()
        print(ANSWER, runs[scaling].seconds(int(updates)), flush=True)


class Group:
    """The processes of a place, which wait without work between their turns."""

    def __init__(self, place, cores, case):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        self._children = []
        for process in range(place.processes):
            own = cores[process * place.devices : (process + 1) * place.devices]
            given = json.dumps([*place, process, port, own, case])
            command = [sys.executable, __file__, "child", given]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._children.append(subprocess.Popen(command, env=env, **pipes))

    def wait(self):
        """Waits until all have compiled."""
        self._answers()

    def end(self):
        """Lets them end by themselves, together."""
        for child in self._children:
            child.stdin.close()
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_SECONDS)
            child.kill()
            child.wait()
            child.stdout.close()

    def seconds(self, scaling, updates):
        """The time of some updates, of the slowest process."""
        for child in self._children:
            child.stdin.write(f"{scaling} {updates}\n")
            child.stdin.flush()
        return max(map(float, self._answers()))

    def _answers(self):
        return [self._answer(child) for child in self._children]

    def _answer(self, child):
        for line in child.stdout:
            if line.startswith(ANSWER):
                return line.removeprefix(ANSWER).strip()
        raise RuntimeError("a process has ended: see what it says")


def measure(case, rounds, seconds):
    """Images/s in each round, by scaling and place."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise RuntimeError("two cores are needed")
    rates = {scaling: {} for scaling in ("weak", "strong")}
    with contextlib.ExitStack() as stack:
        groups = {}
        for place in (ONE, *OTHERS):
            groups[place] = Group(place, cores, case)
            stack.callback(groups[place].end)
            groups[place].wait()
        took = [groups[ONE].seconds("weak", 1) for _ in range(2)]  # the first warms up
        updates = max(1, round(seconds / took[1]))
        for attempt in range(rounds + 1):
            for place, group in groups.items():
                for scaling, found in rates.items():
                    if place == ONE and scaling == "strong":
                        continue  # the same minibatch
                    images = updates * batch_size(place, scaling, case)
                    rate = images / group.seconds(scaling, updates)
                    if attempt:
                        found.setdefault(place.name, []).append(rate)
    rates["strong"][ONE.name] = rates["weak"][ONE.name]
    return rates


def run():
    """Measures every place."""
    from provenance import measured_on

    rates = measure(CASE, ROUNDS, SECONDS)
    result = {"case": CASE, "n": ROUNDS, "rates": rates, "machine": measured_on()}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def table():
    """Median images/s, and the efficiency of each round, median and range, as Markdown."""
    from provenance import provenance

    result = json.loads(RESULTS.read_text())
    name, size, _, n, dtype = case = result["case"]
    lines = [
        f"| {name}, {size} pixels, n={n}, {dtype} | on | kn | images/s | efficiency |",
        "|---" * 5 + "|",
    ]
    for scaling, rates in result["rates"].items():
        one = rates[ONE.name]
        for place in (ONE, *OTHERS):
            ratios = [a / (place.total * b) for a, b in zip(rates[place.name], one)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            cells = [scaling, place.name, batch_size(place, scaling, case)]
            cells += [f"{statistics.median(rates[place.name]):,.0f}"]
            cells += [spread if place != ONE else ""]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", provenance(result, result["n"])])


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*json.loads(sys.argv[2]))
    else:
        run_or_table(__doc__, run, table)
