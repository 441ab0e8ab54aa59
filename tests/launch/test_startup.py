"""The start of a process."""

import os
import re
import socket
import subprocess
import sys
import threading

import jax
import pytest

from lbsgd.launch import startup
from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError

LIMITS = default_config().runtime


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((None, 2, 0), "belong together; give all three"),
        (("host:1", None, 0), "belong together; give all three"),
        (("host:1", 2, None), "belong together; give all three"),
        (("host:1", 2, 2), "--process_id must be from 0 to 1 of --num_processes=2, not 2"),
        (("host:1", 2, -1), "--process_id must be from 0 to 1 of --num_processes=2, not -1"),
        (("host", 2, 0), "--coordinator must be host:port of process 0, not 'host'"),
        (("host:one", 2, 0), "--coordinator must be host:port of process 0, not 'host:one'"),
        ((":1", 2, 0), "--coordinator must be host:port of process 0, not ':1'"),
        (("host:0", 2, 0), "--coordinator must be host:port of process 0, not 'host:0'"),
        (("host:65536", 2, 0), "--coordinator must be host:port of process 0, not 'host:65536'"),
    ],
)
def test_processes_that_cannot_be_are_an_error(flags, says):
    with pytest.raises(ConfigError, match=says):
        startup.start_processes(*flags, LIMITS)


def test_a_run_has_at_least_one_process():
    with pytest.raises(ConfigError, match="--num_processes must be at least 1, not -1"):
        startup.start_processes("host:1", -1, 0, LIMITS)


@pytest.mark.parametrize(
    ("coordinator", "bound"),
    [("localhost:70", True), ("127.0.0.1:70", True), ("[::1]:70", True), ("10.0.0.1:70", False)],
)
def test_a_coordinator_at_a_loopback_address_listens_there_alone(coordinator, bound):
    how = startup._check_process(coordinator, 2, 0)
    assert how.get("coordinator_bind_address") == (coordinator if bound else None)


