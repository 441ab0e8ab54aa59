"""Keys without effect: one policy for all, whichever room they are of."""

import math
import pathlib
import runpy

import pytest

from lbsgd.config.unused import without_effect
from lbsgd.data.pipeline import Prefetch
from lbsgd.run.build import build
from lbsgd.run.config import (
    KEYS,
    default_config,
    explain_unused,
    flatten,
    in_effect,
    resolve,
    run_keys,
)
from lbsgd.run.explain import explain
from lbsgd.system.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[2]

DEFAULTS = {name: key.default for name, key in KEYS.items()}

# By hand: of each key, the choices that leave it without effect, and one that uses it.
OFF, ON_CALL = {}, {"evaluation.every_epochs": 1.0}
SGD, LARS, LAMB, SPNGD = ({"optimizer.name": name} for name in ("sgd", "lars", "lamb", "spngd"))
LION = {"optimizer.name": "optax:lion"}
DAMPED = {"optimizer.initial_damping": 0.01}
INSIDE = {"optimizer.momentum_form": "rate_inside"}
NO_WARMUP, GRADUAL = ({"learning_rate.warmup": name} for name in ("none", "gradual"))
UNTIMED = {**NO_WARMUP, "learning_rate.warmup_epochs": 0.0}
COSINE, POLYNOMIAL = ({"learning_rate.decay": name} for name in ("cosine", "polynomial"))
UNSCALED = {"learning_rate.scaling": "none", "learning_rate.warmup_from": "zero"}
GROWN = {"batch_growth.sizes": (512,), "batch_growth.at_epochs": (1.0,)}
BATCH_GROWS = {"batch_growth.in_place_of_decay": True}
THEIRS = {"model.name": "their.networks:Net"}
OWN_TASK, OWN_LOSS = {"task.name": "their.tasks:task"}, {"task.loss": "their.losses:loss"}
GROUP, PLAIN = ({"model.normalization": name} for name in ("group", "none"))
FROZEN = {"batch_norm.frozen_statistics": True}
TORUS = {"allreduce.algorithm": "torus_2d"}
SYNTHETIC, TFDS, FOLDER, NPZ, PACKED = (
    {"data.source": name} for name in ("synthetic", "tfds", "folder", "npz", "packed")
)
PADDED, INCEPTION, RANDOM = ({"data.crop": name} for name in ("padded", "inception", "random"))
ERASED = {"data.erasing": 0.5}
ON_DEVICE = {**SYNTHETIC, "data.synthetic_on_device": True}
WORKERS, CONFUSION = ({f"diagnostics.{x}.every_steps": 5} for x in ("workers", "confusion"))

