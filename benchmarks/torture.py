"""A run that is killed and stopped again and again against the same run left alone.

    python benchmarks/torture.py run      digits in 2 processes: killed 25 times and restarted by
                                          the launcher, then stopped by SIGTERM 20 times (compiling,
                                          training, evaluating and saving); about 15 minutes on 2
                                          cores; writes docs/results/torture.json
    python benchmarks/torture.py table    prints the table from it

Each must end with bitwise the parameters of the run left alone, and with every update and every
evaluation in metrics.jsonl once, with the same numbers.
"""

import collections
import json
import os
import pathlib
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time

import jax
from command import run_or_table
from provenance import measured_on, provenance

from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.run.build import build
from lbsgd.run.config import resolve
from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "torture.json"
KILLS, STOPS, PROCESSES, UPDATES = 25, 20, 2, 300
# Many small batches make an evaluation long enough to be met in it.
KEYS = {
    "total_epochs": 0.0,
    "total_steps": UPDATES,
    "checkpoint.every_epochs": 0.0,
    "checkpoint.every_steps": 10,
    "evaluation.every_epochs": 0.0,
    "evaluation.every_steps": 15,
    "evaluation.batch_size": 8,
    "log.sinks": (),
}
TIMES = ("images_per_second", "data_wait_percent")
PHASES = ("compilation", "training", "evaluation", "saving")
DEADLINE = 600.0


class Group:
    """The processes of a run under the launcher, watched from outside."""

    def __init__(self, workdir: pathlib.Path, max_restarts: int) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self.workdir = workdir
        self._begun = self._headers()
        self._said = (workdir / "launcher.log").open("a")
        command = [sys.executable, "-m", "lbsgd.main", "launch", f"--num_processes={PROCESSES}"]
        command += ["--platform=cpu", f"--max_restarts={max_restarts}", "--"]
        command += ["--config=configs/digits.py", f"--workdir={workdir}"]
        command += [f"--config.{key}={value}" for key, value in KEYS.items()]
        self.launcher = subprocess.Popen(command, cwd=ROOT, stdout=self._said, stderr=self._said)

    def _log(self, process: int) -> str:
        path = self.workdir / "logs" / f"{process}.log"
        return path.read_text() if path.exists() else ""

    def _headers(self) -> list[int]:
        return [self._log(i).count(f"process {i} of ") for i in range(PROCESSES)]

    def await_start(self) -> None:
        """Until all processes have opened their logs once more than when this was last asked."""
        self._until(lambda: all(a > b for a, b in zip(self._headers(), self._begun)))
        self._begun = self._headers()

    def pid(self, process: int) -> int:
        return int(re.findall(r"pid (\d+)", self._log(process))[-1])

    def step(self) -> int:
        """The last update in the metrics."""
        path = self.workdir / "metrics.jsonl"
        *whole, _ = path.read_text().split("\n") if path.exists() else [""]
        return json.loads(whole[-1])["step"] if whole else 0

    def phase(self) -> str:
        """What process 0 is at."""
        if "compiled in" not in self._log(0).rpartition("process 0 of ")[2]:
            return "compilation"
        checkpoints = self.workdir / "checkpoints"
        if any("tmp" in path.name for path in checkpoints.iterdir()):
            return "saving"
        *whole, _ = (self.workdir / "metrics.jsonl").read_text().split("\n")
        last = json.loads(whole[-1]) if whole else {"step": 1}
        owed = last["step"] % KEYS["evaluation.every_steps"] == 0 and "val_error" not in last
        return "evaluation" if owed else "training"

    def await_phase(self, phase: str, updates: int) -> None:
        """Until it is at `phase`; but for compilation, after so many more updates."""
        first = self.step()
        if phase != "compilation":
            self._until(lambda: self.step() >= min(first + updates, UPDATES - 20))
        self._until(lambda: self.phase() == phase, pause=0.0005)
        time.sleep(random.uniform(0, 0.5 if phase == "compilation" else 0.02))

    def _until(self, condition, pause: float = 0.01) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if self.launcher.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run ended or hangs; see {self.workdir / 'launcher.log'}")
            time.sleep(pause)

    def end(self) -> int:
        """The exit code, once it has ended."""
        code = self.launcher.wait(DEADLINE)
        self._said.close()
        return code


def config():
    """That of all runs here."""
    made = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
    made.update_from_flattened_dict(KEYS)
    return resolve(made)


