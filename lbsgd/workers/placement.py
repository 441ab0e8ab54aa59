"""Places k virtual workers on devices, lanes and accumulation steps.

A minibatch of kn examples belongs to k workers of n (Goyal et al. 2017, section 2). Each worker
gets a slot: accumulation step a (`lax.scan`), device d (`shard_map`) and lane l (`vmap`). Slots
are numbered step by step, `slot = (a * devices + d) * lanes + l`, and worker j sits in slot j.
Consecutive workers therefore run at the same time, which is what synced batch norm needs.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from lbsgd.system.errors import ConfigError
from lbsgd.system.text import pluralize

# The mesh axes that workers are spread over: groups of synced batch norm that span devices, and
# the devices within a group. Reductions over all devices name both.
DEVICE_AXES = ("group", "member")
# The vmap axis of the lanes that share batch-norm statistics.
LANE_AXIS = "lane"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Has a place for each of `workers` workers of `worker_batch_size` examples.

    Attributes:
      workers: k.
      worker_batch_size: n.
      devices: D.
      accumulation_steps: A, the steps of `lax.scan` in one update.
      lanes: L, workers that run side by side on one device.
      group_size: workers that share batch-norm statistics (1: none do).
      platform: of the devices: "cpu", "gpu" or "tpu"; "" asks JAX.

    A placement is numbers alone, and can be made for devices that are not here: `abstract_mesh`
    is enough to trace and lower a step. `mesh` and what is made of it are the devices themselves.
    """

    workers: int
    worker_batch_size: int
    devices: int
    accumulation_steps: int
    lanes: int
    group_size: int = 1
    platform: str = ""

    def __post_init__(self) -> None:
        """Fills in the platform."""
        object.__setattr__(self, "platform", self.platform or jax.default_backend())

    @property
    def batch_size(self) -> int:
        """Counts the examples of one minibatch, kn."""
        return self.workers * self.worker_batch_size

    @property
    def slots(self) -> int:
        """Counts the places for workers; those past the last worker are idle."""
        return self.accumulation_steps * self.devices * self.lanes

    @property
    def lanes_in_group(self) -> int:
        """Counts the lanes of one device that belong to the same group."""
        return min(self.lanes, self.group_size)

    @property
    def devices_in_group(self) -> int:
        """Counts the devices that a group spans."""
        # Without rest: `place` gives a device whole groups, or a group whole devices.
        return self.group_size // self.lanes_in_group

    @property
    def mesh_shape(self) -> tuple[int, int]:
        """Groups of synced batch norm that span devices, and the devices of one."""
        return self.devices // self.devices_in_group, self.devices_in_group

    @property
    def abstract_mesh(self) -> AbstractMesh:
        """D devices, whichever they are, as a mesh over `DEVICE_AXES`."""
        # Automatic: with explicit axes the shardings would be part of all types within the step.
        return AbstractMesh(self.mesh_shape, DEVICE_AXES, axis_types=(AxisType.Auto,) * 2)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The first D devices of JAX as a mesh over `DEVICE_AXES`."""
        # Not a field: placements of the same numbers are equal, whatever devices are here.
        devices = np.array(jax.devices()[: self.devices]).reshape(self.mesh_shape)
        return Mesh(devices, DEVICE_AXES, axis_types=(AxisType.Auto,) * 2)

    @property
    def replicated(self) -> NamedSharding:
        """Shards the state: the whole of it is on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_spec(self) -> PartitionSpec:
        """Partitions a batch `[A, D * L, n, ...]`: devices hold slots."""
        return PartitionSpec(None, DEVICE_AXES)

    @property
    def batch_sharding(self) -> NamedSharding:
        """Shards a batch, as `batch_spec` on `mesh`."""
        return NamedSharding(self.mesh, self.batch_spec)

    @property
    def stacked_sharding(self) -> NamedSharding:
        """Shards what is stacked of what lies as batches do, `[U, A, D * L, n, ...]`."""
        return NamedSharding(self.mesh, PartitionSpec(None, *self.batch_spec))

    def worker_of_slot(self) -> Int[np.ndarray, "steps slots"]:
        """Gives the worker whose rows each slot holds, `[A, D * L]`.

        Idle slots hold a copy of a real worker's rows, so they cannot make a NaN of their own.
        """
        # On the host: it chooses which rows are read, before there is anything on a device.
        # Dropping them (`sum_of_workers`) would not be enough: 0 comes back to them, which times a
        # slope that is not finite, such as that of a root at 0, is NaN.
        slots = np.arange(self.slots) % self.workers
        return slots.reshape(self.accumulation_steps, self.devices * self.lanes)

    def rows_of_slot(self) -> Int[np.ndarray, "steps slots n"]:
        """Gives the rows of the minibatch that each slot holds, `[A, D * L, n]`."""
        first_row = self.worker_of_slot()[..., None] * self.worker_batch_size
        return first_row + np.arange(self.worker_batch_size)

    def holds_worker(self, step: Int[Array, ""]) -> Bool[Array, " lanes"]:
        """Tells which lanes of this device hold a worker in an accumulation step.

        For use within `shard_map` over `DEVICE_AXES`.
        """
        return self._slot_of_lane(step) < self.workers

    def worker_of_lane(self, step: Int[Array, ""]) -> Int[Array, " lanes"]:
        """Gives the worker whose rows each lane of this device holds in an accumulation step.

        As `worker_of_slot`, within `shard_map` over `DEVICE_AXES`.
        """
        return self._slot_of_lane(step) % self.workers

    def _slot_of_lane(self, step: Int[Array, ""]) -> Int[Array, " lanes"]:
        # By the device's own index, so that one program serves all devices.
        first = (step * self.devices + lax.axis_index(DEVICE_AXES)) * self.lanes
        # int32 in 64-bit mode too, or strict promotion would refuse to add the two.
        return first + jnp.arange(self.lanes, dtype=jnp.int32)

    def local_slots(self) -> slice:
        """Finds the part of the slot axis `D * L` that this process's devices hold.

        Raises:
          ConfigError: it is not in one piece.
        """
        process = jax.process_index()
        mine = [i for i, d in enumerate(self.mesh.devices.flat) if d.process_index == process]
        if not mine:
            # A run on some of the devices may leave a process without any.
            return slice(0, 0)
        # Only a slice of the batch is read by a process, so that none reads what others train on.
        if mine != list(range(mine[0], mine[-1] + 1)):
            raise ConfigError("the devices of one process must be neighbours in the mesh")
        return slice(mine[0] * self.lanes, (mine[-1] + 1) * self.lanes)

    def describe(self) -> str:
        """Describes it in a line in the paper's words: "k=8 workers of n=32 = ..."."""
        idle = self.slots - self.workers
        lie = f"{pluralize(self.workers, 'worker')} of n={self.worker_batch_size:,}"
        on = " x ".join(
            pluralize(number, noun)
            for number, noun in (
                (self.devices, "device"),
                (self.lanes, "lane"),
                (self.accumulation_steps, "accumulation step"),
            )
        )
        return f"k={lie} = {on}" + (f" less {pluralize(idle, 'idle slot')}" if idle else "")


