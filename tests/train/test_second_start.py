"""A config that is started again compiles nothing, and is the same run."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
# The command, and how many programs it did not have to compile.
SCRIPT = """
import json, sys
from lbsgd import main
import jax
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name.rpartition("/")[2]))
assert main.main(sys.argv[1:]) == 0
print(json.dumps([found.count("cache_hits"), found.count("cache_misses")]))
"""
# Of the machine's speed.
TIMED = ("images_per_second", "data_wait_percent")


@pytest.mark.long
def test_the_second_start_compiles_nothing_and_is_the_same_run(tmp_path):
    names = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    small = ["--config.model.width=0.25", "--config.batch_size=64", "--config.worker_batch_size=16"]
    small += ["--config.total_epochs=0", "--config.total_steps=4", "--config.log.every_steps=1"]
    small += ["--config.log.sinks=()", "--config.learning_rate.warmup_epochs=0.1"]

    def start(workdir: str) -> list[int]:
        words = ["train", "--config=digits", *small, f"--workdir={tmp_path / workdir}"]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *words], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout.splitlines()[-1])

    _, compiled = start("first")
    assert compiled >= 3  # the update, the evaluation, the initial state
    assert start("second") == [compiled, 0]
    lines = [
        [{k: v for k, v in line.items() if k not in TIMED} for line in read_metrics(path)]
        for path in (tmp_path / name / "metrics.jsonl" for name in ("first", "second"))
    ]
    assert lines[0] == lines[1]
