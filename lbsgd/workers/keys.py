"""Keys of the workers: how large they are, where they are placed, and how they exchange."""

from lbsgd.config.keys import Key, Keys, Must, whole
from lbsgd.workers.collectives.names import ALGORITHMS, DTYPES

_PLACEMENT: Keys = {
    "batch_size": Key(
        256,
        "The batch size kn: the examples of one update, over all workers.",
        unit="examples",
        positive=True,
        most=10**9,
    ),
    "worker_batch_size": Key(
        32,
        "The batch size n of one worker: its batch-norm statistics are over these examples.",
        unit="examples",
        positive=True,
        most=10**9,
    ),
    "devices": Key(0, "How many devices to use; 0 for all there are.", machine=True),
    "accumulation_steps": Key(
        1,
        "Gradient accumulation: in how many steps a device goes through its workers; 0 for the "
        "fewest that fit in its memory.",
        machine=True,
    ),
    "device_memory_gib": Key(
        0.0,
        "The memory of a device; 0 asks the device (of a CPU, half of the machine's memory).",
        unit="GiB",
        machine=True,
        used_with={"accumulation_steps": (0,)},
    ),
}

_ALLREDUCE: Keys = {
    "allreduce.algorithm": Key(
        "psum",
        "The all-reduce: XLA's own psum, or one of docs/collectives.md.",
        choices=ALGORITHMS,
        machine=True,
    ),
    # Not of the machine, as its neighbours are: rounding to 16 bits changes the run.
    "allreduce.dtype": Key(
        "own",
        "The type that gradients are sent in: their own, or one of 16 bits, summed in float32.",
        choices=("own", *DTYPES),
    ),
    "allreduce.bucket_mib": Key(
        0.0,
        "The size of a bucket: gradients that are reduced together. 0 for 32, or 2 where it is "
        "XLA's own psum that reduces them on TPUs.",
        unit="MiB",
        most=10**6,
        machine=True,
    ),
    "allreduce.grid": Key(
        (0, 0),
        "The grid of devices: for torus_2d (devices in a row, rows), for hierarchical (devices of "
        "a host, hosts); (0, 0) for as square as possible, and for the hosts that there are.",
        most=10**6,
        check=Must(
            "be two whole numbers, or (0, 0)",
            lambda grid: len(grid) == 2 and whole(grid) and (min(grid) >= 1 or not any(grid)),
        ),
        machine=True,
        used_with={"allreduce.algorithm": ("torus_2d", "hierarchical")},
    ),
}

KEYS: Keys = {**_PLACEMENT, **_ALLREDUCE}
