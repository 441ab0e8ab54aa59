"""The start of a process: it joins the others of its run, and finds its devices."""

import contextlib
import importlib.util
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import ml_collections

from lbsgd.system.errors import ConfigError

# A process that waits longer for the others to start says so.
WAITING_SECONDS = 10.0
# Between two questions for who is still to come, and for the answer to one.
ASK_SECONDS = 1.0
# The type of the frame that a server of HTTP/2 sends first, after three bytes of its length.
_SETTINGS = b"\x04"

# What the cluster managers that JAX knows give to the processes of a run, besides Kubernetes.
_OF_CLUSTERS = (
    "JAX_COORDINATOR_ADDRESS",
    "OMPI_MCA_orte_hnp_uri",
    "SLURM_STEP_NODELIST",
    "TPU_PROCESS_ADDRESSES",
    "TPU_WORKER_HOSTNAMES",
)
_RANKS = ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
# By which a user asks JAX for backends.
_ASKING = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
# Backends that pip brings, and how.
_EXTRAS = {"cuda": 'pip install -e ".[cuda]"', "tpu": 'pip install -e ".[tpu]"'}


def start_processes(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    limits: ml_collections.ConfigDict,
) -> None:
    """Joins this process to the others of the run (`jax.distributed`), if there are any.

    Without any of the three, JAX looks for SLURM, Open MPI, Kubernetes and Cloud TPU.

    Args:
      coordinator: host:port of process 0, who listens there; on a loopback address only there.
      limits: the config's `runtime`.

    Raises:
      ConfigError: what is given names no process of a run, the others did not come, or there are
        no such devices as are asked for.
    """
    given = (coordinator, num_processes, process_id)
    alone = all(x is None for x in given) and is_single(os.environ)
    if num_processes != 1 and not alone:
        _join(coordinator, num_processes, process_id, limits)
    _open_devices()


def _join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    limits: ml_collections.ConfigDict,
) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    how: dict[str, Any] = {
        "heartbeat_timeout_seconds": limits.heartbeat_seconds,
        "initialization_timeout": limits.start_seconds,
    }
    who = "it"
    if any(x is not None for x in (coordinator, num_processes, process_id)):
        how |= _check_process(coordinator, num_processes, process_id)
        who = f"process {process_id} of {num_processes} at {coordinator}"
        _await_host(_split(how["coordinator_address"])[0], who, limits.start_seconds)
        if process_id:
            _await_coordinator(how["coordinator_address"], limits.start_seconds)
    _check_listens(how, os.environ)
    with _told(f"{who} waits for the other processes", "them", limits.start_seconds), _no_advice():
        _initialize(how)


def _initialize(how: Mapping[str, Any]) -> None:
    try:
        jax.distributed.initialize(**how)
    except jax.errors.JaxRuntimeError:
        raise  # of the connection, which may be better next time
    except Exception as error:  # of JAX's own detection, and of what it asks
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if "coordinator_address should be defined" not in reason:  # there is no cluster
            raise ConfigError(
                f"the processes did not find each other: {reason}; --coordinator, "
                "--num_processes and --process_id tell them, --num_processes=1 that it is alone"
            ) from error
        _tell_pod(os.environ)


def is_single(environment: Mapping[str, str]) -> bool:
    """Whether a cluster manager started this process alone."""
    if "1" in (environment.get("SLURM_NTASKS"), environment.get("OMPI_COMM_WORLD_SIZE")):
        return True
    # Every pod has Kubernetes' variables; those of one run are the pods of an indexed Job.
    pod = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" not in environment
    return pod and not any(name in environment for name in _OF_CLUSTERS)


