"""The configs whose batch grows, against the papers' numbers of updates."""

import pathlib
import runpy

import pytest

from lbsgd.run.config import default_config, resolve
from lbsgd.schedule.batch_growth import build_timeline, momentum_of_size
from lbsgd.schedule.learning_rate import build_learning_rate
from lbsgd.system.errors import ConfigError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
IMAGENET, CIFAR, DIGITS, FASHION = 1_281_167, 50_000, 1437, 60_000


def config_of(name: str, arg: str):
    return resolve(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](arg))


# Config, argument, training examples, batch sizes, updates: papers.md 3.2, 3.3, 3.4 and 4.1.
ROWS = [
    ("cifar10_growing", "row=original", CIFAR, [128], 78_125),
    ("cifar10_growing", "row=growing", CIFAR, [128, 640, 3200, 16_000], 28_875),
    ("cifar10_growing", "row=rate", CIFAR, [640, 3200, 5120], 6_406),
    ("cifar10_growing", "row=momentum", CIFAR, [3200, 5120], 2_305),
    ("cifar10_growing", "row=hybrid", CIFAR, [128, 640], 34_375),
    ("imagenet_smith", "schedule=decay", IMAGENET, [8192], 14_075),
    ("imagenet_smith", "schedule=growing", IMAGENET, [8192, 65_536], 5_865),
    ("imagenet_smith", "momentum=0.95", IMAGENET, [16_384, 65_536], 3_519),
    ("imagenet_smith", "momentum=0.975", IMAGENET, [32_768, 65_536], 2_346),
    ("imagenet_smith", "schedule=pod", IMAGENET, [8192, 16_384], 9_384),
    ("imagenet_mikami", "version=1", IMAGENET, [34_816, 69_632], None),
    ("imagenet_mikami", "version=2", IMAGENET, [27_648, 55_296], None),
    ("digits_growing", "", DIGITS, [128, 640, 1024], None),
    ("fashion_mnist_growing", "", FASHION, [128, 640, 3200], None),
]


@pytest.mark.parametrize(("name", "arg", "count", "sizes", "updates"), ROWS)
def test_a_row_has_the_papers_updates(name, arg, count, sizes, updates):
    config = config_of(name, arg)
    timeline = build_timeline(config, count)
    assert [segment.batch_size for segment in timeline.segments] == sizes
    assert all(size % config.worker_batch_size == 0 for size in sizes)
    total = timeline.update_at_epoch(config.total_epochs)
    if updates:
        assert abs(total - updates) <= len(sizes)
    elif name == "imagenet_mikami":
        # Between all of the run at the one size and at the other; papers.md 4.1.
        assert {"version=1": 1656, "version=2": 2086}[arg] <= total
        assert total <= 90 * count / sizes[0] + 1


@pytest.mark.parametrize(
    ("name", "arg", "count"),
    [row[:3] for row in ROWS if row[4] or "growing" in row[0]],
)
def test_the_noise_is_that_of_the_twin(name, arg, count):
    """rate / batch size at the middle of each epoch, against the same config that decays."""
    config = config_of(name, arg)
    if not config.batch_growth.in_place_of_decay:
        assert config.batch_growth.sizes == ()
        return
    timeline = build_timeline(config, count)
    schedule = build_learning_rate(
        config, timeline, timeline.update_at_epoch(config.total_epochs)
    ).schedule
    c = config.learning_rate
    full = c.reference_learning_rate
    if c.scaling == "linear":
        full *= config.batch_size / c.reference_batch_size
    for epoch in range(6, int(config.total_epochs)):  # past the warmup
        update = timeline.update_at_epoch(epoch + 0.5)
        if any(abs(epoch + 0.5 - decay) < 1 for decay in c.decay_epochs):
            continue
        passed = sum(decay < epoch + 0.5 for decay in c.decay_epochs)
        expected = full * c.decay_factor**passed / config.batch_size
        found = float(schedule(update)) / timeline.batch_size(update)
        assert found == pytest.approx(expected, rel=1e-6), epoch


@pytest.mark.parametrize("version", ["1", "2"])
def test_batch_size_control_keeps_the_noise_by_the_momentum(version):
    """1 - m halves where the batch doubles (papers.md 4.3)."""
    config = config_of("imagenet_mikami", f"version={version}")
    few, many = (segment.batch_size for segment in build_timeline(config, IMAGENET).segments)
    assert momentum_of_size(config, few) == 0.9
    assert momentum_of_size(config, many) == pytest.approx(0.95, rel=1e-12)
    assert (config.allreduce.algorithm, config.allreduce.dtype) == ("torus_2d", "float16")


@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
def test_twins_differ_in_nothing_but_growth(data):
    grows, decays = (config_of(f"{data}_growing", arg).to_dict() for arg in ("", "decay"))
    growth = grows.pop("batch_growth"), decays.pop("batch_growth")
    assert grows == decays
    assert growth[0]["in_place_of_decay"]
    assert growth[1] == default_config().batch_growth.to_dict()


@pytest.mark.parametrize(
    ("name", "arg", "message"),
    [
        ("imagenet_smith", "schedule=step", "decay, growing or pod"),
        ("imagenet_smith", "momentum=0.5", "0.9, 0.95, 0.975"),
        ("imagenet_mikami", "version=3", "1 or 2"),
        ("cifar10_growing", "row=3", "original, growing, rate, momentum, hybrid"),
        ("digits_growing", "grow", "no variant 'grow'; known: decay"),
        ("digits_lars", "x", "no variant 'x'"),
        ("digits_nesterov", "x", "no variant 'x'"),
    ],
)
def test_unknown_rows_are_named(name, arg, message):
    with pytest.raises(ConfigError, match=message):
        config_of(name, arg)


def test_lars_and_nesterov_differ_in_the_optimizer_and_its_rate():
    """So that their errors say something of the optimizer: one schedule, one minibatch."""
    for data in ("digits", "fashion_mnist"):
        lars, nesterov = (
            config_of(f"{data}_{name}", "").to_dict() for name in ("lars", "nesterov")
        )
        assert lars["batch_size"] == nesterov["batch_size"] == 1024
        for config in (lars, nesterov):
            del config["optimizer"]
            del config["learning_rate"]["reference_learning_rate"]
            del config["learning_rate"]["decay_past_end_steps"]
        assert lars == nesterov