@pytest.mark.parametrize("task", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_single_task_of_a_cluster_is_one_process(task, monkeypatch):
    monkeypatch.setenv(task, "1")
    startup.start_processes(None, None, None, LIMITS)
    assert not jax.distributed.is_initialized()


POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.mark.parametrize(
    ("environment", "single"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, True),
        ({"SLURM_NTASKS": "2"}, False),
        (POD, True),
        ({**POD, "JOB_COMPLETION_INDEX": "0"}, False),
        ({**POD, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.2:1"}, False),
        ({**POD, "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, False),
        ({**POD, "SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, True),
        ({**POD, "TPU_WORKER_HOSTNAMES": "a,b"}, False),
    ],
)
def test_what_says_that_a_process_is_alone(environment, single):
    assert startup.is_single(environment) == single


def run(*lines: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python lines in a process of its own, whose JAX is still to be started."""
    head = (
        "import os, jax",
        "from lbsgd.launch import startup",
        "from lbsgd.run.config import default_config",
        "from lbsgd.system.errors import ConfigError",
        "LIMITS = default_config().runtime",
    )
    return subprocess.run(
        [sys.executable, "-c", "\n".join((*head, *lines))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_a_cluster_that_does_not_tell_is_an_error():
    uri = "4096.0;nowhere"
    done = run("startup.start_processes(None, None, None, LIMITS)", OMPI_MCA_orte_hnp_uri=uri)
    assert "ConfigError: the processes did not find each other: Could not parse" in done.stderr


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (POD, ""),
        ({**POD, "JOB_COMPLETION_INDEX": "0"}, ""),
        ({**POD, "JOB_COMPLETION_INDEX": "2"}, "lbsgd: pod 2 of an indexed Job trains alone; "),
    ],
)
def test_without_a_cluster_there_is_one_process(environment, says):
    done = run(
        "startup.start_processes(None, None, None, LIMITS)",
        "assert not jax.distributed.is_initialized()",
        "assert jax.process_count() == 1",
        **environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(says)
    assert len(done.stderr.splitlines()) == bool(says)


# The coordinator's address


@pytest.fixture
def taken(monkeypatch):
    """A port of the loopback address at which somebody listens."""
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "[::]")])
def test_a_port_that_is_taken_is_named(host, address, taken):
    """At one address or at all of them."""
    says = re.escape(f"process 0 cannot listen at {address}:{taken} (Address already in use)")
    with pytest.raises(ConfigError, match=says):
        startup.start_processes(f"{host}:{taken}", 2, 0, LIMITS)


def test_who_listens_in_the_place_of_process_0_is_told_in_the_others(taken):
    """Where it is no server of gRPC: JAX would wait, and then end the process from C++."""
    limits = default_config().runtime
    limits.start_seconds = 1
    says = rf"what listens at 127\.0\.0\.1:{taken} is not process 0 .*; give all processes another "
    with pytest.raises(ConfigError, match=says):
        startup.start_processes(f"127.0.0.1:{taken}", 2, 1, limits)


# What a listener says first, and whether it is another program. The first is gRPC's, as JAX's
# coordinator sends it.
GREETINGS = [
    (b"\x00\x00\x18\x04\x00\x00\x00\x00\x00", False),
    (b"SSH-2.0-OpenSSH_9.2", True),
    (b"", True),
]


@pytest.mark.parametrize(("greeting", "foreign"), GREETINGS)
def test_a_coordinator_is_known_by_its_first_bytes(greeting, foreign):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet():
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        assert startup._is_foreign(*server.getsockname()) == foreign
        thread.join()


def test_nobody_is_no_other_program():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    assert not startup._is_foreign(*address)


def test_an_address_is_taken_apart():
    assert startup._split_address("[::1]:70") == ("::1", 70)
    assert startup._split_address("host:70") == ("host", 70)


@pytest.mark.parametrize("rank", ["OMPI_COMM_WORLD_RANK", "SLURM_PROCID"])
def test_a_cluster_s_port_that_is_taken_is_named(rank, taken, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(taken))
    monkeypatch.setenv(rank, "0")
    with pytest.raises(ConfigError, match=rf"at \[::\]:{taken} .* with JAX_COORDINATOR_PORT$"):
        startup.start_processes(None, None, None, LIMITS)


def test_an_address_of_another_machine_is_none_to_listen_at(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "192.0.2.1:45870")  # of documentation
    with pytest.raises(ConfigError, match=r"at 192\.0\.2\.1:45870 \(Cannot assign"):
        startup.start_processes("0.0.0.0:45870", 2, 0, LIMITS)


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "a b"])
def test_a_host_that_is_not_known_is_named(host, process):
    limits = default_config().runtime
    limits.start_seconds = 0
    with pytest.raises(ConfigError, match=f"--coordinator: the host '{host}' is not known"):
        startup.start_processes(f"{host}:45870", 2, process, limits)


def test_a_pod_waits_for_the_host_of_another(monkeypatch, capsys):
    """Its name is known once it is there."""
    monkeypatch.setattr(startup, "WAITING_SECONDS", 0.01)
    limits = default_config().runtime
    limits.start_seconds = 2
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ConfigError, match="is not known"):
        startup.start_processes("nowhere.invalid:1", 2, 1, limits)
    said = "lbsgd: process 1 of 2 at nowhere.invalid:1 waits for a host called 'nowhere.invalid'"
    assert capsys.readouterr().err.startswith(said)


# Devices


CPU_WHEELS_ONLY = {
    "broken": "broken cannot be used (INTERNAL: Failed to open /nowhere.so: ",
    "nosuch": "there is no backend 'nosuch'; there is cpu, and with its wheel cuda (pip install",
    "cuda": "the wheel for cuda is not installed; pip install 'lbsgd[cuda]', or unset",
    "tpu": "the wheel for tpu is not installed; pip install 'lbsgd[tpu]', or unset",
    "gpu": "at once; set JAX_PLATFORMS=cuda (pip install 'lbsgd[cuda]'), or unset",
    "rocm": "there is no backend 'rocm'",
    "cpu,nosuch": "there is no backend 'nosuch'",
}


def test_backends_that_cannot_be_are_a_line_that_says_what_to_do():
    done = run(
        f"for name in {list(CPU_WHEELS_ONLY)}:",
        "    jax.config.update('jax_platforms', name)",
        "    os.environ['JAX_PLATFORMS'] = name",
        "    try:",
        "        startup.start_processes(None, 1, None, LIMITS)",
        "    except ConfigError as error:",
        "        print(error)",
        "    os.environ.pop('PJRT_NAMES_AND_LIBRARY_PATHS', None)",
        PJRT_NAMES_AND_LIBRARY_PATHS="broken:/nowhere.so",
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(CPU_WHEELS_ONLY), done.stderr
    for line, (name, says) in zip(lines, CPU_WHEELS_ONLY.items()):
        assert line.startswith(f"JAX_PLATFORMS={name}: "), line
        assert says in line, line


def test_a_wheel_without_its_device_is_not_asked_for_again(tmp_path, monkeypatch):
    plugin = tmp_path / "jax_cuda13_plugin-0.10.2.dist-info" / "entry_points.txt"
    plugin.parent.mkdir()
    (plugin.parent / "METADATA").write_text("Name: jax-cuda13-plugin\nVersion: 0.10.2\n")
    plugin.write_text("[jax_plugins]\nxla_cuda13 = jax_plugins.xla_cuda13\n")
    assert "is not installed" in startup.explain_backend("cuda", AssertionError())
    monkeypatch.syspath_prepend(tmp_path)
    assert "no NVIDIA GPU is there" in startup.explain_backend("cuda", AssertionError())
    error = RuntimeError("Unable to initialize backend 'cuda': no supported devices found\nmore")
    said = "cuda cannot be used (Unable to initialize backend 'cuda': no supported devices found)"
    assert startup.explain_backend("cuda", error).startswith(said)
