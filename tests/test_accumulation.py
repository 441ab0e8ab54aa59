"""The choice of accumulation steps, with memory that is a formula instead of a compilation."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lbsgd.accumulation import candidates, choose, memory_of
from lbsgd.errors import ConfigError
from lbsgd.workers import Placement, place

GIB = 2**30
workers = st.integers(1, 200)
devices = st.integers(1, 8)
groups_in_all = st.integers(1, 40)
groups = st.sampled_from([1, 2, 3, 4, 8])
bases = st.integers(0, 50)
slopes = st.integers(0, 20)
limits = st.integers(0, 500)


def placing(k: int, d: int, g: int = 1) -> Callable[[int], Placement]:
    return lambda steps: place(k, 1, devices=d, accumulation_steps=steps, group_size=g)


def all_placements(k: int, d: int, g: int = 1) -> list[Placement]:
    """Of each number of steps that makes sense, 1 first."""
    found = []
    for steps in range(1, -(-k // d) + 1):
        try:
            found.append(placing(k, d, g)(steps))
        except ConfigError:
            continue
    return found


class Memory:
    """Bytes by the number of lanes; remembers for which it was asked."""

    def __init__(self, by_lanes: Callable[[int], int]) -> None:
        self.by_lanes = by_lanes
        self.asked: list[int] = []

    def __call__(self, placement: Placement) -> int:
        self.asked.append(placement.lanes)
        return self.by_lanes(placement.lanes)


def search(k: int, d: int, memory: Memory, limit: int, g: int = 1) -> Placement | None:
    """What `choose` chooses; None where it says that nothing fits."""
    try:
        return choose(placing(k, d, g), -(-k // d), memory, limit)
    except ConfigError:
        return None


@given(groups_in_all, devices, groups, bases, slopes, limits)
@settings(deadline=None, max_examples=200)
def test_fewest_steps_that_fit(count, d, g, base, slope, limit):
    options = all_placements(count * g, d, g)
    assume(options)
    fitting = [p for p in options if base + slope * p.lanes <= limit]
    memory = Memory(lambda lanes: base + slope * lanes)
    assert search(count * g, d, memory, limit, g) == (fitting or [None])[0]


@given(workers, devices, bases, slopes, limits)
@settings(deadline=None, max_examples=200)
def test_few_compilations(k, d, base, slope, limit):
    """Two to draw the line through and one to check; never the same one again."""
    memory = Memory(lambda lanes: base + slope * lanes)
    search(k, d, memory, limit)
    assert len(memory.asked) <= 3
    assert len(set(memory.asked)) == len(memory.asked)


@given(workers, devices, slopes, limits, st.integers(0, 10**6))
@settings(deadline=None, max_examples=200)
def test_never_over_the_limit_where_memory_is_not_affine(k, d, slope, limit, seed):
    extra = np.random.default_rng(seed).integers(0, 11, 201)
    memory = Memory(lambda lanes: slope * lanes + int(extra[lanes]))
    chosen = search(k, d, memory, limit)
    if chosen is None:
        fewest = min(p.lanes for p in all_placements(k, d))
        assert memory.by_lanes(fewest) > limit
    else:
        assert memory.by_lanes(chosen.lanes) <= limit
        assert chosen.lanes in memory.asked


def test_memory_of_real_size():
    """64 lanes of 1.3 GiB and 0.9 for the network, in bytes that are no round number."""
    per_lane, base = 1_395_864_371, 966_367_641
    memory = Memory(lambda lanes: base + per_lane * lanes)
    assert search(512, 8, memory, base + 16 * per_lane).lanes == 16
    assert search(512, 8, memory, base + 16 * per_lane - 1).lanes == 13


@given(groups_in_all, devices, groups)
@settings(deadline=None)
def test_candidates_are_each_number_of_lanes_once(count, d, g):
    k = count * g
    found = list(candidates(placing(k, d, g), -(-k // d)))
    lanes = [placement.lanes for placement in found]
    assert lanes == sorted(set(lanes), reverse=True)
    assert set(found) == set(all_placements(k, d, g))


def test_nothing_fits():
    memory = Memory(lambda lanes: lanes * 2 * GIB)
    with pytest.raises(ConfigError, match=r"needs 2.00 GiB, the device has 1.50; lower worker_"):
        choose(placing(8, 2), 4, memory, 3 * GIB // 2)


def test_second_choice_is_read_from_the_cache(tmp_path):
    cache = tmp_path / "folder" / "steps.json"
    first = choose(placing(64, 4), 16, Memory(lambda lanes: lanes), 5, cache, "run")
    again = Memory(lambda lanes: lanes)
    assert choose(placing(64, 4), 16, again, 5, cache, "run") == first
    assert again.asked == []
    assert first.lanes == 4


@pytest.mark.parametrize(("key", "limit"), [("run", 9), ("other run", 5)])
def test_cache_is_by_run_and_limit(tmp_path, key, limit):
    cache = tmp_path / "steps.json"
    choose(placing(64, 4), 16, Memory(lambda lanes: lanes), 5, cache, "run")
    other = Memory(lambda lanes: lanes)
    choose(placing(64, 4), 16, other, limit, cache, key)
    assert other.asked
    before = Memory(lambda lanes: lanes)
    choose(placing(64, 4), 16, before, 5, cache, "run")
    assert before.asked == []


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null"])
def test_cache_that_cannot_be_read_is_written_anew(tmp_path, text):
    cache = tmp_path / "steps.json"
    cache.write_text(text)
    chosen = choose(placing(64, 4), 16, Memory(lambda lanes: lanes), 5, cache, "run")
    assert list(json.loads(cache.read_text()).values()) == [chosen.accumulation_steps]


def test_failure_is_not_cached(tmp_path):
    cache = tmp_path / "steps.json"
    with pytest.raises(ConfigError):
        choose(placing(8, 2), 4, Memory(lambda lanes: lanes), 0, cache, "run")
    assert not cache.exists()


def test_memory_of_a_compiled_step():
    """Arguments, output and temporaries, what is shared once; two batches more that wait."""
    analysis = SimpleNamespace(
        argument_size_in_bytes=1000,
        output_size_in_bytes=200,
        temp_size_in_bytes=50,
        alias_size_in_bytes=150,
    )
    compiled = SimpleNamespace(memory_analysis=lambda: analysis)
    assert memory_of(compiled, batch_bytes=7) == 1000 + 200 + 50 - 150 + 6 * 7
