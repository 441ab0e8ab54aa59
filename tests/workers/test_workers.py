"""Where workers lie: every placement against a brute-force look at its slots."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lbsgd.system.errors import ConfigError
from lbsgd.workers.placement import DEVICE_AXES, Placement, count_workers, place

workers = st.integers(1, 64)
per_worker = st.integers(1, 4)
devices = st.integers(1, 8)
steps = st.integers(1, 12)
groups = st.integers(2, 16)
groups_in_all = st.integers(1, 12)


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def slots(placement: Placement) -> list[tuple[int, int, int]]:
    """(step, device, lane) of slots 0, 1, ... in the order that workers fill them."""
    ranges = (placement.accumulation_steps, placement.devices, placement.lanes)
    return list(itertools.product(*map(range, ranges)))


def groups_of(placement: Placement) -> list[list[tuple[int, int, int]]]:
    """Slots of each group of consecutive workers, real or idle."""
    size, all_slots = placement.group_size, slots(placement)
    return [all_slots[i : i + size] for i in range(0, len(all_slots), size)]


def is_whole(group: list[tuple[int, int, int]], size: int) -> bool:
    """Whether a group is a block: one step, neighbouring devices, the same lanes of each."""
    at_step = {step for step, _, _ in group}
    on_devices = sorted({device for _, device, _ in group})
    on_lanes = sorted({lane for _, _, lane in group})
    block = set(itertools.product(at_step, on_devices, on_lanes))
    neighbours = on_devices == list(range(on_devices[0], on_devices[-1] + 1))
    return len(group) == size and len(at_step) == 1 and neighbours and set(group) == block


def fits(group_size: int, num_devices: int, lanes: int) -> bool:
    """Whether every group of one accumulation step is whole."""
    step = Placement(num_devices * lanes, 1, num_devices, 1, lanes, group_size)
    return all(is_whole(group, group_size) for group in groups_of(step))


@given(workers, per_worker, devices, steps)
@settings(deadline=None)
def test_workers_lie_in_order_and_idle_slots_copy_real_ones(k, n, d, a):
    placement = place(k * n, n, devices=d, accumulation_steps=a)
    held = placement.worker_of_slot()
    assert held.shape == (placement.accumulation_steps, d * placement.lanes)
    assert placement.slots == held.size >= k
    assert held.ravel()[:k].tolist() == list(range(k))
    assert set(held.ravel()) == set(range(k))


@given(workers, per_worker, devices, steps)
@settings(deadline=None)
def test_every_accumulation_step_has_a_real_worker(k, n, d, a):
    placement = place(k * n, n, devices=d, accumulation_steps=a)
    real = (np.arange(placement.slots) < k).reshape(placement.accumulation_steps, -1)
    assert real.any(axis=1).all()
    assert placement.accumulation_steps <= a


@given(workers, per_worker, devices, steps)
@settings(deadline=None)
def test_lanes_are_the_fewest_that_hold_all_workers(k, n, d, a):
    lanes = place(k * n, n, devices=d, accumulation_steps=a).lanes
    assert lanes == next(count for count in itertools.count(1) if d * a * count >= k)


@given(workers, per_worker, devices, steps)
@settings(deadline=None)
def test_each_row_is_once_among_real_slots(k, n, d, a):
    placement = place(k * n, n, devices=d, accumulation_steps=a)
    rows = placement.rows_of_slot()
    assert placement.batch_size == k * n
    assert rows.shape == (*placement.worker_of_slot().shape, n)
    assert rows.reshape(-1, n)[:k].ravel().tolist() == list(range(k * n))
    worker = placement.worker_of_slot()[..., None]
    assert (rows // n == worker).all()
    assert (rows % n == np.arange(n)).all()


@given(groups_in_all, devices, steps, groups)
@settings(deadline=None)
def test_groups_of_synced_batch_norm_are_whole(count, d, a, g):
    k = count * g
    try:
        placement = place(k, 1, devices=d, accumulation_steps=a, group_size=g)
    except ConfigError:
        assume(False)
    assert placement.worker_of_slot().ravel()[:k].tolist() == list(range(k))
    assert placement.lanes_in_group * placement.devices_in_group == g
    for group in groups_of(placement):
        assert is_whole(group, g)
        assert len({device for _, device, _ in group}) == placement.devices_in_group
        assert len({lane for _, _, lane in group}) == placement.lanes_in_group
    assert k > (placement.accumulation_steps - 1) * d * placement.lanes  # no step is idle


@given(groups_in_all, devices, steps, groups)
@settings(deadline=None)
def test_groups_take_the_fewest_lanes_that_keep_them_whole(count, d, a, g):
    k = count * g
    fewest = ceil(k, d * a)
    choices = [lanes for lanes in range(fewest, max(fewest, g) + g) if fits(g, d, lanes)]
    try:
        assert place(k, 1, devices=d, accumulation_steps=a, group_size=g).lanes == choices[0]
    except ConfigError:
        # Refused only where so many lanes take fewer steps than were asked for.
        assert ceil(k, d * choices[0]) < ceil(k, d * fewest) <= a


@given(groups_in_all, devices, steps, st.integers(1, 16))
@settings(deadline=None)
def test_the_steps_of_a_placement_give_it_again(count, d, a, g):
    """Automatic accumulation stores the number of steps alone."""
    k = count * g
    try:
        placement = place(k, 1, devices=d, accumulation_steps=a, group_size=g)
    except ConfigError:
        assume(False)
    again = placement.accumulation_steps
    assert place(k, 1, devices=d, accumulation_steps=again, group_size=g) == placement


@pytest.mark.parametrize("d", range(1, 9))
@pytest.mark.parametrize("g", [1, 2, 4, 8])
def test_mesh_has_a_row_of_neighbouring_devices_for_each_group(d, g):
    """With one lane a group needs g devices; where they do not divide up it needs more lanes."""
    lanes = next(count for count in range(1, g + 1) if fits(g, d, count))
    placement = place(d * lanes, 1, devices=d, group_size=g)
    assert placement.lanes == lanes
    assert placement.mesh.axis_names == DEVICE_AXES
    members = g // lanes
    assert placement.mesh.devices.shape == (d // members, members)
    assert placement.mesh.devices.ravel().tolist() == jax.devices()[:d]


@pytest.mark.parametrize(
    ("d", "a", "g"),
    [*itertools.product(range(1, 9), (1, 3), (1,)), (8, 3, 2), (8, 3, 4), (4, 3, 4), (6, 2, 4)],
)
def test_each_device_holds_the_slots_of_its_lanes(d, a, g):
    placement = place(24, 1, devices=d, accumulation_steps=a, group_size=g)
    held = jax.device_put(placement.worker_of_slot(), placement.batch_sharding)
    assert len(held.addressable_shards) == d
    for shard in held.addressable_shards:
        device = jax.devices().index(shard.device)
        mine = [slot for slot, (_, on, _) in enumerate(slots(placement)) if on == device]
        assert np.asarray(shard.data).ravel().tolist() == [slot % 24 for slot in mine]


@pytest.mark.parametrize("d", range(1, 9))
def test_state_is_whole_on_every_device(d):
    placement = place(8, 1, devices=d)
    state = jax.device_put(np.arange(3), placement.replicated)
    assert [s.data.tolist() for s in state.addressable_shards] == [[0, 1, 2]] * d


def spread(placement: Placement, processes: list[int]) -> None:
    """Gives the mesh devices of these processes."""
    fakes = [SimpleNamespace(process_index=process) for process in processes]
    placement.__dict__["mesh"] = SimpleNamespace(devices=np.array(fakes))


def test_slots_of_processes_are_each_slot_once(monkeypatch):
    placement = place(24, 1, devices=6, accumulation_steps=2)
    spread(placement, [0, 0, 0, 1, 3, 3])
    parts = []
    for process in range(4):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(list(range(12)[placement.local_slots()]))
    assert parts == [[0, 1, 2, 3, 4, 5], [6, 7], [], [8, 9, 10, 11]]


def test_devices_of_a_process_must_be_neighbours():
    placement = place(4, 1, devices=4)
    spread(placement, [0, 1, 1, 0])
    with pytest.raises(ConfigError, match="must be neighbours"):
        placement.local_slots()


def test_one_process_holds_all_slots():
    placement = place(24, 1, devices=5, accumulation_steps=2)
    assert range(15)[placement.local_slots()] == range(15)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"batch_size": 8192, "worker_batch_size": 32, "devices": 8, "accumulation_steps": 8},
            "k=256 workers of n=32 = 8 devices x 4 lanes x 8 accumulation steps",
        ),
        (
            {"batch_size": 256, "worker_batch_size": 32, "devices": 5},
            "k=8 workers of n=32 = 5 devices x 2 lanes x 1 accumulation step less 2 idle slots",
        ),
    ],
)
def test_description(keys, line):
    assert place(**keys).describe() == line


@pytest.mark.parametrize(
    ("batch_size", "worker_batch_size", "message"),
    [
        (100, 32, r"batch_size=100 .* worker_batch_size=32 \(100 = 3 x 32 \+ 4\); take 96 or 128$"),
        (33, 32, r"\(33 = 1 x 32 \+ 1\); take 32 or 64$"),
        (16, 32, r"\(16 = 0 x 32 \+ 16\); take 32$"),
    ],
)
def test_workers_that_do_not_divide_the_minibatch_show_the_sum(
    batch_size, worker_batch_size, message
):
    for function in (count_workers, lambda kn, n: place(kn, n, devices=1)):
        with pytest.raises(ConfigError, match=message):
            function(batch_size, worker_batch_size)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (8, 32), (256, 32), (7, 3)])
def test_count_of_workers(k, n):
    assert count_workers(k * n, n) == k


@pytest.mark.parametrize(("k", "g"), [(8, 3), (8, 16), (6, 4)])
def test_group_that_does_not_divide_the_workers_is_an_error(k, g):
    with pytest.raises(ConfigError, match=rf"synced_workers={g} does not divide the k={k}"):
        place(k, 1, devices=8, group_size=g)


@pytest.mark.parametrize(
    ("k", "d", "a", "g"),
    [
        (8, 1, 8, 2),  # one lane of one device holds half a group
        (24, 3, 8, 2),  # pairs over three devices
        (12, 5, 2, 3),
    ],
)
def test_group_that_does_not_fit_is_an_error(k, d, a, g):
    with pytest.raises(ConfigError, match=rf"synced_workers={g} do not fit in .*={a} on {d} dev"):
        place(k, 1, devices=d, accumulation_steps=a, group_size=g)
