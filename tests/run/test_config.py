"""The check of a config."""

import json

import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from partial_config import config_with

from lbsgd.run.config import KEYS, default_config, flatten, resolve, run_keys
from lbsgd.system.errors import ConfigError

DEFAULTS = dict(flatten(default_config()))
CHOICES = {name: key.choices for name, key in KEYS.items() if key.choices}
POSITIVE = [name for name, key in KEYS.items() if key.positive]
FRACTIONS = [name for name, key in KEYS.items() if key.fraction]
NUMBERS = [key for key, value in DEFAULTS.items() if type(value) in (int, float)]
# One of another type for each type.
WRONG = {int: "many", float: "much", bool: "maybe", str: 3, tuple: 0.5, dict: "much"}
# Good values of keys that take but a few.
GOOD = {
    "data.crop_area": (0.5, 1.0),
    "data.crop_aspect": (1.0, 2.0),
    "data.erasing_area": (0.1, 0.2),
    "data.erasing_aspect": (0.5, 1.0),
    "data.color_jitter": (0.4, 0.4, 0.4),
    "allreduce.grid": (4, 2),
    "optimizer.decayed_roles": ("kernel", "bias"),
    "optimizer.freeze": ("stem*",),
    "data.only_classes": ("0-4",),
    "data.image_shape": (224, 224, 3),
    "stop_at": ("val_error", 24.1),
    "init_allow": ("fc.*",),
    "task.name": "their.tasks:task",
    "task.loss": "their.losses:loss",
    "log.sink_options": {"tensorboard": {"some": 1}},
}
# Written out: what may differ when a run goes on somewhere else.
MACHINE = {
    "code_may_differ",
    "devices",
    "accumulation_steps",
    "device_memory_gib",
    "allreduce.algorithm",
    "allreduce.bucket_mib",
    "allreduce.grid",
    "model.remat",
    "data.dir",
    "data.threads",
    "data.on_corrupt",
    "data.max_corrupt",
    "data.examples",
    "data.validation_examples",
    "data.classes",
    "data.image_shape",
    "evaluation.batch_size",
    "checkpoint.every_epochs",
    "checkpoint.every_steps",
    "checkpoint.every_examples",
    "checkpoint.every_minutes",
    "checkpoint.keep",
    "checkpoint.keep_best",
    "checkpoint.on_error",
    *(key for key in DEFAULTS if key.startswith("diagnostics.")),
    "log.every_steps",
    "log.sinks",
    "log.sink_options",
    "on_nonfinite",
    "max_nonfinite",
    "stop_at",
    "updates_per_call",
    "init_from",
    "init_ema",
    "init_allow",
    "runtime.heartbeat_seconds",
    "runtime.start_seconds",
    "runtime.stall_minutes",
    "runtime.on_stall",
}


def rejected(**changes) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(ConfigError) as error:
        resolve(config_with(**changes))
    assert "\n" not in str(error.value)
    return str(error.value)


# What follows from another key.
FOLLOWS = {"data.crop_short_side": 256, "data.evaluation_short_side": 256}


def test_default_config_resolves_to_itself():
    resolved = resolve(default_config())
    assert isinstance(resolved, FrozenConfigDict)
    assert dict(flatten(resolved)) == DEFAULTS | FOLLOWS
    assert resolve(resolved) == resolved


@pytest.mark.parametrize(("size", "side"), [(224, 256), (128, 146), (32, 37), (1, 1)])
def test_short_side_of_evaluation_follows_the_size(size, side):
    """256/224 of it; and it is one run whether that is set or follows."""
    follows = resolve(config_with(**{"data.image_size": size}))
    assert follows.data.evaluation_short_side == side == round(size * 8 / 7)
    keys = {"data.image_size": size, "data.evaluation_short_side": side}
    assert run_keys(resolve(config_with(**keys))) == run_keys(follows)


