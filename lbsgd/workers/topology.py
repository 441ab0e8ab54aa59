"""The machine that a run is planned for: how many devices, in how many processes, how large."""

import dataclasses

import jax
import ml_collections

from lbsgd.system.devices import count_devices, device_memory
from lbsgd.system.errors import ConfigError
from lbsgd.system.processes import json_from_process_0
from lbsgd.workers.collectives.allreduce import BUCKET_BYTES
from lbsgd.workers.collectives.topology import host_grid

# Of XLA's own all-reduce on TPUs: small ones begin early, and cost little where links answer within
# a microsecond or so.
TPU_BUCKET_BYTES = 2 * 2**20


@dataclasses.dataclass(frozen=True)
class Topology:
    """Holds what a plan knows of the machine.

    Attributes:
      devices: D.
      processes: over which the devices are spread, as many in each.
      platform: what the devices are: "cpu", "gpu" or "tpu".
      device_memory: bytes of one device; 0 where nobody asks.
      hosts: (devices of a process, processes), as the hierarchical all-reduce takes them.
      asked: whether this machine said so, or the config alone.
    """

    devices: int
    processes: int = 1
    platform: str = "gpu"
    device_memory: int = 0
    hosts: tuple[int, int] = (0, 0)
    asked: bool = True

    @classmethod
    def here(cls, config: ml_collections.ConfigDict) -> "Topology":
        """Asks JAX for the devices of this machine that a config names.

        Raises:
          ConfigError: there are fewer; their memory is needed and they do not tell; processes hold
            different numbers of devices and the all-reduce wants to know their hosts.
        """
        devices, memory, hosts = count_devices(config.devices), 0, (0, 0)
        if not config.accumulation_steps:
            # Else two processes might choose differently.
            memory = json_from_process_0(device_memory(config))
        # Only for the one that needs it: processes may hold different numbers of devices otherwise.
        if config.allreduce.algorithm == "hierarchical" and tuple(config.allreduce.grid) == (0, 0):
            hosts = host_grid(jax.devices()[:devices])
        return cls(devices, jax.process_count(), jax.default_backend(), memory, hosts)

    @classmethod
    def planned(
        cls, config: ml_collections.ConfigDict, processes: int | None = None
    ) -> "Topology | None":
        """Takes the machine from the config alone, without asking for a device.

        Args:
          processes: over which the devices are spread; None if that is not known.

        Returns:
          None if that leaves open what only the machine can tell: `devices`, with
          accumulation_steps=0 `device_memory_gib`, and for the hierarchical all-reduce its hosts.

        Raises:
          ConfigError: the devices cannot be spread evenly over the processes.
        """
        if not config.devices or not (config.accumulation_steps or config.device_memory_gib):
            return None
        hierarchical = config.allreduce.algorithm == "hierarchical"
        if hierarchical and tuple(config.allreduce.grid) == (0, 0) and processes is None:
            return None
        processes = processes or 1
        if config.devices % processes:
            raise ConfigError(
                f"devices={config.devices} cannot be spread evenly over {processes} processes"
            )
        memory = int(config.device_memory_gib * 2**30)
        hosts = (config.devices // processes, processes)
        # GPUs by guess: a platform changes forms, such as those of loops (`step.loops`), and no
        # number beyond rounding.
        return cls(config.devices, processes, "gpu", memory, hosts, asked=False)

    def grid(self, allreduce: ml_collections.ConfigDict) -> tuple[int, int]:
        """Returns the grid of an all-reduce: the config's `allreduce.grid`, or that of the hosts.

        Returns:
          (0, 0) where the algorithm finds its own.
        """
        x, y = allreduce.grid
        open_ = allreduce.algorithm == "hierarchical" and (x, y) == (0, 0)
        return self.hosts if open_ else (x, y)

    def bucket_mib(self, allreduce: ml_collections.ConfigDict) -> float:
        """Returns the size of a bucket: the config's `allreduce.bucket_mib`, or for 0 a default."""
        plain = allreduce.algorithm == "psum" and allreduce.dtype == "own"
        default = TPU_BUCKET_BYTES if plain and self.platform == "tpu" else BUCKET_BYTES
        return float(allreduce.bucket_mib) or default / 2**20