POLICY = {
    "optimizer.options": ({"b1": 0.5}, [SGD, LARS, LAMB], [LION]),
    "optimizer.momentum": (0.5, [LAMB, LION], [SGD, LARS]),
    "optimizer.nesterov": (False, [LAMB, LION, {"optimizer.momentum": 0.0}], [SGD, LARS]),
    "optimizer.momentum_form": ("rate_inside", [LAMB, {"optimizer.momentum": 0.0}], [SGD, LARS]),
    "optimizer.momentum_correction": (
        False,
        [SGD, {**INSIDE, **LAMB}],
        [INSIDE, {**INSIDE, **LARS}],
    ),
    "optimizer.decayed_roles": (
        ("kernel", "bias"),
        [LAMB, {"optimizer.weight_decay": 0.0}],
        [SGD, LARS, LION],
    ),
    "optimizer.weight_decay_form": (
        "decoupled",
        [LAMB, {"optimizer.weight_decay": 0.0}],
        [SGD, LARS, LION],
    ),
    "optimizer.trust_coefficient": (0.01, [SGD, LAMB, LION], [LARS]),
    "optimizer.trust_epsilon": (1e-6, [SGD, LAMB], [LARS]),
    "optimizer.trust_at_zero": ("formula", [SGD, LAMB], [LARS]),
    "optimizer.beta1": (0.5, [SGD, LARS, LION], [LAMB]),
    "optimizer.beta2": (0.5, [SGD, LARS], [LAMB]),
    "optimizer.epsilon": (1e-3, [SGD, LARS], [LAMB]),
    "optimizer.norm_clip": ((0.0, 1.0), [SGD, LARS], [LAMB]),
    "optimizer.momentum_schedule": (
        "with_rate",
        [SGD, LARS, {**SPNGD, "optimizer.momentum": 0.0}],
        [SPNGD],
    ),
    "optimizer.damping": (1e-3, [SGD, LARS, LAMB, LION], [SPNGD]),
    "optimizer.initial_damping": (1e-2, [SGD, LARS], [SPNGD]),
    **{
        f"optimizer.damping_warmup_{unit}": (3, [SPNGD, {**DAMPED, **SGD}], [{**DAMPED, **SPNGD}])
        for unit in ("epochs", "steps", "examples")
    },
    "optimizer.norm_damping": (1.0, [SGD, LARS], [SPNGD]),
    "optimizer.fisher_share": (0.25, [SGD, LARS], [SPNGD]),
    "optimizer.norm_fisher": ("full", [SGD, LARS], [SPNGD]),
    "optimizer.statistics_dtype": ("bfloat16", [SGD, LARS], [SPNGD]),
    "optimizer.stale_threshold": (0.1, [SGD, LARS], [SPNGD]),
    "optimizer.fisher": ("1mc", [SGD, LARS, LAMB, LION], [SPNGD]),
    "optimizer.weight_rescaling": ("always", [SGD, LARS], [SPNGD]),
    "learning_rate.reference_batch_size": (64, [UNSCALED, {**UNSCALED, **NO_WARMUP}], [OFF]),
    "learning_rate.warmup_from": ("zero", [NO_WARMUP], [OFF]),
    "learning_rate.warmup_power": (2.0, [NO_WARMUP, {"learning_rate.warmup": "constant"}], [OFF]),
    "learning_rate.warmup_epochs": (3.0, [NO_WARMUP], [OFF]),
    "learning_rate.warmup_steps": (3, [UNTIMED], [{**UNTIMED, **GRADUAL}]),
    "learning_rate.warmup_examples": (300, [UNTIMED], [{**UNTIMED, **GRADUAL}]),
    "learning_rate.decay_from": (
        "start",
        [OFF, {"learning_rate.decay": "none"}, {**COSINE, "learning_rate.decay_start_steps": 3}],
        [COSINE],
    ),
    **{
        f"learning_rate.decay_{which}_{unit}": (9, [OFF], [COSINE, POLYNOMIAL])
        for which in ("start", "end")
        for unit in ("epochs", "steps", "examples")
    },
    "learning_rate.decay_epochs": ((5.0,), [COSINE, POLYNOMIAL], [OFF]),
    "learning_rate.decay_factor": (0.5, [COSINE, POLYNOMIAL], [OFF, BATCH_GROWS]),
    "learning_rate.decay_power": (1.0, [OFF, COSINE], [POLYNOMIAL]),
    "learning_rate.decay_end_rate": (1e-4, [OFF, COSINE], [POLYNOMIAL]),
    "learning_rate.decay_past_end_steps": (
        1,
        [OFF, COSINE, {**POLYNOMIAL, "learning_rate.decay_end_epochs": 53.0}],
        [POLYNOMIAL],
    ),
    "batch_growth.largest": (4096, [OFF, GROWN], [BATCH_GROWS]),
    "batch_growth.compensate": ("momentum", [OFF], [GROWN]),
    "model.options": ({"depth": 3}, [OFF], [THEIRS]),
    "model.roles": ("their.networks:roles", [OFF], [THEIRS]),
    "model.width": (2.0, [THEIRS], [OFF]),
    "model.skip_connections": (False, [THEIRS], [OFF]),
    "model.zero_init_residual": (False, [THEIRS], [OFF]),
    "model.normalization": ("none", [THEIRS], [OFF]),
    "model.remat": (True, [THEIRS, SPNGD], [OFF, LARS]),
    "task.options": ({"depth": 3}, [OFF, OWN_LOSS], [OWN_TASK]),
    "task.loss": ("their.losses:loss", [OWN_TASK], [OFF]),
    "task.loss_options": ({"gamma": 2.0}, [OFF, OWN_TASK, {**OWN_TASK, **OWN_LOSS}], [OWN_LOSS]),
    "label_smoothing": (0.1, [OWN_TASK, OWN_LOSS], [OFF]),
    "init_ema": (True, [OFF], [{"init_from": "runs/a"}]),
    "init_allow": (("missing",), [OFF], [{"init_from": "runs/a"}]),
    "ema.warmup": (False, [OFF], [{"ema.decay": 0.9}]),
    "batch_norm.frozen_statistics": (True, [GROUP, PLAIN], [OFF]),
    "batch_norm.momentum": (0.5, [GROUP, PLAIN, FROZEN], [OFF]),
    "batch_norm.epsilon": (1e-3, [PLAIN, THEIRS], [OFF, GROUP]),
    "batch_norm.initial_scale_std": (0.05, [PLAIN, THEIRS], [OFF, GROUP]),
    "batch_norm.synced_workers": (2, [GROUP, PLAIN, THEIRS, FROZEN], [OFF]),
    "batch_norm.running_variance": ("total", [GROUP, PLAIN, FROZEN], [OFF]),
    "batch_norm.precise_examples": (256, [GROUP, PLAIN, FROZEN], [OFF]),
    "allreduce.grid": ((4, 2), [OFF, {"allreduce.algorithm": "ring"}], [TORUS]),
    "device_memory_gib": (8.0, [OFF], [{"accumulation_steps": 0}]),
    "max_nonfinite": (3, [OFF], [{"on_nonfinite": "skip"}]),
    "data.dir": ("there", [OFF, SYNTHETIC], [TFDS, FOLDER, NPZ, PACKED]),
    "data.validation_fraction": (0.1, [OFF, SYNTHETIC, TFDS, PACKED], [FOLDER, NPZ]),
    "data.train_examples": (100, [SYNTHETIC], [OFF, FOLDER, NPZ, TFDS, PACKED]),
    "data.left_out": (
        "validation",
        [OFF, {**SYNTHETIC, "data.train_examples": 9}],
        [{"data.train_examples": 9}],
    ),
    "data.shuffle": ("shards", [{"batch_size": 32}, ON_DEVICE], [OFF, SYNTHETIC]),
    "data.tfds_name": ("mnist", [OFF, FOLDER], [TFDS]),
    "data.tfds_train": ("train[:9]", [OFF, FOLDER], [TFDS]),
    "data.tfds_validation": ("test", [OFF, FOLDER], [TFDS]),
    "data.synthetic_classes": (3, [OFF, FOLDER], [SYNTHETIC]),
    "data.synthetic_examples": (300, [OFF, FOLDER], [SYNTHETIC]),
    "data.synthetic_validation_examples": (300, [OFF, FOLDER], [SYNTHETIC]),
    "data.synthetic_on_device": (True, [OFF, FOLDER], [SYNTHETIC]),
    "data.on_corrupt": ("skip", [OFF, SYNTHETIC, NPZ], [TFDS, FOLDER, PACKED]),
    "data.max_corrupt": (3, [OFF, FOLDER], [{**FOLDER, "data.on_corrupt": "skip"}]),
    "data.crop_padding": (2, [OFF, INCEPTION, {**PADDED, **ON_DEVICE}], [PADDED]),
    "data.crop_area": ((0.5, 1.0), [OFF, PADDED, {**INCEPTION, **ON_DEVICE}], [INCEPTION]),
    "data.crop_aspect": ((0.5, 1.0), [OFF, PADDED, {**INCEPTION, **ON_DEVICE}], [INCEPTION]),
    "data.crop_antialias": (True, [OFF, PADDED, {**INCEPTION, **ON_DEVICE}], [INCEPTION, RANDOM]),
    "data.crop_short_side": (300, [OFF, INCEPTION, {**RANDOM, **ON_DEVICE}], [RANDOM]),
    "data.image_size": (32, [OFF, PADDED, FOLDER], [INCEPTION, RANDOM, SYNTHETIC]),
    "data.evaluation_short_side": (
        300,
        [OFF, PADDED],
        [INCEPTION, RANDOM, {**INCEPTION, **ON_DEVICE}],
    ),
    "data.erasing_area": ((0.1, 0.2), [OFF], [ERASED]),
    "data.erasing_aspect": ((0.5, 1.0), [OFF], [ERASED]),
    "data.erasing_transpose": (True, [OFF], [ERASED]),
    "data.flip": (True, [ON_DEVICE], [OFF, SYNTHETIC]),
    "data.color_jitter": ((0.4, 0.4, 0.4), [ON_DEVICE], [OFF, SYNTHETIC]),
    "data.lighting": (0.1, [ON_DEVICE], [OFF, SYNTHETIC]),
    "data.augment": ("rand_augment", [ON_DEVICE], [OFF, SYNTHETIC]),
    "data.augment_options": (
        {"num_ops": 3},
        [OFF, {**ON_DEVICE, "data.augment": "rand_augment"}],
        [{"data.augment": "rand_augment"}, {"data.augment": "anyones:own"}],
    ),
    "diagnostics.workers.window": (9, [OFF, CONFUSION], [WORKERS]),
    "diagnostics.confusion.pairs": (9, [OFF, WORKERS], [CONFUSION]),
    "diagnostics.confusion.batch_size": (9, [OFF, WORKERS], [CONFUSION]),
    "diagnostics.in_turn": (True, [OFF], [WORKERS, CONFUSION]),
    "evaluation.offset_epochs": (2.0, [OFF], [ON_CALL]),
    "evaluation.offset_steps": (2, [OFF], [{"evaluation.every_steps": 4}]),
    "evaluation.offset_examples": (2, [OFF], [{"evaluation.every_examples": 4}]),
    "runtime.on_stall": ("end", [{"runtime.stall_minutes": 0.0}], [OFF]),
}


