"""The start of a process of a data-parallel run: it joins the others and opens its devices."""

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

from lbsgd.system.cache import keep_for_one_process
from lbsgd.system.errors import ConfigError

# A process that waits longer than this for the others says so.
WAITING_SECONDS = 10.0
# Time between two attempts to reach another process, and limit of each attempt.
ASK_SECONDS = 1.0
# The type of the first frame that an HTTP/2 server sends, after three bytes of length.
_SETTINGS = b"\x04"

# Variables that the cluster managers that JAX knows, besides Kubernetes, set for a run of several
# processes.
_CLUSTER_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "OMPI_MCA_orte_hnp_uri",
    "SLURM_STEP_NODELIST",
    "TPU_PROCESS_ADDRESSES",
    "TPU_WORKER_HOSTNAMES",
)
_RANKS = ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
# Variables by which a user chooses JAX's backends.
_BACKEND_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
# How to install the backends that are separate packages.
_EXTRAS = {"cuda": "pip install 'lbsgd[cuda]'", "tpu": "pip install 'lbsgd[tpu]'"}


def start_processes(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    limits: ml_collections.ConfigDict,
) -> None:
    """Joins this process to the others of the run (`jax.distributed`), if there are any.

    If none of the first three arguments is given, JAX detects SLURM, Open MPI, Kubernetes and Cloud
    TPU.

    Args:
      coordinator: host:port at which process 0 listens; for a loopback address, only on loopback.
      num_processes: how many processes the run has.
      process_id: the number of this process, from 0 on.
      limits: the config's `runtime`.

    Raises:
      ConfigError: the arguments are wrong, the other processes did not come, or the devices that
        were asked for do not exist.
    """
    given = (coordinator, num_processes, process_id)
    alone = all(x is None for x in given) and is_single(os.environ)
    if num_processes != 1 and not alone:
        _join(coordinator, num_processes, process_id, limits)
    _open_devices()
    if jax.process_count() > 1:
        keep_for_one_process()


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
        _await_host(_split_address(how["coordinator_address"])[0], who, limits.start_seconds)
        if process_id:
            _await_coordinator(how["coordinator_address"], limits.start_seconds)
    _check_listens(how, os.environ)
    with (
        _announce_wait(f"{who} waits for the other processes", "them", limits.start_seconds),
        _without_kubernetes_advice(),
    ):
        _initialize(how)


def _initialize(how: Mapping[str, Any]) -> None:
    try:
        jax.distributed.initialize(**how)
    except jax.errors.JaxRuntimeError:
        raise  # an error of the connection, not of the user: another start may succeed
    except Exception as error:  # from JAX's detection of clusters, and from what that calls
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if "coordinator_address should be defined" not in reason:  # there is no cluster
            raise ConfigError(
                f"the processes did not find each other: {reason}; --coordinator, "
                "--num_processes and --process_id tell them, --num_processes=1 that it is alone"
            ) from error
        _warn_lone_pod(os.environ)


def is_single(environment: Mapping[str, str]) -> bool:
    """Returns whether a cluster manager started this process as the only one of its run."""
    if "1" in (environment.get("SLURM_NTASKS"), environment.get("OMPI_COMM_WORLD_SIZE")):
        return True
    # Every pod has Kubernetes' variables, but only pods of an indexed Job form one run.
    pod = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" not in environment
    return pod and not any(name in environment for name in _CLUSTER_VARIABLES)


