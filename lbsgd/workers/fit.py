"""Chooses gradient accumulation: the fewest steps whose compiled memory fits the device.

The memory of the compiled step is nearly affine in the lanes, and its fixed part at least the state
and a gradient. So one compilation, with the fewest lanes, bounds it for any number of them, and the
placement chosen by that bound is compiled, as it has to be for training, and checked.
"""

import contextlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from lbsgd.system.errors import ConfigError
from lbsgd.system.files import replace_file
from lbsgd.system.processes import json_from_process_0
from lbsgd.workers.placement import Placement

# Bytes of what the compiler has no memory for.
TOO_MANY = 2**62


def memory_of(compiled: Any, batch_bytes: int) -> int:
    """Counts the bytes of a compiled step on one device, besides its minibatch of `batch_bytes`."""
    analysis = compiled.memory_analysis()
    # Of the state, which is donated, the output takes the argument's place: counted once.
    # The minibatch is counted elsewhere, with those that wait and those that are loaded ahead.
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
        - batch_bytes
    )


def candidates(place: Callable[[int], Placement], most_lanes: int) -> Iterator[Placement]:
    """Yields placements with 1, 2, ... accumulation steps, each number of lanes once.

    Args:
      place: makes the placement with so many steps, or raises ConfigError.
      most_lanes: lanes of a device that has all its workers side by side.
    """
    seen: set[int] = set()
    for lanes in _quotients(most_lanes):
        try:
            placement = place(math.ceil(most_lanes / lanes))
        except ConfigError:
            # So many steps would part a group of synced batch norm; another number may not.
            continue
        # Lanes are rounded up to whole groups, so several numbers of steps may have the same.
        if placement.lanes not in seen:
            seen.add(placement.lanes)
            yield placement