def _tell_pod(environment: Mapping[str, str]) -> None:
    index = environment.get("JOB_COMPLETION_INDEX", "0")
    if index != "0":
        print(
            f"lbsgd: pod {index} of an indexed Job trains alone; for one run of all pods give "
            "--coordinator, --num_processes and --process_id, or pip install kubernetes",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """JAX advises the package kubernetes to every process in a pod."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Kubernetes environment detected", UserWarning)
        yield


@contextlib.contextmanager
def _told(what: str, them: str, seconds: float) -> Iterator[None]:
    """Says what is waited for, if that takes long."""
    text = f"lbsgd: {what}; ends after {seconds} s without {them}"
    told = threading.Timer(
        min(WAITING_SECONDS, seconds / 2), lambda: print(text, file=sys.stderr, flush=True)
    )
    told.daemon = True
    told.start()
    try:
        yield
    finally:
        told.cancel()


def _check_process(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any]:
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(
            "--coordinator=host:port, --num_processes and --process_id belong together; give all "
            "three"
        )
    if num_processes < 1:
        raise ConfigError(f"--num_processes must be at least 1, not {num_processes}")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id must be from 0 to {num_processes - 1} of --num_processes="
            f"{num_processes}, not {process_id}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator must be host:port of process 0, not {coordinator!r}")
    how = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }
    if host in ("localhost", "[::1]") or host.startswith("127."):
        how["coordinator_bind_address"] = coordinator  # JAX's own choice is every interface
    return how


# --- the coordinator's address: JAX crashes, or ends the process from C++, where it is none ----


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _await_host(host: str, who: str, seconds: float) -> None:
    """Waits until the host has an address: that of a pod is known once the pod is there."""
    pod = "KUBERNETES_SERVICE_HOST" in os.environ
    end = time.monotonic() + (seconds if pod else min(seconds, WAITING_SECONDS))
    text = f"{who} waits for a host called {host!r}, which is not known"
    with _told(text, "it", seconds) if pod else contextlib.nullcontext():
        while True:
            try:
                socket.getaddrinfo(host, None)
                return
            except (OSError, UnicodeError) as error:
                if time.monotonic() + ASK_SECONDS > end:
                    raise ConfigError(
                        f"--coordinator: the host {host!r} is not known ({_reason(error)}); give "
                        "the name or the address of the machine of process 0"
                    ) from error
            time.sleep(ASK_SECONDS)


def _await_coordinator(address: str, seconds: float) -> None:
    """Waits while another program answers in the place of process 0, who may just be starting.

    Where nobody does, JAX waits.

    Raises:
      ConfigError: it does so for as long as processes wait for each other.
    """
    end = time.monotonic() + seconds
    while _is_foreign(*_split(address)):
        if time.monotonic() + ASK_SECONDS > end:
            raise ConfigError(
                f"what listens at {address} is no process 0 of a run; give all processes another "
                "port with --coordinator"
            )
        time.sleep(ASK_SECONDS)


def _is_foreign(host: str, port: int) -> bool:
    """Tells whether somebody listens who does not begin as a server of gRPC, with its settings."""
    try:
        connection = socket.create_connection((host, port), ASK_SECONDS)
    except OSError:
        return False
    with connection, contextlib.suppress(OSError):
        return connection.recv(4, socket.MSG_WAITALL)[3:] != _SETTINGS
    return True


def _check_listens(how: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Checks that process 0 can listen where it will, as far as that is known beforehand.

    Args:
      how: what `jax.distributed.initialize` will be given.
    """
    ranks = (how.get("process_id"), *map(environment.get, _RANKS))
    port = how.get("coordinator_address", "").rpartition(":")[2]
    port = port or environment.get("JAX_COORDINATOR_PORT", "")
    if next((rank for rank in ranks if rank is not None), None) not in (0, "0") or not port:
        return
    everywhere = environment.get("JAX_COORDINATOR_BIND_ADDRESS", f"[::]:{port}")
    address = how.get("coordinator_bind_address", everywhere)
    try:
        _listen(*_split(address))
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"process 0 cannot listen at {address} ({_reason(error)}); give all processes another "
            f"port with {'--coordinator' if 'process_id' in how else 'JAX_COORDINATOR_PORT'}"
        ) from error


def _listen(host: str, port: int) -> None:
    """Raises OSError where nobody can."""
    if host != "::":
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    elif socket.has_dualstack_ipv6():
        socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
    else:
        socket.create_server(("", port)).close()


def _reason(error: Exception) -> str:
    """Without what Python adds to the system's words."""
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else getattr(error, "strerror", "") or str(error)


# --- devices -----------------------------------------------------------------------------------


def _open_devices() -> None:
    """Has JAX find its devices.

    Raises:
      ConfigError: JAX_PLATFORMS asks for others than there are.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = next((name for name in _ASKING if os.environ.get(name)), None)
        if not asked or _of_another_process(error):
            raise
        wrong = explain_backend(os.environ[asked], error)
        raise ConfigError(f"{asked}={os.environ[asked]}: {wrong}, or unset {asked}") from error


def _of_another_process(error: Exception) -> bool:
    """The devices of all are found together, and another may be gone."""
    gone = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED", "CANCELLED", "heartbeat", "GetKeyValue")
    return jax.distributed.is_initialized() and any(word in str(error) for word in gone)


def explain_backend(asked: str, error: Exception) -> str:
    """What is wrong with platforms that JAX cannot open, and what to do.

    Args:
      asked: names, with commas.
      error: JAX's.
    """
    missing = _missing()
    if "gpu" in asked.split(","):
        how = f" ({_EXTRAS['cuda']})" if "cuda" in missing else ""
        return f"JAX takes gpu for CUDA, ROCm and oneAPI at once; set JAX_PLATFORMS=cuda{how}"
    failed = re.search(r"(Unable to initialize backend '|Unknown backend )(\w*)", str(error))
    # Where there is no GPU JAX passes over cuda, and then finds itself without a backend.
    name = "cuda" if isinstance(error, AssertionError) else failed[2] if failed else asked
    if name in missing:
        return f"the wheel for {name} is not installed; {_EXTRAS[name]}"
    if isinstance(error, AssertionError):
        return "no NVIDIA GPU is there; see nvidia-smi -L and CUDA_VISIBLE_DEVICES"
    if "known backends" in str(error) or "Unknown backend" in str(error):
        extras = " and ".join(f"{key} ({how})" for key, how in _EXTRAS.items())
        return f"there is no backend {name!r}; there is cpu, and with its wheel {extras}"
    text = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0]
    return f"{name} cannot be used ({text}); mend that"


def _missing() -> set[str]:
    """The backends whose wheels are not installed."""
    plugins = metadata.entry_points(group="jax_plugins")
    there = {
        "cuda": any("cuda" in plugin.name for plugin in plugins),
        "tpu": bool(importlib.util.find_spec("libtpu"))
        or os.path.isfile(os.environ.get("TPU_LIBRARY_PATH", "")),
    }
    return {name for name, installed in there.items() if not installed}
