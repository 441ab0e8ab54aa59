"""What a network takes and gives is kept with it, and read back with suspicion."""

import copy
import json

import pytest

from lbsgd.data.interface import Interface, interface_of, read_interface
from lbsgd.data.views import CentreCrop, Whole
from lbsgd.run.config import resolve
from lbsgd.run.config_file import ConfigFile
from lbsgd.system.errors import ConfigError

CROPPED = Interface((64, 64, 3), 73, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), ("cat", "dog", "chat noir"))
WHOLE = Interface((8, 8, 1), 0, (0.5,), (0.5,), ())


@pytest.mark.parametrize("interface", [CROPPED, WHOLE])
def test_it_is_read_back_from_json(interface):
    assert read_interface(json.loads(json.dumps(interface.to_json()))) == interface


def test_it_is_that_of_the_config():
    config = resolve(ConfigFile("configs/imagenette.py").config())
    data, shape = config.data, (224, 224, 3)
    assert interface_of(data, shape, ("a", "b")) == Interface(
        shape, data.evaluation_short_side, tuple(data.mean), tuple(data.std), ("a", "b")
    )
    whole = resolve(ConfigFile("configs/digits.py").config()).data
    assert interface_of(whole, (8, 8, 1), ()).short_side == 0 < whole.evaluation_short_side
    assert CROPPED.view() == CentreCrop((64, 64, 3), 73)
    assert WHOLE.view() == Whole((8, 8, 1))


def _without(*path):
    value = copy.deepcopy(CROPPED.to_json())
    within = value
    for key in path[:-1]:
        within = within[key]
    del within[path[-1]]
    return value


def _with(key, wrong):
    value = copy.deepcopy(CROPPED.to_json())
    value["preprocessing"][key] = wrong
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"classes": "abc", "preprocessing": CROPPED.to_json()["preprocessing"]},
        {"classes": [1], "preprocessing": CROPPED.to_json()["preprocessing"]},
        {"classes": [], "preprocessing": []},
        _without("classes"),
        _without("preprocessing", "mean"),
        _with("image_shape", [64, 64]),
        _with("image_shape", [64, 64, True]),
        _with("image_shape", [64, -64, 3]),
        _with("image_shape", 3),
        _with("resize_short_side", 63),
        _with("resize_short_side", "73"),
        _with("mean", [0.5, 0.5]),
        _with("mean", [float("nan")]),
        _with("std", [0.0]),
        _with("std", [0.2, 0.2]),
        _with("std", ["x"]),
        _with("std", [10**400]),
    ],
)
def test_what_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="does not say what images"):
        read_interface(value)
