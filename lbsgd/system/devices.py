"""Devices of a run: their number, memory and precision, and running out of memory."""

import contextlib
import re
from collections.abc import Iterator

import jax
import ml_collections

from lbsgd.system.errors import ConfigError
from lbsgd.system.limits import memory_limit

# Updates that may be queued on the devices. More would not be faster, and many more can deadlock
# collectives when there are more CPU devices than cores.
IN_FLIGHT = 4


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Has JAX compute with 64-bit types where a config's `dtype` is "float64", and only there.

    It holds for this thread and ends with the context, so that runs which share a process compute
    what they would alone.
    """
    with jax.enable_x64(dtype == "float64"):
        yield


def count_devices(asked: int) -> int:
    """Returns the number of devices to use: `asked`, or all of them for 0.

    Raises:
      ConfigError: there are fewer, or several processes were asked to use only some of theirs.
    """
    there = jax.device_count()
    if asked > there:
        raise ConfigError(
            f"devices={asked}, but there {'is' if there == 1 else 'are'} only {there} "
            f"({jax.default_backend()}); set devices={there}, or 0 for all"
        )
    if asked not in (0, there) and jax.process_count() > 1:
        raise ConfigError(f"with several processes all {there} devices are used; set devices=0")
    return asked or there


def device_memory(config: ml_collections.ConfigDict) -> int:
    """Returns the memory of one device that the step may use, in bytes.

    CPU devices share half of the machine's memory, or of what its control group allows: the other
    half is for Python, the images and other programs. The devices of all processes are counted,
    since all processes may run on one machine.

    Raises:
      ConfigError: neither the config nor the device says how much memory there is.
    """
    if config.device_memory_gib:
        return int(config.device_memory_gib * 2**30)
    if jax.default_backend() == "cpu":
        return memory_limit() // 2 // jax.device_count()
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        raise ConfigError(
            f"accumulation_steps=0 needs the memory of a device, which {jax.default_backend()} "
            "does not tell; set device_memory_gib, or accumulation_steps to a number"
        )
    return int(stats["bytes_limit"])


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error means that a device or the machine ran out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


@contextlib.contextmanager
def explain_out_of_memory(what: str, remedy: str) -> Iterator[None]:
    """Turns running out of memory, on a device or the machine, into a ConfigError with a remedy.

    Args:
      what: the activity within this context; the message starts with it.
      remedy: what the user can do; the message ends with it.

    Raises:
      ConfigError: the code within this context ran out of memory.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = re.search(r"allocating (\d+) bytes", str(error))
        size = f" ({int(asked[1]) / 2**30:.2f} GiB were asked for at once)" if asked else ""
        raise ConfigError(f"{what} needs more memory than there is{size}; {remedy}") from error