def test_short_side_that_is_set_stays():
    keys = {"data.image_size": 128, "data.evaluation_short_side": 300}
    assert resolve(config_with(**keys)).data.evaluation_short_side == 300
    assert resolve(resolve(config_with(**{"data.image_size": 10_000}))).data.image_size == 10_000


def test_keys_that_are_left_out_have_the_default():
    resolved = resolve(config_with(**{"batch_size": 8192, "data.flip": True}))
    assert dict(flatten(resolved)) == {
        **DEFAULTS,
        **FOLLOWS,
        "batch_size": 8192,
        "data.flip": True,
    }


def test_defaults_are_those_of_the_paper():
    """Goyal et al. 2017, section 5.1; the reference is 0.1 for 256."""
    assert {
        "worker_batch_size": 32,
        "learning_rate.reference_learning_rate": 0.1,
        "learning_rate.reference_batch_size": 256,
        "learning_rate.warmup_epochs": 5,
        "learning_rate.decay_epochs": (30, 60, 80),
        "learning_rate.decay_factor": 0.1,
        "optimizer.momentum": 0.9,
        "optimizer.nesterov": True,
        "optimizer.weight_decay": 1e-4,
        "batch_norm.momentum": 0.9,
        "model.zero_init_residual": True,
        "label_smoothing": 0,
    }.items() <= DEFAULTS.items()


def test_resolving_leaves_the_config_alone():
    config = config_with(batch_size=512)
    resolved = resolve(config)
    assert dict(flatten(config)) == {"batch_size": 512}
    config.batch_size = 1024
    assert resolved.batch_size == 512


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("batch_sise", "batch_size"),
        ("worker_batchsize", "worker_batch_size"),
        ("momentum", "optimizer.momentum"),
        ("weight_decay", "optimizer.weight_decay"),
        ("optimizer.momentun", "optimizer.momentum"),
        ("data.batch_size", "batch_size"),
        ("data.fliip", "data.flip"),
        ("learning_rate.warmup_epoch", "learning_rate.warmup_epochs"),
        ("total_epoch", "total_epochs"),
        ("evaluation.every_step", "evaluation.every_steps"),
        ("checkpoint.every_epoch", "checkpoint.every_epochs"),
        ("evaluation.batchsize", "evaluation.batch_size"),
        ("batch_norm.momentun", "batch_norm.momentum"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    message = rejected(**{key: 1})
    assert message == f"unknown config key {key!r}; the nearest known one is {nearest!r}"


@pytest.mark.parametrize("value", [1, "x", ConfigDict({"batch_size": 1}), ConfigDict()])
def test_unknown_group_is_an_error(value):
    assert "unknown config key 'hardware" in rejected(hardware=value)


def test_key_in_place_of_a_group_is_an_error():
    assert "'model' is a group of keys, not 'resnet50'" in rejected(model="resnet50")


def test_group_in_place_of_a_key_is_an_error():
    assert "unknown config key 'seed.first'" in rejected(**{"seed.first": 1})


@pytest.mark.parametrize("key", DEFAULTS)
def test_value_of_another_type_is_an_error(key):
    message = rejected(**{key: WRONG[type(DEFAULTS[key])]})
    kind = type(DEFAULTS[key])
    wanted = "holds options by name" if kind is dict else f"must be {kind.__name__}"
    assert message.startswith(f"{key} {wanted}, not ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 256.0),
        ("batch_size", True),
        ("batch_size", None),
        ("seed", None),
        ("model.name", None),
        ("data.flip", 1),
        ("data.flip", None),
        ("optimizer.momentum", None),
        ("learning_rate.decay_epochs", (30.0, "sixty")),
        ("learning_rate.decay_epochs", (None,)),
        ("data.mean", ("grey",)),
        ("data.std", (None,)),
    ],
)
def test_value_that_only_looks_right_is_an_error(key, value):
    assert key in rejected(**{key: value})


