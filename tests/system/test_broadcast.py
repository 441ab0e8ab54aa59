"""Broadcasts between two processes: bit by bit, whatever the parts."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
from hanging import HANG_SECONDS

ROOT = pathlib.Path(__file__).parents[2]

# Each broadcasts its own arrays, in parts of 7 bytes, and writes what it has got.
BROADCAST = """
import pathlib, sys
import jax
import numpy as np
from lbsgd.system import processes

folder, port, process = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
processes.PART_BYTES = 7
mine = dict(np.load(folder / f"{process}.npz"))
found = processes.from_process_0({**mine, "matrix": mine["matrix"].T})
np.savez(folder / f"found{process}.npz", **found)
"""


def test_a_broadcast_is_bitwise_that_of_process_0_whatever_its_parts(tmp_path):
    """Arrays longer than a part, shorter, of no number, of no axis, and not contiguous."""
    arrays = {
        "odd": np.array([-0.0, np.nan, np.inf, 5e-324]),
        "matrix": np.arange(12, dtype=np.int16).reshape(3, 4),
        "flag": np.array(True),
        "none": np.zeros((0, 3)),
        "small": np.array([1, 255], np.uint8),
    }
    np.savez(tmp_path / "0.npz", **arrays)
    np.savez(tmp_path / "1.npz", **{name: np.zeros_like(x) for name, x in arrays.items()})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = [
        subprocess.Popen(
            [sys.executable, "-c", BROADCAST, *map(str, (tmp_path, port, process))],
            cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        )
        for process in range(2)
    ]
    assert [process.wait(timeout=HANG_SECONDS) for process in group] == [0, 0]
    expected = {**arrays, "matrix": arrays["matrix"].T}
    for process in range(2):
        found = np.load(tmp_path / f"found{process}.npz")
        assert set(found) == set(expected)
        for name, x in expected.items():
            assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype)
            assert found[name].tobytes() == x.tobytes(), name
