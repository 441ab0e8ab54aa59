"""The machine: devices, precision and processes, once they have started."""

import contextlib
import re
from collections.abc import Iterator

import jax
import ml_collections

from lbsgd.system.errors import ConfigError
from lbsgd.system.limits import memory

# Updates that may wait on the devices. More would not be faster, and many more can deadlock
# collectives between more CPU devices than cores.
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
    """The number of devices to use, `asked` or all for 0.

    Raises:
      ConfigError: there are fewer, or a part of several processes' devices was asked for.
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
    """Bytes of memory that one device has for the step.

    Devices that are the CPU share half of the machine's memory, or of what its control group
    allows: the other half is for Python, the images and other programs. Those of all processes
    count, which may be on one machine.

    Raises:
      ConfigError: neither the config nor the device tells.
    """
    if config.device_memory_gib:
        return int(config.device_memory_gib * 2**30)
    if jax.default_backend() == "cpu":
        return memory() // 2 // jax.device_count()
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        raise ConfigError(
            f"accumulation_steps=0 needs the memory of a device, which {jax.default_backend()} "
            "does not tell; set device_memory_gib, or accumulation_steps to a number"
        )
    return int(stats["bytes_limit"])


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine had not the memory that was asked for."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


@contextlib.contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Says what to do where a device or the machine runs out of memory within.

    Args:
      what: is being done, as the beginning of a sentence.
      remedy: as its end.

    Raises:
      ConfigError: it has run out.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = re.search(r"allocating (\d+) bytes", str(error))
        size = f" ({int(asked[1]) / 2**30:.2f} GiB were asked for at once)" if asked else ""
        raise ConfigError(f"{what} needs more memory than there is{size}; {remedy}") from error
