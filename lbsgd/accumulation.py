"""Automatic accumulation: the fewest steps whose compiled memory fits the device.

The memory of the compiled step is nearly affine in the lanes, so two small compilations predict
it for any number of them; the placement chosen is compiled and checked before it is used.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from lbsgd.data.pipeline import AHEAD
from lbsgd.errors import ConfigError
from lbsgd.runtime import IN_FLIGHT
from lbsgd.workers import Placement

# Besides the step's own: those of the updates that wait for it, and those that are loaded ahead.
BATCHES_WAITING = IN_FLIGHT + AHEAD


def memory_of(compiled: Any, batch_bytes: int) -> int:
    """Bytes that the compiled step needs on one device, batches that wait included."""
    analysis = compiled.memory_analysis()
    step = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return int(step + BATCHES_WAITING * batch_bytes)


def candidates(place: Callable[[int], Placement], most_lanes: int) -> Iterator[Placement]:
    """Placements with 1, 2, ... accumulation steps, each number of lanes once.

    Args:
      place: makes the placement with so many steps, or raises ConfigError.
      most_lanes: lanes of a device that has all its workers side by side.
    """
    seen: set[int] = set()
    for lanes in _quotients(most_lanes):
        try:
            placement = place(math.ceil(most_lanes / lanes))
        except ConfigError:
            continue
        if placement.lanes not in seen:
            seen.add(placement.lanes)
            yield placement


def _quotients(number: int) -> Iterator[int]:
    """ceil(number / 1), ceil(number / 2), ... down to 1, each once: at most 2 sqrt(number)."""
    quotient = number
    while quotient > 1:
        yield quotient
        quotient = -(-number // -(-number // (quotient - 1)))
    yield 1


def choose(
    place: Callable[[int], Placement],
    workers_per_device: int,
    memory: Callable[[Placement], int],
    limit: int,
    cache: pathlib.Path | None = None,
    cache_key: str = "",
) -> Placement:
    """The placement with the fewest accumulation steps whose memory is at most `limit`.

    Process 0 decides for all.

    Args:
      place: makes the placement with so many accumulation steps, or raises ConfigError.
      workers_per_device: ceil(k / D).
      memory: compiles the step for a placement and says how many bytes a device needs.
      limit: bytes.
      cache: a JSON file of earlier choices by `cache_key`.

    Raises:
      ConfigError: not even one lane fits.
    """
    known = _read(cache)
    key = f"{cache_key}/{limit}"
    steps = known.get(key)
    if not isinstance(steps, int) or steps < 1:  # a cache may be damaged
        steps = _search(place, workers_per_device, memory, limit)
    steps = int(multihost_utils.broadcast_one_to_all(steps)) if jax.process_count() > 1 else steps
    if cache and known.get(key) != steps and jax.process_index() == 0:
        with contextlib.suppress(OSError):  # a cache is no reason to stop
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps({**known, key: steps}, indent=1) + "\n")
    return place(steps)


def _search(
    place: Callable[[int], Placement],
    workers_per_device: int,
    memory: Callable[[Placement], int],
    limit: int,
) -> int:
    options = list(candidates(place, workers_per_device))  # from most lanes to fewest
    measured = {p.lanes: memory(p) for p in options[-2:]}
    predict = _line(measured)
    for placement in options:
        if predict(placement.lanes) > limit:
            continue
        if placement.lanes not in measured:
            measured[placement.lanes] = memory(placement)
        if measured[placement.lanes] <= limit:
            return placement.accumulation_steps
    least = min(measured.values())
    raise ConfigError(
        f"one worker a device needs {least / 2**30:.2f} GiB, the device has {limit / 2**30:.2f}; "
        "lower worker_batch_size or use a smaller network"
    )


def _line(points: dict[int, int]) -> Callable[[int], float]:
    """The line through one or two (lanes, bytes) points."""
    (x0, y0), (x1, y1) = min(points.items()), max(points.items())
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
    return lambda lanes: y0 + slope * (lanes - x0)


def _read(cache: pathlib.Path | None) -> dict[str, Any]:
    try:
        known = json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