def resolved(changes):
    config = default_config()
    config.update_from_flattened_dict(changes)
    return resolve(config)


def unused(changes) -> dict[str, str]:
    """What is said of each key without effect."""
    return {key.key: str(key) for key in without_effect({**DEFAULTS, **changes}, KEYS)}


def test_the_policy_is_of_every_key_that_an_option_uses():
    assert POLICY.keys() == {name for name, key in KEYS.items() if key.used_with or key.used_if}


@pytest.mark.parametrize("key", POLICY)
def test_a_key_of_another_option_is_named_and_not_in_effect(key):
    """So that no part of a run can depend on it."""
    value, without, _ = POLICY[key]
    for option in without:
        assert unused({**option, key: value})[key].startswith(
            f"{key}={value!r} (used only with "
        ), option
    assert in_effect(resolved({**option, key: value})) == in_effect(resolved(option))


@pytest.mark.parametrize("key", POLICY)
def test_a_key_of_the_chosen_option_is_not_named(key):
    value, _, used = POLICY[key]
    for option in used:
        assert key not in unused({**option, key: value}), option


def test_defaults_name_nothing_whatever_is_chosen():
    for name, key in KEYS.items():
        for choice in key.choices or ((True, False) if type(key.default) is bool else ()):
            assert unused({name: choice}).keys() <= {name}
    assert explain_unused(resolve(default_config())) == []


