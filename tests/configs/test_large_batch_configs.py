"""The configs of LARS, LAMB, Nesterov and SP-NGD at large minibatches, against their tables."""

import math
import pathlib
import runpy
from typing import NamedTuple

import numpy as np
import pytest

from lbsgd.run.config import resolve
from lbsgd.run.target import find_target
from lbsgd.schedule.learning_rate import LearningRate, build_learning_rate
from lbsgd.schedule.timeline import Timeline
from lbsgd.schedule.times import every
from lbsgd.system.errors import ConfigError
from lbsgd.tasks.classification import classification
from lbsgd.workers.placement import count_workers

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
LARS, LAMB, NESTEROV, SPNGD = (
    runpy.run_path(str(CONFIGS / f"imagenet_{name}.py"))["get_config"]
    for name in ("lars", "lamb", "nesterov", "spngd")
)
N = 1_281_167
# A handful of roundings in float64.
RTOL = 10 * np.finfo(np.float64).eps


def built(config) -> tuple[LearningRate, int]:
    """The rate, and the number of updates; the minibatch must be whole workers."""
    timeline = Timeline.constant(N, config.batch_size)
    assert count_workers(config.batch_size, config.worker_batch_size) > 0
    total = config.total_steps or timeline.update_at_epoch(config.total_epochs)
    return build_learning_rate(config, timeline, total), total


def polynomial(
    t, *, peak, warmup, total, end, past=0, power=2.0, warmup_power=1.0, begin=None
) -> float:
    """From 0 to the peak, then to the end rate on a curve that begins at an update."""
    if t < warmup:
        return peak * (t / warmup) ** warmup_power
    begin = warmup if begin is None else begin
    return end + (peak - end) * (1 - (t - begin) / (total - begin + past)) ** power