def count_workers(batch_size: int, worker_batch_size: int) -> int:
    """Counts the workers, k = kn / n.

    Raises:
      ConfigError: n does not divide kn.
    """
    workers, rest = divmod(batch_size, worker_batch_size)
    if rest or not workers:
        lower, upper = workers * worker_batch_size, (workers + 1) * worker_batch_size
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        raise ConfigError(
            f"batch_size={batch_size} is not a multiple of worker_batch_size={worker_batch_size} "
            f"({batch_size} = {workers} x {worker_batch_size} + {rest}); take {nearest}"
        )
    return workers


def place(
    batch_size: int,
    worker_batch_size: int,
    *,
    devices: int,
    accumulation_steps: int = 1,
    group_size: int = 1,
    platform: str = "",
) -> Placement:
    """Places the workers on as few lanes as the accumulation steps allow.

    Accumulation steps that would hold no worker at all are left out, so the placement may have
    fewer than were asked for.

    Raises:
      ConfigError: n does not divide kn, or groups of `group_size` workers cannot always run in
        the same accumulation step.
    """
    workers = count_workers(batch_size, worker_batch_size)
    lanes = math.ceil(workers / (devices * accumulation_steps))
    if workers % group_size:
        raise ConfigError(
            f"batch_norm.synced_workers={group_size} does not divide the "
            f"k={pluralize(workers, 'worker')}"
        )
    # Again, for steps that rounding up left empty are not to be run.
    steps = math.ceil(workers / (devices * lanes))
    lanes = _lanes_of_whole_groups(lanes, devices, group_size)
    steps_of_groups = math.ceil(workers / (devices * lanes))
    # Fewer steps are not taken unasked: they hold more lanes at a time, which may not fit.
    if steps_of_groups < steps:
        raise ConfigError(
            f"groups of batch_norm.synced_workers={group_size} do not fit in accumulation_steps="
            f"{accumulation_steps} on {pluralize(devices, 'device')}: a group must run "
            f"in one step; set accumulation_steps={steps_of_groups} (k={workers})"
        )
    return Placement(workers, worker_batch_size, devices, steps, lanes, group_size, platform)


def _lanes_of_whole_groups(least: int, devices: int, group_size: int) -> int:
    """Finds the fewest lanes that groups fill, or of which a group fills those of a few devices."""
    # d divides the devices, so that they are made up of whole groups: a row of the mesh each.
    spans = (d for d in range(1, devices + 1) if devices % d == 0 and group_size % d == 0)
    spread = [group_size // d for d in spans if group_size // d >= least]
    return min(spread) if spread else math.ceil(least / group_size) * group_size