def test_the_line_says_which_option_was_meant():
    changes = {"optimizer.trust_coefficient": 0.01, "batch_growth.largest": 512}
    (said,) = explain_unused(resolved(changes))
    assert said == (
        "without effect: batch_growth.largest=512 (used only with batch_growth.in_place_of_decay, "
        "which "
        "is off); optimizer.trust_coefficient=0.01 (used only with optimizer.name='lars')"
    )


def test_what_the_run_computes_is_not_used_by_where_it_does():
    """Else a machine key could change the identity of a run."""
    for name, key in KEYS.items():
        if not key.machine:
            assert not [other for other in key.used_with if KEYS[other].machine], name


def test_a_config_in_effect_is_the_same_run():
    for changes in ({}, INCEPTION, {**INCEPTION, "data.image_size": 128}):
        config = resolved(changes)
        assert run_keys(in_effect(config)) == run_keys(config)
        assert in_effect(config).data.evaluation_short_side == math.floor(
            config.data.image_size * 8 / 7 + 0.5
        )


def small(**changes):
    changes = {
        "batch_size": 128,
        "worker_batch_size": 16,
        "total_steps": 2,
        "devices": 1,
        "model.name": "cifar_resnet8",
        "model.width": 0.25,
        "learning_rate.warmup": "none",
        **changes,
    }
    return resolved(changes)


# What once was an error, or had an effect where it should have none.
LEAKS = {
    "groups of workers": {**GROUP, "batch_norm.synced_workers": 3},
    "batch on the devices": {"data.synthetic_on_device": True},
    "groups and diagnostics": {**GROUP, **WORKERS, "batch_norm.synced_workers": 2},
    "precise batch norm": {**PLAIN, "batch_norm.precise_examples": 256},
    "held out": {"data.validation_fraction": 0.1},
    "antialias": {"data.crop_antialias": True},
    "offset": {"evaluation.offset_epochs": 2.0},
    "decay": {"learning_rate.decay_from": "start"},
    "growth": {"batch_growth.largest": 1, "batch_growth.compensate": "rate"},
    "lamb": {**LAMB, "optimizer.nesterov": False},
    "trust": {"optimizer.trust_at_zero": "formula"},
}