@pytest.mark.parametrize("key", [key for key in DEFAULTS if type(DEFAULTS[key]) is float])
def test_whole_number_is_a_float(key):
    value = 0 if key in FRACTIONS else 1
    resolved = dict(flatten(resolve(config_with(**{key: value}))))[key]
    assert resolved == value
    assert isinstance(resolved, float)


@pytest.mark.parametrize("key", CHOICES)
def test_choices(key):
    message = rejected(**{key: of_words(key, "upside_down")})
    known = ", ".join(filter(None, CHOICES[key]))
    known += ', or "package.module:name"' if KEYS[key].dotted else ""
    assert message == f"unknown {key} 'upside_down'; known: {known}"
    for choice in CHOICES[key]:
        value = of_words(key, choice)
        assert dict(flatten(resolve(config_with(**{key: value}))))[key] == value


def of_words(key: str, word: str) -> object:
    """A value of a key that is a word, or holds words."""
    return (word,) if isinstance(DEFAULTS[key], tuple) else word


@pytest.mark.parametrize("key", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_that_must_be_positive(key, value):
    assert rejected(**{key: value}).startswith(f"{key} must be positive, not {value}")


@pytest.mark.parametrize("key", FRACTIONS)
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_numbers_that_must_be_below_one(key, value):
    assert rejected(**{key: value}) == f"{key} must be at least 0 and less than 1, not {value}"


@pytest.mark.parametrize("key", FRACTIONS)
@pytest.mark.parametrize("value", [0.0, 0.999])
def test_fractions_may_be_zero_but_not_one(key, value):
    assert dict(flatten(resolve(config_with(**{key: value}))))[key] == value


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_is_negative(key):
    assert key in rejected(**{key: -1})


@pytest.mark.parametrize("key", [key for key in NUMBERS if type(DEFAULTS[key]) is float])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_number_is_finite(key, value):
    assert key in rejected(**{key: value})


@pytest.mark.parametrize("key", ["learning_rate.decay_epochs", "data.std", "data.mean"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_every_number_of_several_is_finite(key, value):
    assert key in rejected(**{key: (0.5, value)})


def test_means_of_pixels_may_be_negative():
    assert resolve(config_with(**{"data.mean": (-0.5, 0.0)})).data.mean == (-0.5, 0.0)


@pytest.mark.parametrize("epochs", [(30.0, 30.0), (60.0, 30.0), (-1.0, 5.0)])
def test_decay_epochs_that_do_not_increase_are_an_error(epochs):
    assert "learning_rate.decay_epochs must " in rejected(**{"learning_rate.decay_epochs": epochs})


def test_run_keys_leave_out_the_machine():
    assert run_keys(resolve(default_config())).keys() == DEFAULTS.keys() - MACHINE
    assert DEFAULTS.keys() >= MACHINE


def test_run_keys_come_back_from_json():
    keys = run_keys(resolve(config_with(**{"data.mean": (0.1, 0.2, 0.3)})))
    assert json.loads(json.dumps(keys)) == keys
    assert keys["data.mean"] == [0.1, 0.2, 0.3]


def another(key: str) -> object:
    """A good value that is not the default."""
    value = DEFAULTS[key]
    if key in GOOD:
        return GOOD[key]
    if key in CHOICES:
        return of_words(key, CHOICES[key][-1])
    others = {int: 777, float: 0.75, bool: not value, str: "another", tuple: (7,)}
    others |= {dict: {"size": 7}}
    return others[type(value)]


@pytest.mark.parametrize("key", DEFAULTS)
def test_run_keys_change_with_all_but_the_machine(key):
    assert another(key) != DEFAULTS[key]
    # The default warmup is in epochs; a warmup in another unit takes its place.
    other = {"learning_rate.warmup_epochs": 0.0} if "warmup_" in key else {}
    changed = run_keys(resolve(config_with(**{**other, key: another(key)})))
    assert (changed == run_keys(resolve(config_with(**other)))) == (key in MACHINE)