def outcome(workdir: pathlib.Path) -> dict[str, object]:
    """Final state, newest checkpoint, and the metrics without times."""
    parts = build(config())
    found = Checkpoints(workdir / "checkpoints", 1, parts.plan.identity(), say=print)
    update, state = found.restore(parts.program.abstract_state())
    found.close()
    lines = read_metrics(workdir / "metrics.jsonl")
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return {"update": update, "state": state, "metrics": lines}


def compare(found: dict[str, object], expected: dict[str, object]) -> dict[str, object]:
    """Whether two runs are bitwise the same."""
    pairs = zip(jax.tree.leaves(found["state"]), jax.tree.leaves(expected["state"]))
    steps = [line["step"] for line in found["metrics"] if "train_loss" in line]
    return {
        "updates": found["update"],
        "parameters_bitwise_equal": all(a.tobytes() == b.tobytes() for a, b in pairs),
        "metrics_equal": found["metrics"] == expected["metrics"],
        "each_update_once": steps == list(range(1, UPDATES + 1)),
    }


def left_alone(workdir: pathlib.Path) -> dict[str, object]:
    code = Group(workdir, 0).end()
    assert code == 0, code
    return outcome(workdir)


def killed(workdir: pathlib.Path, expected: dict[str, object]) -> dict[str, object]:
    """SIGKILL of a random process at random moments; the launcher restarts the group."""
    group, kills = Group(workdir, 2 * KILLS), []
    for _ in range(KILLS):
        group.await_start()
        group.await_phase(random.choice(PHASES), random.randrange(12))
        phase, process = group.phase(), random.randrange(PROCESSES)
        kills.append({"phase": phase, "process": process, "after_update": group.step()})
        print("kill", kills[-1], flush=True)
        os.kill(group.pid(process), signal.SIGKILL)
    code = group.end()
    restarts = (workdir / "launcher.log").read_text().count("restarting")
    result = {"exit_code": code, "restarts": restarts, "kills": kills}
    return result | compare(outcome(workdir), expected)


def stopped(workdir: pathlib.Path, expected: dict[str, object]) -> dict[str, object]:
    """SIGTERM at random moments of each phase in turn; the same command goes on."""
    stops = []
    for i in range(STOPS):
        group = Group(workdir, 0)
        group.await_start()
        group.await_phase(PHASES[i % len(PHASES)], random.randrange(12))
        phase, at, begun = group.phase(), group.step(), time.monotonic()
        group.launcher.send_signal(signal.SIGTERM)
        code, seconds = group.end(), time.monotonic() - begun
        saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
        stop = {"phase": phase, "at_update": at, "saved": saved, "reached": group.step()}
        stops.append(stop | {"exit_code": code, "seconds": round(seconds, 2)})
        print("stop", stops[-1], flush=True)
    code = Group(workdir, 0).end()
    good = sum(s["exit_code"] == 75 and s["saved"] == s["reached"] for s in stops)
    result = {"exit_code": code, "saved_what_was_reached": good, "stops": stops}
    return result | compare(outcome(workdir), expected)


def run() -> None:
    """All of it; writes the results."""
    seed = random.randrange(2**32)
    random.seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        expected = left_alone(root / "alone")
        results = {
            "seed": seed,
            "processes": PROCESSES,
            "killed": killed(root / "killed", expected),
            "stopped": stopped(root / "stopped", expected),
            "machine": measured_on(),
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table() -> str:
    """The results as Markdown."""
    results = json.loads(RESULTS.read_text())
    lines = ["| | times | in | exit code | parameters | metrics |", "|---" * 6 + "|"]
    for name, key in (("killed", "kills"), ("stopped", "stops")):
        part = results[name]
        phases = collections.Counter(event["phase"] for event in part[key])
        cells = [
            {"killed": "SIGKILL of one process", "stopped": "SIGTERM to the launcher"}[name],
            len(part[key]),
            ", ".join(f"{phase} {phases[phase]}" for phase in PHASES),
            part["exit_code"],
            "bitwise equal" if part["parameters_bitwise_equal"] else "DIFFERENT",
            "equal, each update once"
            if part["metrics_equal"] and part["each_update_once"]
            else "DIFFERENT",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    stops = results["stopped"]["stops"]
    slowest = max(stop["seconds"] for stop in stops)
    lines += [
        "",
        f"{results['stopped']['saved_what_was_reached']} of {len(stops)} stops ended with exit "
        f"code 75 and a checkpoint of the update reached, {slowest:.1f} s after the signal at "
        f"most. configs/digits.py, {results['killed']['updates']} updates in "
        f"{results['processes']} processes; {provenance(results)}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_or_table(__doc__, run, table)