@pytest.mark.parametrize(
    "name",
    [
        *list(LEAKS)[:2],
        *(pytest.param(name, marks=pytest.mark.long) for name in list(LEAKS)[2:]),
    ],
)
def test_a_run_is_that_without_the_unused_keys_and_says_so(name):
    config = small(**LEAKS[name])
    parts, plain = build(config), build(in_effect(config))
    assert parts.plan.identity() == plain.plan.identity()
    assert parts.plan.placements == plain.plan.placements
    assert parts.plan.precise_batches == plain.plan.precise_batches == 0
    assert isinstance(parts.feed.training(0), Prefetch)
    lines = explain(parts.plan)
    (said,) = explain_unused(config)
    assert said in lines
    assert [text for text in lines if text != said] == explain(plain.plan)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({**GROWN, **BATCH_GROWS}, "both say how the batch grows"),
        ({**BATCH_GROWS, "batch_growth.compensate": "rate"}, "compensate would undo"),
        ({**GROWN, **LAMB, "batch_growth.compensate": "momentum"}, "'lamb' has not"),
        ({**ON_CALL, "evaluation.offset_steps": 2}, "give both in the same unit"),
        ({**UNSCALED, "learning_rate.warmup": "constant"}, "would train at a rate of 0"),
    ],
)
def test_keys_that_contradict_each_other_are_an_error(changes, says):
    with pytest.raises(ConfigError, match=says):
        build(small(**{"learning_rate.warmup": "gradual", **changes}))


def recipe(name: str, *arg: str):
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](*arg)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_recipes_set_nothing_without_effect(path):
    variants = runpy.run_path(str(path)).get("ROWS", {})
    # Those that take no value, or one of a few.
    args = [row for row in variants if not row.endswith("=")]
    args += ["epochs=3"] if "epochs=" in variants else []
    for config in (recipe(path.stem), *(recipe(path.stem, arg) for arg in args)):
        assert explain_unused(resolve(config)) == []


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        *(("imagenet_lars", f"{row}") for row in ("paper=256", "paper=8192", "reference=16384")),
        *(("imagenet_lars", f"batch={size},smoke") for size in (1632, 32768)),
        *(("cifar10_growing", f"row={row}") for row in ("original", "rate", "momentum", "hybrid")),
        *(("imagenet_smith", f"schedule={schedule}") for schedule in ("decay", "growing", "pod")),
        *(("imagenet_goyal", f"{row}") for row in ("warmup=none", "scaling=none", "batch=64")),
        ("imagenet_mikami", "version=2,smoke"),
        ("imagenet_lamb", "batch=1024"),
    ],
)
def test_rows_of_recipes_set_nothing_without_effect(name, arg):
    assert explain_unused(resolve(recipe(name, arg))) == []


def test_another_option_than_the_recipes_names_what_was_of_that():
    config = recipe("digits_lars")
    config.optimizer.name = "sgd"
    config.optimizer.momentum_form = "rate_outside"
    (said,) = explain_unused(resolve(config))
    assert said == (
        "without effect: optimizer.momentum_correction=False (used only with "
        "optimizer.momentum_form="
        "'rate_inside')"
    )


# What a meaning cannot begin with that is to be read without the key before it.
FRAGMENTS = {"And", "Also", "Its", "Of", "Or", "Same", "Then", "These", "Those", "Which"}


def test_every_key_says_what_it_means():
    for name, key in KEYS.items():
        assert key.meaning.endswith("."), name
        assert key.meaning[0].isupper(), name
        assert key.meaning.split()[0] not in FRAGMENTS, name
        assert set(key.used_with) <= KEYS.keys()


def test_keys_that_count_have_a_unit():
    ends = {"_epochs": "epochs", "_steps": "updates", "_examples": "examples"}
    ends |= {"_seconds": "seconds", "_minutes": "minutes", "_mib": "MiB", "_gib": "GiB"}
    counted = {name: unit for name in KEYS for end, unit in ends.items() if name.endswith(end)}
    counted.pop("accumulation_steps")
    assert len(counted) > 30
    assert {name: KEYS[name].unit for name in counted} == counted


def test_defaults_are_unique_and_complete():
    assert dict(flatten(default_config())) == {name: key.default for name, key in KEYS.items()}
