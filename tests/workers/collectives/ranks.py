"""An all-reduce on some of the devices, and the messages in its compiled program."""

import functools
import math
import re
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from lbsgd.workers.collectives.allreduce import allreduce
from lbsgd.workers.collectives.topology import square_grid
from lbsgd.workers.placement import DEVICE_AXES


def on_devices(ranks, **options):
    """The all-reduce of a tree of arrays `[ranks, ...]`, a row on each device; mesh and spec."""
    devices = np.array(jax.devices()[:ranks]).reshape(square_grid(ranks))  # two axes, as lbsgd's
    mesh = Mesh(devices, DEVICE_AXES, axis_types=(AxisType.Auto,) * 2)

    def on_device(tree):
        own = jax.tree.map(lambda x: x[0], tree)
        return jax.tree.map(lambda x: x[None], allreduce(own, DEVICE_AXES, **options))

    spec = PartitionSpec(DEVICE_AXES)
    f = jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return f, mesh, spec


def compiled(ranks, tree, **options):
    """The program for a tree of arrays `[ranks, ...]`; its results are of the same shapes."""
    return jax.jit(on_devices(ranks, **options)[0]).lower(tree).compile()


def reduced(ranks, tree, **options):
    """What each device has after it: the tree again, as numpy arrays `[ranks, ...]`."""
    return jax.tree.map(np.asarray, compiled(ranks, tree, **options)(tree))


class Message(NamedTuple):
    """A collective-permute: who sends to whom, the bytes of each, and messages it waits for."""

    pairs: tuple[tuple[int, int], ...]
    bytes: int
    depth: int


def messages(text: str) -> list[Message]:
    """Those of a compiled program, of which all must be in its main computation."""
    entry = text[text.index("\nENTRY ") :]
    assert text.count(" collective-permute") == entry.count(" collective-permute")
    depth: dict[str, int] = {}
    found = []
    for line in entry.splitlines()[1:]:
        match = re.match(r"\s*(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z-]+)\((.*)", line)
        if not match:
            continue
        name, shape, operation, rest = match.groups()
        waits = max((depth.get(x, 0) for x in re.findall(r"%[\w.-]+", rest)), default=0)
        depth[name] = waits
        if operation in ("collective-permute", "collective-permute-start"):
            pairs = re.search(r"source_target_pairs=([\d,{}]*)", rest).group(1)
            pairs = tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs))
            found.append(Message(pairs, shape_bytes(shape), waits))
            depth[name] += 1
    return found


def shape_bytes(shape: str) -> int:
    """Of one shape or a tuple of them: "(f32[2,3]{1,0}, u16[4]{0})" -> 32."""
    shapes = re.findall(r"\b[a-z]+(\d+)\[([\d,]*)\]", shape)
    assert shapes
    return sum(
        int(bits) // 8 * math.prod(int(n) for n in dims.split(",") if n) for bits, dims in shapes
    )


def bytes_sent(found: list[Message], ranks: int) -> list[int]:
    """By each rank, to others."""
    sent = [0] * ranks
    for message in found:
        for source, target in message.pairs:
            sent[source] += message.bytes * (source != target)
    return sent


def rounds(found: list[Message], blocks: list[range]) -> int:
    """Messages one after another; those between two blocks in one direction are of one round."""

    @functools.cache
    def block(rank):
        return next(i for i, ranks in enumerate(blocks) if rank in ranks)

    within, between = 0, set()
    for message in found:
        ways = {(block(a), block(b)) for a, b in message.pairs}
        if all(a == b for a, b in ways):
            within += 1
        else:
            (way,) = ways
            between.add(way)
    return within + len(between)
