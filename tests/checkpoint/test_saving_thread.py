"""Training goes on while a thread saves; what that costs, and how processes end."""

import os
import pathlib
import socket
import subprocess
import sys
import textwrap
import threading

import pytest
from checkpoint_folder import Opened, on_disk, restored, state
from hanging import HANG_SECONDS

from lbsgd.checkpoint import store
from lbsgd.checkpoint.saving import Costs

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_training_goes_on_meanwhile_and_saves_wait_for_each_other(tmp_path, monkeypatch):
    """`save` is back while nothing is written; the next one waits until that is done."""
    real, go, order = store.write, threading.Event(), []

    def write(path, *args):
        assert go.wait(60)
        real(path, *args)
        order.append(f"wrote {path.name}")

    monkeypatch.setattr(store, "write", write)
    with Opened(tmp_path) as opened:
        opened.checkpoints.save(1, state(1))
        assert opened.checkpoints.newest is None
        second = threading.Thread(
            target=lambda: (opened.checkpoints.save(2, state(2)), order.append("saved 2"))
        )
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert order == []
        go.set()
        second.join(60)
    assert order.index("wrote 1") < order.index("saved 2")
    assert restored(tmp_path) == (2, [])


def test_costs_are_counted(tmp_path, monkeypatch):
    with Opened(tmp_path) as opened:
        assert opened.checkpoints.summary() == "no checkpoint was written"
        for update in (1, 2, 2):
            opened.checkpoints.save(update, state())
        opened.checkpoints.wait()
        costs = opened.checkpoints.costs
    each = 40 * 30 * 4 + 5 * 2 + 4 + 7 * 4
    assert (costs.saved, costs.failed, costs.nbytes, costs.calls) == (2, 0, 2 * each, 2)
    assert costs.seconds > 0
    assert costs.waited > 0


def test_costs_are_a_line():
    assert str(Costs(3, 0, 600_000, 0.63, 0.012, 3)) == (
        "3 checkpoints of 0.2 MB, each written in 0.21 s; training stood still 0.004 s for each"
    )
    assert str(Costs(1, 2, 5_000_000, 1.0, 0.3, 3)) == (
        "1 checkpoint of 5.0 MB, written in 1.00 s; training stood still 0.100 s for each; "
        "2 could not be written"
    )
    assert str(Costs(1, 0, 5_000_000, 1.0, 0.1, 1)) == (
        "1 checkpoint of 5.0 MB, written in 1.00 s; training stood still 0.100 s for it"
    )
    assert str(Costs(0, 2, 0, 1.0, 0.3, 2)) == "no checkpoint was written; 2 could not be written"


ENDS = """
    import pathlib, sys
    import numpy as np
    from lbsgd.checkpoint.saving import Checkpoints
    checkpoints = Checkpoints(pathlib.Path({folder!r}), 2, {{}}, say=print)
    state = {{"x": np.ones(2_000_000, np.float32)}}
    for update in (1, 2):
        checkpoints.save(update, state)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("try:\n        raise KeyboardInterrupt\n    finally:\n        checkpoints.close()", -2),
        pytest.param("pass", 0, marks=pytest.mark.long),
        pytest.param("sys.exit(3)", 3, marks=pytest.mark.long),
    ],
)
def test_a_process_ends_whatever_is_under_way(tmp_path, end, code):
    """With `close` both are there. Without it the last may be missing, but nothing is half."""
    script = textwrap.dedent(ENDS.format(folder=str(tmp_path), end=end))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code == 0:
        assert "Traceback" not in done.stderr
    there = on_disk(tmp_path)
    assert there[0] == "1"
    for name in there:
        store.read_arrays(tmp_path / name, store.read_manifest(tmp_path / name))
    if "close" in end:
        assert there == ["1", "2"]


GROUP = """
    import pathlib, sys
    import jax, numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec
    from lbsgd.checkpoint.saving import Checkpoints

    port, process, folder = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    mesh = jax.make_mesh((2,), ("d",))
    replicated = NamedSharding(mesh, PartitionSpec())
    state = jax.jit(lambda: {"x": jax.numpy.arange(3000.0)}, out_shardings=replicated)()
    if process == "0":
        checkpoints = Checkpoints(pathlib.Path(folder), 2, {}, say=print)
        for update in (1, 2, 3):
            checkpoints.save(update, state)
        checkpoints.wait()
        update, found = checkpoints.restore(state)
        np.testing.assert_array_equal(found["x"], np.arange(3000.0))
        checkpoints.close()
        print("restored", update)
    multihost_utils.sync_global_devices("end")  # where process 1 waits all the while
"""


def test_process_0_needs_no_other(tmp_path):
    """Of two real ones, one saves and restores while the other waits for something else."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    group = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(GROUP), str(port), str(i), str(tmp_path)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=HANG_SECONDS)[0] for process in group]
    finally:
        for process in group:
            process.kill()
    assert [process.returncode for process in group] == [0, 0], outputs
    assert "restored 3" in outputs[0].splitlines()
    assert on_disk(tmp_path) == ["2", "3"]