def _warn_lone_pod(environment: Mapping[str, str]) -> None:
    """Warns if this pod of an indexed Job trains by itself, as it would without `kubernetes`."""
    index = environment.get("JOB_COMPLETION_INDEX", "0")
    if index != "0":
        print(
            f"lbsgd: pod {index} of an indexed Job trains alone; for one run of all pods give "
            "--coordinator, --num_processes and --process_id, or pip install kubernetes",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _without_kubernetes_advice() -> Iterator[None]:
    """Suppresses JAX's advice to install kubernetes, which every process in a pod would print."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Kubernetes environment detected", UserWarning)
        yield


@contextlib.contextmanager
def _announce_wait(what: str, them: str, seconds: float) -> Iterator[None]:
    """Prints what this process waits for, if the code within this context takes long."""
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


# --- the coordinator's address: a wrong one would crash JAX, or end the process from C++ --------


def _split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _await_host(host: str, who: str, seconds: float) -> None:
    """Waits until the name of a host is known: that of a pod is known once the pod exists."""
    pod = "KUBERNETES_SERVICE_HOST" in os.environ
    end = time.monotonic() + (seconds if pod else min(seconds, WAITING_SECONDS))
    text = f"{who} waits for a host called {host!r}, which is not known"
    with _announce_wait(text, "it", seconds) if pod else contextlib.nullcontext():
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
    """Waits while another program answers at the address of process 0, which may still be starting.

    If nothing answers, JAX itself waits.

    Raises:
      ConfigError: it still answers after `seconds`.
    """
    end = time.monotonic() + seconds
    while _is_foreign(*_split_address(address)):
        if time.monotonic() + ASK_SECONDS > end:
            raise ConfigError(
                f"what listens at {address} is not process 0 of a run; give all processes another "
                "port with --coordinator"
            )
        time.sleep(ASK_SECONDS)


def _is_foreign(host: str, port: int) -> bool:
    """Returns whether a program listens there that is not a gRPC server, which sends settings."""
    try:
        connection = socket.create_connection((host, port), ASK_SECONDS)
    except OSError:
        return False
    with connection, contextlib.suppress(OSError):
        return connection.recv(4, socket.MSG_WAITALL)[3:] != _SETTINGS
    return True


def _check_listens(how: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Checks that process 0 can listen at its address, as far as that is known beforehand.

    Args:
      how: the arguments for `jax.distributed.initialize`.
      environment: of this process.
    """
    ranks = (how.get("process_id"), *map(environment.get, _RANKS))
    port = how.get("coordinator_address", "").rpartition(":")[2]
    port = port or environment.get("JAX_COORDINATOR_PORT", "")
    if next((rank for rank in ranks if rank is not None), None) not in (0, "0") or not port:
        return
    everywhere = environment.get("JAX_COORDINATOR_BIND_ADDRESS", f"[::]:{port}")
    address = how.get("coordinator_bind_address", everywhere)
    try:
        _listen(*_split_address(address))
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"process 0 cannot listen at {address} ({_reason(error)}); give all processes another "
            f"port with {'--coordinator' if 'process_id' in how else 'JAX_COORDINATOR_PORT'}"
        ) from error


def _listen(host: str, port: int) -> None:
    """Listens for a moment; raises OSError if that is impossible."""
    if host != "::":
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    elif socket.has_dualstack_ipv6():
        socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
    else:
        socket.create_server(("", port)).close()


def _reason(error: Exception) -> str:
    """Describes an error in the system's words, without what Python adds."""
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else getattr(error, "strerror", "") or str(error)


# --- devices -----------------------------------------------------------------------------------


def _open_devices() -> None:
    """Makes JAX find its devices.

    Raises:
      ConfigError: JAX_PLATFORMS asks for devices that do not exist.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = next((name for name in _BACKEND_VARIABLES if os.environ.get(name)), None)
        if not asked or _is_other_process_error(error):
            raise
        wrong = explain_backend(os.environ[asked], error)
        raise ConfigError(f"{asked}={os.environ[asked]}: {wrong}, or unset {asked}") from error


def _is_other_process_error(error: Exception) -> bool:
    """Returns whether finding devices, which all processes do together, failed in another one."""
    gone = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED", "CANCELLED", "heartbeat", "GetKeyValue")
    return jax.distributed.is_initialized() and any(word in str(error) for word in gone)


def explain_backend(asked: str, error: Exception) -> str:
    """Describes why JAX cannot open platforms, and what to do.

    Args:
      asked: names of platforms, separated by commas.
      error: raised by JAX.
    """
    missing = _missing_backends()
    if "gpu" in asked.split(","):
        how = f" ({_EXTRAS['cuda']})" if "cuda" in missing else ""
        return f"JAX takes gpu for CUDA, ROCm and oneAPI at once; set JAX_PLATFORMS=cuda{how}"
    failed = re.search(r"(Unable to initialize backend '|Unknown backend )(\w*)", str(error))
    # If there is no GPU, JAX skips cuda and then fails an assertion because no backend is left.
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


def _missing_backends() -> set[str]:
    """Returns the backends whose wheels are not installed."""
    plugins = metadata.entry_points(group="jax_plugins")
    there = {
        "cuda": any("cuda" in plugin.name for plugin in plugins),
        "tpu": bool(importlib.util.find_spec("libtpu"))
        or os.path.isfile(os.environ.get("TPU_LIBRARY_PATH", "")),
    }
    return {name for name, installed in there.items() if not installed}
