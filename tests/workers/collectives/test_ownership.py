"""How layers are shared out over devices, and what that costs."""

import numpy as np
import pytest

from lbsgd.workers.collectives import owned
from lbsgd.workers.collectives.ownership import Ownership, balance, sent, share_out

# ResNet-50: dimensions of A and G, and how many layers have them.
RESNET50 = [
    (147, 64, 1), (64, 64, 1), (256, 64, 2), (576, 64, 3), (64, 256, 4), (256, 128, 1),
    (512, 128, 3), (1152, 128, 4), (128, 512, 4), (256, 512, 1), (512, 256, 1), (1024, 256, 5),
    (2304, 256, 6), (256, 1024, 6), (512, 1024, 1), (1024, 512, 1), (2048, 512, 2),
    (4608, 512, 3), (512, 2048, 3), (1024, 2048, 1), (2049, 1000, 1),
]  # fmt: skip


def owners(devices):
    return [share_out(count, (a, g), devices) for a, g, count in RESNET50]


@pytest.mark.parametrize("devices", [1, 2, 3, 6, 8])
@pytest.mark.parametrize(("layers", "size"), [(1, 7), (3, 8), (5, 5), (9, 2)])
def test_each_number_of_a_stack_is_owned_once_and_comes_back(devices, layers, size):
    owner = share_out(layers, (size, 2), devices)
    x = 1 + np.arange(layers * size * 2, dtype=np.float32).reshape(layers, size, 2)
    pieces = owned.in_pieces(x, owner)
    assert pieces.shape == (devices, owner.per_group, owner.width, 2)
    np.testing.assert_array_equal(np.sort(pieces[pieces > 0]), x.reshape(-1))
    np.testing.assert_array_equal(owned.from_pieces(pieces, size, owner), x)
    whole = owned.for_members(x, owner)
    assert whole.shape == (devices, owner.per_group, size, 2)
    np.testing.assert_array_equal(owned.from_members(whole, owner), x)


def test_a_device_alone_does_and_owns_all():
    for owner in owners(1):
        assert (owner.groups, owner.members, owner.per_group) == (1, 1, owner.layers)
    assert balance(owners(1)) == 1
    assert sent(owners(1)) == (0, 0, 0, 0)


@pytest.mark.parametrize("devices", [2, 8, 44, 256])
def test_devices_share_the_work_of_a_resnet50_better_than_layer_by_layer(devices):
    """Layer by layer no device could do less than the largest layer takes."""
    found = owners(devices)
    alone = sum(o.inversion_flops() for o in owners(1))
    slowest = sum(o.inversion_flops() for o in found)
    largest = Ownership(1, 4608, 512, 1, 1).inversion_flops()
    assert slowest >= alone / devices
    assert alone / slowest > min(0.6 * devices, alone / largest)
    updates = sum(o.update_flops() for o in owners(1)) / sum(o.update_flops() for o in found)
    assert updates > 0.55 * devices
    assert balance(found) == pytest.approx(alone / slowest / devices)


def test_no_other_number_of_groups_is_less_work():
    for devices in (6, 8, 12):
        for a, g, count in RESNET50:
            own = share_out(count, (a, g), devices)
            others = [
                Ownership(count, max(a, g), min(a, g), devices, c)
                for c in range(1, devices + 1)
                if devices % c == 0
            ]
            least = min(o.inversion_flops() + o.update_flops() for o in others)
            assert own.inversion_flops() + own.update_flops() == least