def _quotients(number: int) -> Iterator[int]:
    """Yields ceil(number / 1), ceil(number / 2), ..., 1, each once: at most 2 sqrt(number)."""
    quotient = number
    while quotient > 1:
        yield quotient
        quotient = -(-number // -(-number // (quotient - 1)))
    yield 1


class StepMemory:
    """Knows the bytes that a run's step needs besides its minibatch, by the number of lanes.

    What was measured is remembered in a file, if there is one. All processes know what process 0
    has read there, and so compile the same.
    """

    def __init__(
        self,
        measure: Callable[[Placement], int],
        fixed: int,
        cache: pathlib.Path | None = None,
        key: str = "",
    ) -> None:
        """Reads what is known.

        Args:
          measure: compiles the step for a placement and says how many bytes a device needs;
            `TOO_MANY` where there is not even the memory to compile it.
          fixed: no more than what any number of lanes needs.
          cache: a JSON file of earlier measurements by `key`.
        """
        self._measure, self._fixed, self._cache, self._key = measure, fixed, cache, key
        known = json_from_process_0(_read(cache).get(key))
        # A cache may be damaged. By `type`, since true in JSON is an int to `isinstance`.
        self._known = {
            name: size
            for name, size in (known if isinstance(known, dict) else {}).items()
            if re.fullmatch(r"[1-9][0-9]{0,9}( alone)?", name) and type(size) is int and size > 0
        }

    def measured(self, placement: Placement) -> int:
        """Measures the bytes by compiling the step, unless that was done before."""
        name = _name(placement)
        if name not in self._known:
            self._known[name] = self._measure(placement)
            # At once, for what is compiled next may end the process for want of memory.
            self._remember()
        return self._known[name]

    def bound(self, placement: Placement) -> int:
        """Bounds the bytes of more lanes than were measured, if affine in lanes or convex."""
        if _name(placement) in self._known:
            return self._known[_name(placement)]
        lanes = placement.lanes
        looped = {int(name): n for name, n in self._known.items() if name.isdecimal()}
        # From the nearest, for what is fixed beyond `fixed` counts least there.
        # There is one: `choose` measures the fewest lanes first.
        near = max(n for n in looped if n < lanes)
        bound = self._fixed + math.ceil((looped[near] - self._fixed) * lanes / near)
        more = [n for n, size in looped.items() if n > lanes and size < TOO_MANY]
        if more:  # which were too many, or would have been taken
            slope = (looped[min(more)] - looped[near]) / (min(more) - near)
            bound = max(bound, looped[near] + math.ceil(slope * (lanes - near)))
        return bound

    def _remember(self) -> None:
        """Writes to the cache what was measured; one process does."""
        if self._cache is None or jax.process_index():
            return
        with contextlib.suppress(OSError):  # a cache is no reason to stop
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            # Read again, for another run may have written there in the meantime.
            text = json.dumps({**_read(self._cache), self._key: self._known}, indent=1)
            replace_file(self._cache, text + "\n")


def _name(placement: Placement) -> str:
    """Names the step of a placement; one without a loop needs no sum of gradients."""
    return f"{placement.lanes}{'' if placement.accumulation_steps > 1 else ' alone'}"


def choose(
    place: Callable[[int], Placement],
    workers_per_device: int,
    memory: StepMemory,
    batches_bytes: Callable[[Placement], int],
    limit: int,
) -> Placement:
    """Chooses the fewest accumulation steps whose memory is known to be within `limit`.

    It costs one compilation besides that of the placement which is chosen, unless memory grows
    faster than the lanes; none where the fewest lanes are chosen, or all was measured before.
    Process 0 decides for all.

    Args:
      place: makes the placement with so many accumulation steps, or raises ConfigError.
      workers_per_device: ceil(k / D).
      batches_bytes: of all the minibatches that one device holds at a time.
      limit: bytes.

    Raises:
      ConfigError: not even the fewest lanes fit.
    """
    options = list(candidates(place, workers_per_device))  # from most lanes to fewest
    *others, fewest = options
    # The fewest first: the bounds of all others are made from it.
    needed = memory.measured(fewest) + batches_bytes(fewest)
    chosen = fewest
    for placement in others:
        batches = batches_bytes(placement)
        # Some that would fit may be passed by: only compiling each could tell.
        if memory.bound(placement) + batches > limit:
            continue
        if memory.measured(placement) + batches <= limit:
            chosen = placement
            break
    # 0 for none: a process that raised here would leave the others waiting for the broadcast.
    steps = chosen.accumulation_steps if chosen is not fewest or needed <= limit else 0
    # Compilers on several hosts may differ by a byte, and all must run the same program.
    if jax.process_count() > 1:
        steps = int(multihost_utils.broadcast_one_to_all(steps))
    if not steps:
        size = shown_bytes(needed) if needed < TOO_MANY else "more than could be compiled"
        raise ConfigError(
            f"the fewest workers that a device can take at once, {fewest.lanes}, need {size}, it "
            f"has {shown_bytes(limit)}; lower worker_batch_size, the size of images or of the "
            "network, or set device_memory_gib if it has more"
        )
    return place(steps)


def first_that_fits(
    place: Callable[[int], Placement],
    workers_per_device: int,
    needed: Callable[[Placement], int],
    limit: int,
) -> Placement:
    """Finds the placement with the fewest accumulation steps that needs no more than `limit` bytes.

    Args:
      place, workers_per_device: as in `choose`.
      needed: bytes of a placement.

    Returns:
      that, or the placement with the fewest lanes if none fits.
    """
    options = list(candidates(place, workers_per_device))
    return next((p for p in options if needed(p) <= limit), options[-1])


def shown_bytes(size: int) -> str:
    """Writes a number of bytes in GiB or MiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"


def _read(cache: pathlib.Path | None) -> dict[str, Any]:
    """Reads earlier measurements by key; none from a file that is missing or damaged."""
    try:
        known = json.loads(cache.read_text()) if cache else {}
    # Bytes that are not text are a ValueError too, and brackets without end a RecursionError.
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
