"""All-reduces between processes, which exchange over sockets."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
from hanging import HANG_SECONDS

CHILD = """
import hashlib, json, sys
port, process = map(int, sys.argv[1:])
import jax
from lbsgd.launch import startup
from lbsgd.run.config import default_config
startup.start_processes(f"127.0.0.1:{port}", 2, process, default_config().runtime)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import test_allreduce as t
from lbsgd.workers.collectives.allreduce import resolve_grid
from ranks import on_devices
assert resolve_grid("hierarchical", 4) == (2, 2)
values = np.random.default_rng(0).normal(size=(4, 101)).astype(np.float32)
exact = values.astype(np.float64).mean(0)
bound = np.abs(values).mean(0)
found = {}
for algorithm in t.ALGORITHMS:
    for dtype in (None, *t.DTYPES):
        f, mesh, spec = on_devices(4, algorithm=algorithm, dtype=dtype)
        x = jax.make_array_from_callback(
            values.shape, NamedSharding(mesh, spec), lambda index: values[index])
        own = [np.asarray(s.data)[0] for s in jax.jit(f)(x).addressable_shards]
        unit = t.UNIT[dtype or "float32"]
        assert all((np.abs(y - exact) <= 4.1 * unit * bound).all() for y in own)
        found[f"{algorithm} {dtype}"] = [hashlib.sha256(y.tobytes()).hexdigest() for y in own]
print(json.dumps(found))
"""


@pytest.mark.long
def test_two_processes_of_two_devices_have_the_same_bits():
    """Of each algorithm and type: the mean, to 4 roundings (a ring's), alike on all four."""
    folder = pathlib.Path(__file__).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(map(str, (folder, folder.parent, folder.parent.parent)))
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    group = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(port), str(process)],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    said = [process.communicate(timeout=HANG_SECONDS)[0] for process in group]
    assert [process.returncode for process in group] == [0, 0]
    first, second = (json.loads(text.splitlines()[-1]) for text in said)
    assert len(first) == 6 * 3
    for case, digests in first.items():
        assert len({*digests, *second[case]}) == 1, case
