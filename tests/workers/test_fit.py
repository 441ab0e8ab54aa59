"""The choice of accumulation steps, with memory that is a formula instead of a compilation."""

import json
import pathlib
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lbsgd.system.errors import ConfigError
from lbsgd.workers.fit import StepMemory, candidates, choose, memory_of
from lbsgd.workers.placement import Placement, place

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


def choose_lanes(k, d, memory: StepMemory, limit: int, g: int = 1) -> Placement:
    return choose(placing(k, d, g), -(-k // d), memory, lambda placement: 0, limit)


def search(
    k: int, d: int, memory: Memory, limit: int, g: int = 1, fixed: int = 0
) -> Placement | None:
    """What `choose` chooses; None where it says that nothing fits."""
    try:
        return choose_lanes(k, d, StepMemory(memory, fixed), limit, g)
    except ConfigError:
        return None


@given(groups_in_all, devices, groups, bases, slopes, limits)
@settings(deadline=None, max_examples=200)
def test_fewest_steps_that_fit(count, d, g, base, slope, limit):
    options = all_placements(count * g, d, g)
    assume(options)
    fitting = [p for p in options if base + slope * p.lanes <= limit]
    memory = Memory(lambda lanes: base + slope * lanes)
    assert search(count * g, d, memory, limit, g, fixed=base) == (fitting or [None])[0]


@given(workers, devices, bases, slopes, limits, st.integers(0, 50))
@settings(deadline=None, max_examples=200)
def test_one_compilation_besides_that_of_the_choice(k, d, base, slope, limit, fixed):
    """Where less is known to be fixed than is, fewer lanes may be chosen, but never too many."""
    memory = Memory(lambda lanes: base + slope * lanes)
    chosen = search(k, d, memory, limit, fixed=min(fixed, base))
    assert len(set(memory.asked)) == len(memory.asked) <= 2
    if chosen:
        assert memory.by_lanes(chosen.lanes) <= limit
        assert set(memory.asked) == {all_placements(k, d)[-1].lanes, chosen.lanes}


def test_what_is_not_known_to_be_fixed_costs_little():
    """A tenth of a worker's memory: of 16 lanes that fit, 13 are taken."""
    memory = Memory(lambda lanes: 100 + 1000 * lanes)
    assert search(64, 1, memory, 16_100).lanes == 13


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


@given(workers, devices, limits)
@settings(deadline=None, max_examples=100)
def test_few_compilations_where_memory_grows_faster_than_lanes(k, d, limit):
    memory = Memory(lambda lanes: lanes**2)
    chosen = search(k, d, memory, 100 * limit)
    assert len(memory.asked) <= 8
    if chosen:
        assert memory.by_lanes(chosen.lanes) <= 100 * limit


def test_batches_that_wait_count():
    """They take memory beside that of the step."""
    memory = StepMemory(lambda placement: 10 * placement.lanes, 0)
    fits = [
        choose(placing(8, 1), 8, memory, lambda placement: 21, limit).lanes
        for limit in (80 + 21, 80 + 20)
    ]
    assert fits == [8, 4]


def test_one_step_without_a_loop_is_measured_apart():
    """It needs no sum of gradients, so what fits there may not fit in a loop."""
    memory = StepMemory(lambda p: 10 * p.lanes + 5 * (p.accumulation_steps > 1), 0)
    assert choose_lanes(1, 1, memory, 12).lanes == 1
    with pytest.raises(ConfigError, match="at once, 1, need"):
        choose_lanes(4, 1, memory, 12)


def test_another_size_of_batch_is_not_measured_again():
    """What fits is the same number of lanes: 4 of 16 workers, and of 64."""
    measured = Memory(lambda lanes: 10 * lanes)
    memory = StepMemory(measured, 0)
    found = [choose_lanes(k, 1, memory, 45) for k in (16, 64, 1024)]
    assert [p.lanes for p in found] == [4, 4, 4]
    assert [p.accumulation_steps for p in found] == [4, 16, 256]
    assert measured.asked == [1, 4]


def test_memory_of_real_size():
    """64 lanes of 1.3 GiB and 0.9 for the network, in bytes that are no round number."""
    per_lane, base = 1_395_864_371, 966_367_641
    for limit, lanes in ((base + 16 * per_lane, 16), (base + 16 * per_lane - 1, 13)):
        memory = Memory(lambda lanes: base + per_lane * lanes)
        assert search(512, 8, memory, limit, fixed=base).lanes == lanes


@given(groups_in_all, devices, groups)
@settings(deadline=None)
def test_candidates_are_each_number_of_lanes_once(count, d, g):
    k = count * g
    found = list(candidates(placing(k, d, g), -(-k // d)))
    lanes = [placement.lanes for placement in found]
    assert lanes == sorted(set(lanes), reverse=True)
    assert set(found) == set(all_placements(k, d, g))


def test_nothing_fits():
    memory = StepMemory(lambda placement: placement.lanes * 2 * GIB, 0)
    with pytest.raises(
        ConfigError, match=r"at once, 1, need 2.00 GiB, it has 1.50 GiB; lower worker_"
    ):
        choose_lanes(8, 2, memory, 3 * GIB // 2)


def remembering(cache: pathlib.Path, key: str = "run") -> tuple[StepMemory, Memory]:
    measured = Memory(lambda lanes: lanes)
    return StepMemory(measured, 0, cache, key), measured


def test_second_choice_compiles_nothing(tmp_path):
    cache = tmp_path / "folder" / "memory.json"
    first = choose_lanes(64, 4, remembering(cache)[0], 5)
    again, measured = remembering(cache)
    assert choose_lanes(64, 4, again, 5) == first
    assert measured.asked == []
    assert first.lanes == 4


@pytest.mark.parametrize(("key", "limit", "asked"), [("run", 9, [8]), ("other run", 5, [1, 4])])
def test_what_is_remembered_is_of_the_run_and_serves_any_limit(tmp_path, key, limit, asked):
    cache = tmp_path / "memory.json"
    choose_lanes(64, 4, remembering(cache)[0], 5)
    other, measured = remembering(cache, key)
    choose_lanes(64, 4, other, limit)
    assert measured.asked == asked
    before, measured = remembering(cache)
    choose_lanes(64, 4, before, 5)
    assert measured.asked == []


@pytest.mark.parametrize(
    "text", ["", "{", "[1, 2]", "null", '{"run": 3}', '{"run": {"1": -1, "x": 2, "4": "5"}}']
)
def test_cache_that_cannot_be_read_is_written_anew(tmp_path, text):
    cache = tmp_path / "memory.json"
    cache.write_text(text)
    assert choose_lanes(64, 4, remembering(cache)[0], 5).lanes == 4
    assert json.loads(cache.read_text()) == {"run": {"1": 1, "4": 4}}


def test_memory_of_a_compiled_step():
    """Arguments, output and temporaries, what is shared once; the minibatch is counted apart."""
    analysis = SimpleNamespace(
        argument_size_in_bytes=1000,
        output_size_in_bytes=200,
        temp_size_in_bytes=50,
        alias_size_in_bytes=150,
    )
    compiled = SimpleNamespace(memory_analysis=lambda: analysis)
    assert memory_of(compiled, batch_bytes=7) == 1000 + 200 + 50 - 150 - 7
