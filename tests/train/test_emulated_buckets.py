"""gs:// and s3:// on this machine: the command line, and the tests of buckets, on emulators.

The emulator of Google's knows no conditions of a request; the one that locks need is added to it.
"""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
from typing import NamedTuple

import numpy as np
import pytest
from buckets import PLACE
from hanging import HANG_SECONDS
from own_environment import make_environment

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.long

MOTO = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
GOOGLE = """
import time
from http import HTTPStatus
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

real = objects._multipart_upload

def upload(request, response, storage):
    if request.query.get("ifGenerationMatch") == ["0"]:
        try:
            storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
            response.status = HTTPStatus.PRECONDITION_FAILED
            return None
        except NotFound:
            pass
    return real(request, response, storage)

objects._multipart_upload = upload
create_server("127.0.0.1", {port}, in_memory=True, default_bucket="bucket").start()
time.sleep(10**6)
"""
AMAZON = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:{port}",
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
GOOGLE_CLIENT = {
    "STORAGE_EMULATOR_HOST": "http://127.0.0.1:{port}",
    "FSSPEC_GS_TOKEN": "anon",
    # Else it asks Google itself what kind of bucket it is.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}
KINDS = {
    "s3": (["moto[server]==5.2.5", "s3fs==2026.9.0"], MOTO, AMAZON),
    "gs": (
        ["gcp-storage-emulator==2026.7.19", "gcsfs==2026.10.1"],
        GOOGLE,
        GOOGLE_CLIENT,
    ),
}


class Emulated(NamedTuple):
    """A bucket on this machine, and how a command finds it."""

    place: str
    python: pathlib.Path
    environment: dict[str, str]

    def start(self, *args: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [self.python, *args]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, **pipes)

    def __call__(self, *args: str, code: int = 0) -> str:
        process = self.start(*args)
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == code, out + err
        assert "Traceback" not in err, err
        return out + err


@pytest.fixture(scope="module", params=list(KINDS))
def emulated(request, tmp_path_factory):
    packages, server, environment = KINDS[request.param]
    python = make_environment(tmp_path_factory.mktemp(request.param), *packages)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    environment = {key: value.format(port=port) for key, value in environment.items()}
    environment |= os.environ | {"PYTHONPATH": str(ROOT)}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([python, "-c", server.replace("{port}", str(port))], **silent)
    try:
        await_port(port)
        there = Emulated(f"{request.param}://bucket", python, environment)
        if request.param == "s3":
            there("-c", "import s3fs; s3fs.S3FileSystem().mkdir('bucket')")
        yield there
    finally:
        process.kill()
        process.wait()


def await_port(port: int) -> None:
    give_up = time.monotonic() + HANG_SECONDS
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise AssertionError("the emulator does not come up")


BUCKETS = (
    "tests/system/test_bucket.py",
    "tests/system/test_locks.py",
    "tests/system/test_appending.py",
    "tests/checkpoint/test_checkpoints_in_bucket.py",
    "tests/data/packed/test_packed_in_bucket.py",
)


def test_what_holds_of_buckets_in_memory_holds_there(emulated):
    emulated.environment[PLACE] = f"{emulated.place}/tests"
    # The libraries warn of connections that they have not closed.
    unclosed = ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning")
    warns = [word for name in unclosed for word in ("-W", f"ignore::{name}")]
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", *warns)
    assert " passed" in emulated(*words, *BUCKETS)
    del emulated.environment[PLACE]


RUN = (
    "--config=configs/digits.py",
    "--config.model.width=0.25",
    "--config.total_epochs=0",
    "--config.total_steps=40",
    "--config.learning_rate.warmup_epochs=0.3",
    "--config.learning_rate.decay_epochs=(1.0, 1.3)",
    "--config.checkpoint.every_epochs=0",
    "--config.checkpoint.every_steps=10",
    "--config.evaluation.every_epochs=0",
    "--config.evaluation.every_steps=10",
    "--config.log.sinks=()",
)


def shown(text: str) -> list[str]:
    """Checksum, norm, mean and name of each array."""
    return re.findall(r"^[0-9a-f]{12}  .*$", text, re.MULTILINE)


def test_a_run_killed_in_a_bucket_is_the_run_on_the_disk(emulated, tmp_path):
    main, place = ("-m", "lbsgd.main"), f"{emulated.place}/run"
    emulated(*main, *RUN, f"--workdir={tmp_path}")
    killed = emulated.start(*main, *RUN, "--config.total_steps=40", f"--workdir={place}")
    try:
        for line in killed.stdout:
            if "update 20 " in line:
                break
        killed.send_signal(signal.SIGKILL)
    finally:
        killed.kill()
        killed.communicate()
    # By its config alone; the lock of the run that was killed expires.
    out = emulated(*main, "train", f"--workdir={place}")
    assert re.search(rf"waits for workdir {place}, which is in use by process {killed.pid} on", out)
    assert re.search(rf"resumes after update [12]0 from {place}/checkpoints", out)
    assert f"checkpoint {place}/checkpoints/40" in out
    states = [
        shown(emulated(*main, "checkpoint", "show", f"{where}")) for where in (place, tmp_path)
    ]
    assert states[0] == states[1]
    assert len(states[0]) > 40
    assert emulated(*main, "checkpoint", "verify", place).count(": ok, ") == 3
    assert "is complete: 40 updates are done" in emulated(*main, f"--workdir={place}")


def test_a_bucket_that_is_not_there_is_a_line(emulated):
    place = f"{emulated.place}-nowhere/run"
    out = emulated("-m", "lbsgd.main", *RUN, f"--workdir={place}", code=2)
    assert re.search(rf"workdir {place} cannot be written \(.*\); choose another --workdir", out)
    out = emulated("-m", "lbsgd.main", "checkpoint", "list", place, code=2)
    assert f"{place} is not a folder" in out


COPY = """
import pathlib, sys
from lbsgd.system.bucket import BucketPath
root = pathlib.Path(sys.argv[1])
for path in root.glob("*/*"):
    (BucketPath(sys.argv[2]) / path.relative_to(root).as_posix()).upload(path)
"""


def test_a_run_reads_packed_data_from_a_bucket(emulated, tmp_path):
    labels = np.arange(1500) % 10
    (tmp_path / "arrays").mkdir()
    for seed, split in enumerate(("train", "validation")):
        images = np.random.default_rng(seed).integers(0, 256, (1500, 8, 8, 1), np.uint8)
        np.savez(tmp_path / "arrays" / f"{split}.npz", images=images, labels=labels)
    main, packed = ("-m", "lbsgd.main"), tmp_path / "packed"
    emulated(*main, "prepare", f"{tmp_path / 'arrays'}", f"{packed}", "--raw")
    emulated("-c", COPY, f"{packed}", f"{emulated.place}/set")
    emulated.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    states = []
    for where, data in ((tmp_path / "disk", packed), (tmp_path / "there", f"{emulated.place}/set")):
        source = ("--config.data.source=packed", f"--config.data.dir={data}")
        emulated(*main, *RUN, *source, "--config.total_steps=3", f"--workdir={where}")
        states.append(shown(emulated(*main, "checkpoint", "show", f"{where}")))
    assert states[0] == states[1]
    assert len(list((tmp_path / "cache/lbsgd/shards").glob("*.array_record"))) == 2