def assert_rates(rate: LearningRate, total: int, **keys) -> None:
    warmup = keys["warmup"]
    times = {0, 1, warmup // 2, max(warmup - 1, 0), warmup, warmup + 1, total // 2, total - 1}
    for t in times:
        expected = polynomial(t, total=total, **keys)
        # What is left of one is to one of 1e-16 only.
        np.testing.assert_allclose(
            float(rate.schedule(t)), expected, rtol=1e-12, atol=1e-12 * keys["peak"], err_msg=str(t)
        )


# --- LARS: MLPerf's reference convergence points ---------------------------------------------


class Point(NamedTuple):
    """A row of the table, and the epochs that the decay steps make of the whole training."""

    rate: float
    warmup: float
    momentum: float
    decay: float
    span: int
    converged: float
    last: int
    epochs: float


POINTS = {
    1632: Point(7.4, 2, 0.9, 5e-5, 204, 35.0, 27_476, 35.0),
    2048: Point(8.5, 5, 0.9, 2e-4, 64, 38.4, 24_022, 41.0),
    3264: Point(10.5, 2, 0.9, 5e-5, 204, 35.2, 13_817, 37.0),
    4096: Point(10, 5, 0.9, 2e-4, 64, 40.0, 12_511, 42.0),
    8192: Point(17, 5, 0.9, 2e-4, 64, 42.0, 6_568, 44.0),
    13056: Point(12.8, 9, 0.9, 2.5e-5, 204, 45.4, 4_455, 48.0),
    32768: Point(21.2, 16, 0.94, 2.5e-5, 128, 56.0, 2_189, 58.0),
    49152: Point(19.405, 24, 0.951807, 1e-4, 256, 68.0, 1_772, 70.8),
    58880: Point(23.246, 29, 0.951807, 1e-4, 230, 79.9, 1_739, 82.0),
    64480: Point(26, 31, 0.951807, 1e-4, 155, 86.1, 1_711, 90.0),
    65536: Point(24.699, 31, 0.951807, 1e-4, 128, 84.5, 1_652, 89.0),
    67840: Point(24.699, 31, 0.951807, 1e-4, 424, 85.9, 1_621, 91.0),
}


@pytest.mark.parametrize("batch_size", POINTS)
def test_a_convergence_point(x64, batch_size):
    point = POINTS[batch_size]
    config = resolve(LARS(f"batch={batch_size}"))
    rate, total = built(config)
    warmup = round(point.warmup * N / batch_size)
    assert config.batch_size == batch_size
    assert config.label_smoothing == 0.1
    # Training goes on until the target was reached, and no more than 5.2 epochs longer.
    assert point.last <= total <= point.last + 5.2 * N / batch_size
    assert total * batch_size / N == pytest.approx(point.epochs, abs=0.05)
    assert point.last * batch_size / N == pytest.approx(point.converged, abs=0.1)
    assert config.worker_batch_size * config.batch_norm.synced_workers == point.span
    assert rate.warmup_updates == warmup
    assert_rates(rate, total, peak=point.rate, warmup=warmup, end=1e-4)
    c = config.optimizer
    assert (c.name, c.momentum, c.weight_decay) == ("lars", point.momentum, point.decay)
    assert (c.momentum_form, c.momentum_correction, c.nesterov) == ("rate_inside", False, False)
    assert (c.trust_coefficient, c.trust_epsilon) == (0.001, 0.0)
    assert c.weight_decay_form == "coupled"


# Of the offsets that MLPerf allows, the epochs of evaluation up to 16, and the last.
@pytest.mark.parametrize(
    ("offset", "epochs"), [(0, [4, 8, 12, 16]), (2, [2, 6, 10, 14]), (3, [3, 7, 11, 15])]
)
@pytest.mark.parametrize("batch_size", [2048, 32768, 67840])
def test_the_protocol_of_mlperf(batch_size, offset, epochs):
    """75.9% top-1 are 12,050 errors among 50,000; evaluations are at the ends of their epochs."""
    config = LARS(f"batch={batch_size},mlperf")
    config.evaluation.offset_epochs = float(offset)
    config = resolve(config)
    target = find_target(config.stop_at, classification(1000))
    assert target.reached({"val_error": 100 * 12_050 / 50_000})
    assert not target.reached({"val_error": 100 * 12_051 / 50_000})
    timeline = Timeline.constant(N, batch_size)
    found = sorted(every(config, "evaluation", timeline, config.total_steps))
    assert found[:4] == [round(epoch * N / batch_size) for epoch in epochs]
    ends = [
        e for e in range(offset or 4, 100, 4) if round(e * N / batch_size) <= config.total_steps
    ]
    assert [timeline.epoch_of(t) for t in found] == ends


@pytest.mark.parametrize("arg", ["batch=4096", "reference=8192", "paper=8192"])
def test_the_protocol_changes_nothing_else(arg):
    plain, run = resolve(LARS(arg)), LARS(f"{arg},mlperf")
    assert run.stop_at == ("val_accuracy", 75.9)
    run.update({"stop_at": (), "evaluation": {"every_epochs": 1.0}})
    assert resolve(run) == plain


def test_the_default_is_a_point():
    assert resolve(LARS()) == resolve(LARS("")) == resolve(LARS("batch=32768"))


REFERENCE = {
    4096: (5, 5),
    8128: (5, 5),
    8192: (10, 5),
    16320: (10, 5),
    16384: (25, 5),
    32704: (25, 5),
    32768: (32, 14),
    65536: (32, 14),
}


@pytest.mark.parametrize("batch_size", REFERENCE)
def test_the_schedule_of_the_first_rounds(x64, batch_size):
    peak, epochs = REFERENCE[batch_size]
    config = resolve(LARS(f"reference={batch_size}"))
    rate, total = built(config)
    assert total == round(90 * N / batch_size)
    warmup = round(epochs * N / batch_size)
    assert_rates(rate, total, peak=peak, warmup=warmup, end=1e-4, past=1)


# B: gamma, epochs of warmup (OpenReview version).
PAPER = {256: (4, 0), 1024: (9, 5), 8192: (30, 5), 16384: (33, 12), 32768: (40, 12)}


@pytest.mark.parametrize("batch_size", PAPER)
def test_the_papers_rows(x64, batch_size):
    peak, epochs = PAPER[batch_size]
    config = resolve(LARS(f"paper={batch_size}"))
    rate, total = built(config)
    assert total == round(100 * N / batch_size)
    warmup = round(epochs * N / batch_size)
    assert rate.warmup_updates == warmup
    assert_rates(rate, total, peak=peak, warmup=warmup, end=0.0, begin=0)
    c = config.optimizer
    assert (c.name, c.momentum, c.weight_decay) == ("lars", 0.9, 5e-4)
    assert (c.trust_coefficient, c.trust_epsilon, c.trust_at_zero) == (0.001, 0.0, "formula")
    assert (c.momentum_form, c.momentum_correction, c.nesterov) == ("rate_inside", False, False)
    assert config.label_smoothing == 0


def test_the_papers_rate_drops_at_the_end_of_warmup(x64):
    """To 31 for 32K: 12 of 100 epochs are over by then."""
    rate, _ = built(resolve(LARS("paper=32768")))
    W = rate.warmup_updates
    assert float(rate.schedule(W - 1)) == pytest.approx(40.0, rel=0.01)
    assert float(rate.schedule(W)) == pytest.approx(40.0 * 0.88**2, rel=1e-3)


@pytest.mark.parametrize("arg", ["batch=4096", "reference=4096"])
def test_mlperfs_rows_keep_the_decay_from_warmup_and_the_ratio_of_one(arg):
    config = resolve(LARS(arg))
    assert (config.learning_rate.decay_from, config.optimizer.trust_at_zero) == ("warmup", "one")


@pytest.mark.parametrize("arg", ["batch=4097", "batch=x", "paper=4096", "reference=x", "size=3"])
def test_an_unknown_row_is_an_error(arg):
    with pytest.raises(ConfigError, match="variant"):
        LARS(arg)


# --- LAMB and Nesterov momentum --------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [512, 4096, 32768])
def test_lamb_scales_by_the_root_and_warms_up_in_proportion(x64, batch_size):
    config = resolve(LAMB(f"batch={batch_size}"))
    rate, total = built(config)
    assert total == round(90 * N / batch_size)
    if batch_size == 32768:
        assert total == 3519
    ratio = batch_size / 32768
    warmup = round(20 * ratio * N / batch_size)
    peak = 0.04 * math.sqrt(ratio)
    assert rate.full == pytest.approx(peak, rel=RTOL)
    assert_rates(rate, total, peak=peak, warmup=warmup, end=0.0, power=1.0)
    c = config.optimizer
    assert (c.name, c.beta1, c.beta2, c.epsilon) == ("lamb", 0.9, 0.999, 1e-6)
    assert (c.weight_decay, c.norm_clip) == (0.01, ())


def test_nesterov_is_the_schedule_of_nado(x64):
    config = resolve(NESTEROV())
    rate, total = built(config)
    assert (config.batch_size, total) == (32768, 2512)
    assert total * 32768 / N == pytest.approx(64, abs=0.3)
    keys = {"peak": 7.0, "warmup": 640, "end": 1e-6, "past": 1, "warmup_power": 2.5}
    assert_rates(rate, total, **keys)
    assert (config.optimizer.name, config.optimizer.nesterov) == ("sgd", True)
    assert config.optimizer.momentum_form == "rate_outside"


# --- SP-NGD ----------------------------------------------------------------------------------

# B: (alpha of mixup, p, e_start, e_end, eta0, m0, lambda, updates, epochs of the README).
CHAINERKFAC = {
    4096: (0.4, 11.0, 1, 53, 8.18e-3, 0.997, 2.5e-4, 10_948, 35),
    8192: (0.4, 8.0, 1, 53.5, 1.25e-2, 0.993, 2.5e-4, 5474, 35),
    16384: (0.4, 8.0, 1, 53.5, 2.5e-2, 0.985, 2.5e-4, 2737, 35),
    32768: (0.6, 3.5, 1.5, 49.5, 3.0e-2, 0.97, 2.0e-4, 1760, 45),
    65536: (0.6, 2.9, 2, 64.5, 4.0e-2, 0.95, 1.5e-4, 1173, 60),
    131072: (1.0, 3.0, 1, 95.0, 7.0e-2, 0.93, 1.0e-4, 782, 80),
}
PAPER_OF_SPNGD = {
    **CHAINERKFAC,
    8192: (0.4, 8.0, 1, 53.5, 1.25e-2, 0.993, 2.5e-4, 5434, 34.75),
    131072: (1.0, 2.9, 3, 107.6, 7.0e-2, 0.93, 1.0e-4, 873, 89.31),
}
ROWS_OF_SPNGD = [
    *(("batch", size, row) for size, row in CHAINERKFAC.items()),
    *(("paper", size, row) for size, row in PAPER_OF_SPNGD.items()),
]


@pytest.mark.parametrize(("table", "batch_size", "row"), ROWS_OF_SPNGD)
def test_a_row_of_spngd(x64, table, batch_size, row):
    _, power, start, end, peak, momentum, damping, updates, epochs = row
    config = resolve(SPNGD(f"{table}={batch_size}"))
    rate, total = built(config)
    assert (config.batch_size, config.worker_batch_size, total) == (batch_size, 32, updates)
    assert total * batch_size / N == pytest.approx(epochs, abs=0.05)
    first, last = (round(epoch * N / batch_size) for epoch in (start, end))
    assert (rate.full, rate.warmup_updates) == (peak, 0)
    for t in (0, first - 1, first, first + 1, total // 2, total - 1):
        left = min(1.0, (last - t) / (last - first))
        np.testing.assert_allclose(float(rate.schedule(t)), peak * left**power, rtol=1e-12)
    c = config.optimizer
    assert (c.name, c.momentum, c.damping, c.norm_damping) == ("spngd", momentum, damping, 16)
    assert (c.momentum_form, c.nesterov, c.weight_decay) == ("rate_inside", False, 0)
    of_code = ("resnet50d", True, "constant", "larger")
    form = (c.momentum_correction, c.momentum_schedule, c.weight_rescaling)
    papers = ("resnet50", False, "with_rate", "always")
    assert (config.model.name, *form) == (of_code if table == "batch" else papers)


def test_data_and_norms_of_spngd():
    config = resolve(SPNGD())
    assert config == resolve(SPNGD("batch=32768"))
    data = config.data
    assert (data.crop, data.image_size, data.crop_short_side, data.flip) == (
        "random",
        224,
        256,
        True,
    )
    assert (data.erasing, data.erasing_area, data.erasing_aspect) == (0.5, (0.02, 0.25), (0.3, 1))
    assert (data.erasing_transpose, data.std) == (True, (1, 1, 1))
    norm = config.batch_norm
    assert (norm.momentum, norm.epsilon, norm.initial_scale_std) == (0.9, 2e-5, 0.05)
    assert not config.model.zero_init_residual


@pytest.mark.parametrize("arg", ["batch=4097", "paper=x", "paper=256"])
def test_an_unknown_row_of_spngd_is_an_error(arg):
    with pytest.raises(ConfigError, match="no such row; known: 4096, 8192"):
        SPNGD(arg)


@pytest.mark.parametrize(
    ("name", "examples", "updates"),
    [("fashion_mnist", 60_000, 176), ("cifar10", 50_000, 488), ("digits", 1437, 126)],
)
def test_small_configs_of_spngd_share_a_recipe(name, examples, updates):
    """That of the digits, which second-order optimizers of one kind are compared by."""
    get_config = runpy.run_path(str(CONFIGS / f"{name}_spngd.py"))["get_config"]
    config = resolve(get_config())
    timeline = Timeline.constant(examples, config.batch_size)
    total = config.total_steps or timeline.update_at_epoch(config.total_epochs)
    rate = build_learning_rate(config, timeline, total)
    assert (total, rate.full, rate.decay_span) == (updates, 0.05, (0, updates))
    c = config.optimizer
    assert (c.name, c.damping, c.weight_decay) == ("spngd", 1e-3, 0)
    assert (c.weight_rescaling, c.momentum) == ("larger", 0.9)
    assert (c.fisher_share * config.worker_batch_size).is_integer()
