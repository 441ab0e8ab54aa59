"""The learning rate, against the settings of Goyal et al. 2017 in Python floats."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.run.config import default_config
from lbsgd.schedule import functions as rates
from lbsgd.schedule.learning_rate import LearningRate, build_learning_rate
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError

N = 1_281_167
EPOCHS = 90
K = 1024
# A handful of roundings in float64.
RTOL = 10 * np.finfo(np.float64).eps


def updates(epochs: float, batch_size: int) -> int:
    return round(epochs * N / batch_size)


def rate_of(batch_size: int, total: int | None = None, **keys: object) -> LearningRate:
    """The rate of 90 epochs of ImageNet with these `learning_rate` keys."""
    config = default_config()
    config.batch_size = batch_size
    config.learning_rate.update(keys)
    total = updates(EPOCHS, batch_size) if total is None else total
    return build_learning_rate(config, Timeline.constant(N, batch_size), total)


def assert_rates(rate: LearningRate, expected: dict[int, float]) -> None:
    for update, value in expected.items():
        np.testing.assert_allclose(
            float(rate.schedule(update)), value, rtol=RTOL, err_msg=f"update {update}"
        )


# --- the paper's tables ----------------------------------------------------------------------


class Row(NamedTuple):
    """A row of a table: the setting, and the rate that the table gives for it."""

    batch_size: int
    reference: float
    scaling: str
    warmup: str
    eta: float


TABLES = {
    "1, baseline": Row(256, 0.1, "linear", "gradual", 0.1),
    "1, no warmup": Row(8 * K, 0.1, "linear", "none", 3.2),
    "1, constant warmup": Row(8 * K, 0.1, "linear", "constant", 3.2),
    "1, gradual warmup": Row(8 * K, 0.1, "linear", "gradual", 3.2),
    "2a, 256 at 0.05": Row(256, 0.05, "linear", "gradual", 0.05),
    "2a, 256 at 0.10": Row(256, 0.10, "linear", "gradual", 0.10),
    "2a, 256 at 0.20": Row(256, 0.20, "linear", "gradual", 0.20),
    "2a, 8k at 0.05 x 32": Row(8 * K, 0.05, "linear", "gradual", 0.05 * 32),
    "2a, 8k at 0.10 x 32": Row(8 * K, 0.10, "linear", "gradual", 0.10 * 32),
    "2a, 8k at 0.20 x 32": Row(8 * K, 0.20, "linear", "gradual", 0.20 * 32),
    "2a, 8k at 0.10": Row(8 * K, 0.10, "none", "gradual", 0.10),
    "2a, 8k at 0.10 x sqrt 32": Row(8 * K, 0.10, "sqrt", "gradual", 0.10 * math.sqrt(32)),
}


@pytest.fixture(params=TABLES.values(), ids=TABLES)
def row(request) -> Row:
    return request.param


def rate_of_row(row: Row) -> LearningRate:
    return rate_of(
        row.batch_size,
        reference_learning_rate=row.reference,
        scaling=row.scaling,
        warmup=row.warmup,
    )


def test_the_full_rate_of_each_row(x64, row):
    rate = rate_of_row(row)
    assert rate.full == pytest.approx(row.eta, rel=RTOL)
    assert_rates(rate, {updates(10, row.batch_size): row.eta})


def test_the_warmup_of_each_row(x64, row):
    """Update 0 has the reference rate; the last of warmup is one increment below the full one."""
    rate = rate_of_row(row)
    if row.batch_size == 256 or row.warmup == "none":
        assert rate.warmup_updates == 0
        assert_rates(rate, {0: row.eta, 1: row.eta, updates(5, row.batch_size): row.eta})
        return
    W = updates(5, row.batch_size)
    assert rate.warmup_updates == W == 782
    increment = (row.eta - row.reference) / W if row.warmup == "gradual" else 0.0
    expected = {t: row.reference + t * increment for t in (0, 1, W // 2, W - 1)}
    assert_rates(rate, {**expected, W: row.eta, W + 1: row.eta})


def test_the_decay_of_each_row(x64, row):
    """By 10 at epochs 30, 60 and 80: the update at the boundary is the first with the new rate."""
    rate = rate_of_row(row)
    boundaries = tuple(updates(epoch, row.batch_size) for epoch in (30, 60, 80))
    assert rate.decay_updates == boundaries
    for passed, boundary in enumerate(boundaries):
        before, after = row.eta * 0.1**passed, row.eta * 0.1 ** (passed + 1)
        assert_rates(rate, {boundary - 1: before, boundary: after, boundary + 1: after})
    assert_rates(rate, {updates(EPOCHS, row.batch_size) - 1: row.eta * 0.1**3})


FIGURES = {
    **{64: 0.025, 128: 0.05, 256: 0.1, 512: 0.2, K: 0.4, 2 * K: 0.8, 4 * K: 1.6, 8 * K: 3.2},
    **{16 * K: 6.4, 32 * K: 12.8, 64 * K: 25.6},
}


@pytest.mark.parametrize(("batch_size", "eta"), FIGURES.items())
def test_the_batch_sizes_of_figures_1_and_3(x64, batch_size, eta):
    """Linear scaling both ways; gradual warmup over 5 epochs where kn > 256, else none."""
    rate = rate_of(batch_size)
    assert rate.full == pytest.approx(eta, rel=RTOL)
    W = updates(5, batch_size) if batch_size > 256 else 0
    assert rate.warmup_updates == W
    assert_rates(rate, {0: 0.1 if W else eta, W: eta})


def test_the_increment_at_8k(x64):
    """782 updates of 0.003964 from 0.1 to 3.2."""
    rate = rate_of(8 * K)
    assert rate.warmup_updates == 782
    ramp = np.asarray(jax.jit(jax.vmap(rate.schedule))(np.arange(783)))
    assert ramp[0] == pytest.approx(0.1, rel=RTOL)
    assert ramp[782] == pytest.approx(3.2, rel=RTOL)
    # The reference gives the increment to four digits.
    assert np.diff(ramp).round(6) == pytest.approx(0.003964, abs=1e-12)


def test_a_warmup_of_a_few_updates(x64):
    rate = rate_of(8 * K, warmup_epochs=0.0, warmup_steps=4)
    assert_rates(rate, {0: 0.1, 1: 0.875, 2: 1.65, 3: 2.425, 4: 3.2})


@pytest.mark.parametrize("warmup", ["gradual", "constant"])
def test_a_decay_at_the_end_of_warmup_comes_at_once(x64, warmup):
    """Update W belongs to what comes after warmup, not to the ramp."""
    rate = rate_of(8 * K, warmup=warmup, decay_epochs=(5.0,))
    assert rate.decay_updates == (rate.warmup_updates,) == (782,)
    assert_rates(rate, {782: 0.32, 783: 0.32})


def test_a_warmup_of_examples(x64):
    rate = rate_of(8 * K, warmup_epochs=0.0, warmup_examples=4 * 8 * K)
    assert rate.warmup_updates == 4
    assert_rates(rate, {2: 1.65, 4: 3.2})


@pytest.mark.parametrize("batch_size", [64, 256])
@pytest.mark.parametrize("warmup", ["gradual", "constant"])
def test_no_warmup_up_to_the_reference_batch_size(x64, batch_size, warmup):
    """Not even where a warmup of no length is asked for."""
    for keys in ({}, {"warmup_epochs": 0.0}):
        rate = rate_of(batch_size, warmup=warmup, **keys)
        assert rate.warmup_updates == 0
        assert_rates(rate, {0: 0.1 * batch_size / 256})


# --- other scalings and decays ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "factor"), [("linear", lambda r: r), ("sqrt", math.sqrt), ("none", lambda r: 1.0)]
)
@pytest.mark.parametrize("batch_size", [32, 128, 256, 1000, 8192])
def test_scaling_rules(rule, factor, batch_size):
    found = rates.scale_learning_rate(0.3, 128, batch_size, rule)
    assert found == pytest.approx(0.3 * factor(batch_size / 128), rel=RTOL)


def test_an_unknown_scaling_rule_is_an_error():
    with pytest.raises(KeyError):
        rates.scale_learning_rate(0.1, 256, 256, "cubic")


def cosine(rate: float, progress: float) -> float:
    return rate * (1 + math.cos(math.pi * progress)) / 2


def squared(rate: float, progress: float) -> float:
    return rate * (1 - progress) ** 2


def cubed(rate: float, progress: float) -> float:
    return rate * (1 - progress) ** 3


DECAYS = {
    "cosine": ({"decay": "cosine"}, cosine),
    "polynomial": ({"decay": "polynomial"}, squared),
    "polynomial of power 3": ({"decay": "polynomial", "decay_power": 3.0}, cubed),
}


@pytest.mark.parametrize(("keys", "closed_form"), DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("warmup", ["gradual", "constant", "none"])
def test_smooth_decays_run_from_warmup_to_the_end(x64, keys, closed_form, warmup):
    W, T, full = 100, 1100, 3.2
    length = {"warmup_epochs": 0.0, "warmup_steps": W}
    rate = rate_of(8 * K, total=T, warmup=warmup, **length, **keys)
    assert rate.decay_updates == ()
    start = 0 if warmup == "none" else W
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        update = start + round(progress * (T - start))
        found = float(rate.schedule(update))
        # A cosine near its zero is exact only to the rounding of its largest value.
        assert found == pytest.approx(closed_form(full, progress), rel=RTOL, abs=RTOL * full)
    if warmup != "none":
        assert_rates(rate, {0: 0.1, W // 2: 1.65 if warmup == "gradual" else 0.1})


@pytest.mark.parametrize(("keys", "closed_form"), DECAYS.values(), ids=DECAYS)
@pytest.mark.parametrize("warmup", ["gradual", "constant", "none"])
def test_decays_from_the_start_of_training(x64, keys, closed_form, warmup):
    """Warmup goes to the full rate, and is followed by the curve that began at update 0."""
    W, T, full = 100, 1000, 3.2
    length = {"warmup_epochs": 0.0, "warmup_steps": W}
    rate = rate_of(8 * K, total=T, warmup=warmup, decay_from="start", **length, **keys)
    assert rate.full == full
    for update in (*([0, 50, 99] if warmup == "none" else []), 100, 101, 500, 900, 1000):
        found = float(rate.schedule(update))
        assert found == pytest.approx(closed_form(full, update / T), rel=RTOL, abs=RTOL * full)
    if warmup == "gradual":
        assert_rates(rate, {t: 0.1 + 3.1 * t / W for t in (0, 50, 99)})
    if warmup == "constant":
        assert_rates(rate, dict.fromkeys((0, 50, 99), 0.1))


def test_a_decay_from_the_start_past_the_end_to_a_rate(x64):
    keys = {"decay": "polynomial", "decay_end_rate": 0.2, "decay_past_end_steps": 250}
    length = {"warmup_epochs": 0.0, "warmup_steps": 100}
    rate = rate_of(8 * K, total=1000, decay_from="start", **length, **keys)
    assert_rates(rate, {t: 0.2 + 3.0 * (1 - t / 1250) ** 2 for t in (100, 500, 999, 1250)})


def test_polynomial_decay_to_a_rate_above_zero(x64):
    schedule = rates.polynomial_decay(2.0, 10, 30, 2.0, end_rate=0.5)
    found = [float(schedule(t)) for t in (0, 10, 20, 30, 40)]
    assert found == pytest.approx([2.0, 2.0, 0.875, 0.5, 0.5], rel=RTOL)


# --- SP-NGD: a span of its own ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "power", "start", "end", "peak", "epochs"),
    [(4096, 11.0, 1.0, 53.0, 8.18e-3, 35), (32768, 3.5, 1.5, 49.5, 3e-2, 45)],
)
def test_a_decay_from_an_epoch_to_one_past_the_end(
    x64, batch_size, power, start, end, peak, epochs
):
    """Osawa et al.: eta0 up to e_start, then eta0 (1 - (e - e_start) / (e_end - e_start))^p."""
    total = updates(epochs, batch_size)
    keys = {"reference_learning_rate": peak, "scaling": "none", "warmup": "none"}
    keys |= {"decay": "polynomial", "decay_power": power}
    keys |= {"decay_start_epochs": start, "decay_end_epochs": end}
    rate = rate_of(batch_size, total=total, **keys)
    first, last = updates(start, batch_size), updates(end, batch_size)
    assert (rate.warmup_updates, rate.decay_span) == (0, (first, last))
    assert_rates(rate, dict.fromkeys((0, 1, first - 1, first), peak))
    assert_rates(
        rate,
        {
            t: peak * ((last - t) / (last - first)) ** power
            for t in (first + 1, 2 * first, total // 2, total - 1, total, last)
        },
    )


@pytest.mark.parametrize("keys", [{"decay": "polynomial"}, {"decay": "cosine"}])
def test_the_span_of_a_decay_in_every_unit(x64, keys):
    """Between the warmup and the decay the rate is the full one, and after the decay what is left.

    An update is 8K examples.
    """
    length = {"warmup_epochs": 0.0, "warmup_steps": 10}
    by_steps = {"decay_start_steps": 100, "decay_end_steps": 300}
    by_examples = {"decay_start_examples": 100 * 8 * K, "decay_end_examples": 300 * 8 * K}
    one, other = (rate_of(8 * K, total=500, **length, **keys, **s) for s in (by_steps, by_examples))
    half = 3.2 * (0.25 if keys["decay"] == "polynomial" else 0.5)
    for rate in (one, other):
        assert_rates(rate, {9: 0.1 + 3.1 * 0.9, 10: 3.2, 100: 3.2, 200: half})
        for update in (300, 400, 500):
            assert float(rate.schedule(update)) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("span", "says"),
    [
        ({"decay_start_steps": 99}, r"decay_start_\* is update 99, within the warmup of 100"),
        ({"decay_end_steps": 100}, r"decay_end_\* is update 100, and the decay begins at 100"),
        ({"decay_start_steps": 200, "decay_end_steps": 150}, r"begins at 200; end later"),
        ({"decay_start_examples": 9}, r"decay_start_examples=9: 9 examples are less than one up"),
    ],
)
def test_a_span_that_makes_no_sense_is_an_error(span, says):
    keys = {"warmup_epochs": 0.0, "warmup_steps": 100, "decay": "polynomial"}
    with pytest.raises(ConfigError, match=says):
        rate_of(8 * K, total=1000, **keys, **span)


# --- schedules of MLPerf and Nado et al. -----------------------------------------------------


def of_nado(t, *, base, start, end, warmup, total, warmup_power, power) -> float:
    """Section 8.5's schedule in Python: the decay would be over one update after the last."""
    if t < warmup:
        r = (t / warmup) ** warmup_power
        return base * r + start * (1 - r)
    return end + (base - end) * (1 - (t - warmup) / (total - warmup + 1)) ** power


@pytest.mark.parametrize("batch_size", [64, 256, 8 * K])
@pytest.mark.parametrize("warmup_power", [0.5, 1.0, 2.5])
def test_warmup_from_zero_by_a_power_and_decay_past_the_end(x64, warmup_power, batch_size):
    """At, below and above the reference size: from zero there is always something to warm up."""
    W, T, full = 100, 1100, 0.1 * batch_size / 256
    rate = rate_of(
        batch_size,
        total=T,
        warmup_from="zero",
        warmup_power=warmup_power,
        warmup_epochs=0.0,
        warmup_steps=W,
        decay="polynomial",
        decay_power=3.0,
        decay_end_rate=1e-4,
        decay_past_end_steps=1,
    )
    keys = {"base": full, "start": 0.0, "end": 1e-4, "warmup": W, "total": T}
    keys |= {"warmup_power": warmup_power, "power": 3.0}
    assert (rate.warmup_updates, rate.warmup_rate) == (W, 0.0)
    assert_rates(rate, {t: of_nado(t, **keys) for t in (0, 1, 50, 99, 100, 101, 600, 1099)})


@pytest.mark.parametrize("past", [0, 1, 500])
def test_the_end_rate_is_reached_at_the_end_or_past_it(x64, past):
    T = 1000
    keys = {"warmup": "none", "decay": "polynomial", "decay_end_rate": 0.01}
    rate = rate_of(256, total=T, decay_past_end_steps=past, **keys)
    assert_rates(rate, {T + past: 0.01, T + past + 1: 0.01, 0: 0.1})
    assert float(rate.schedule(T + past - 1)) > 0.01
    assert float(rate.schedule(T - 1)) == pytest.approx(
        0.01 + 0.09 * ((1 + past) / (T + past)) ** 2
    )


def test_gradual_warmup_from_the_reference_by_a_power(x64):
    rate = rate_of(8 * K, warmup_epochs=0.0, warmup_steps=4, warmup_power=2.0)
    assert rate.warmup_rate == 0.1
    assert_rates(rate, {t: 0.1 + 3.1 * (t / 4) ** 2 for t in range(4)} | {4: 3.2})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"warmup": "constant", "warmup_from": "zero"}, r"rate of 0; set .*warmup_from=reference"),
        ({"decay": "polynomial", "decay_end_rate": 4.0}, r"decay_end_rate=4 is above .* 3\.2"),
    ],
)
def test_schedules_that_make_no_sense_are_errors(keys, says):
    with pytest.raises(ConfigError, match=says):
        rate_of(8 * K, **keys)


def test_no_decay(x64):
    rate = rate_of(256, decay="none")
    assert rate.decay_updates == ()
    last = updates(EPOCHS, 256) - 1
    assert_rates(rate, {0: 0.1, last // 2: 0.1, last: 0.1})


def test_another_factor_and_other_epochs(x64):
    rate = rate_of(K, decay_epochs=(10.0, 12.5), decay_factor=0.5)
    first, second = updates(10, K), updates(12.5, K)
    assert rate.decay_updates == (first, second)
    assert_rates(rate, {first - 1: 0.4, first: 0.2, second - 1: 0.2, second: 0.1})


def test_step_decay_without_boundaries_is_constant(x64):
    assert_rates(rate_of(256, decay_epochs=()), {0: 0.1, updates(EPOCHS, 256) - 1: 0.1})


# --- what a schedule takes and gives ---------------------------------------------------------

SCHEDULES = {
    f"{warmup} warmup, {decay}": {"warmup": warmup, "decay": decay}
    for warmup in ("gradual", "constant", "none")
    for decay in ("steps", "cosine", "polynomial", "none")
}
SCHEDULES["from the start"] = {"decay": "polynomial", "decay_from": "start"}
SCHEDULES["of a span"] = {
    "decay": "polynomial",
    "decay_start_epochs": 6.0,
    "decay_end_epochs": 120.0,
}


@pytest.mark.parametrize("keys", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_take_integers_of_every_kind(keys):
    """Python's, numpy's, a device's and traced ones, to a float32 scalar without 64-bit types."""
    schedule = rate_of(8 * K, **keys).schedule
    compiled = jax.jit(schedule)
    # Of the start, warmup, its end, after the first decay, and near the end.
    for update in (0, 391, 782, 5000, 14_000):
        expected = schedule(update)
        assert (expected.dtype, expected.shape) == (jnp.float32, ())
        for form in (np.int64(update), jnp.int32(update)):
            found = schedule(form)
            assert (found.dtype, found.shape) == (jnp.float32, ())
            np.testing.assert_array_equal(found, expected)
        traced = compiled(jnp.int32(update))
        assert (traced.dtype, traced.shape) == (jnp.float32, ())
        # The compiler may order a handful of float32 operations on numbers up to 3.2 otherwise.
        np.testing.assert_allclose(traced, expected, rtol=0, atol=10 * 6e-8 * 3.2)


@pytest.mark.parametrize("keys", SCHEDULES.values(), ids=SCHEDULES)
def test_float32_rates_are_the_float64_ones_rounded(keys):
    """Over a whole run; so the update index is exact in float32 and no boundary moves."""
    schedule = rate_of(8 * K, **keys).schedule
    every = jnp.arange(updates(EPOCHS, 8 * K), dtype=jnp.int32)
    single = np.asarray(jax.jit(jax.vmap(schedule))(every))
    jax.config.update("jax_enable_x64", True)
    try:
        double = np.asarray(jax.jit(jax.vmap(rate_of(8 * K, **keys).schedule))(every))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    # Ten roundings of numbers up to 3.2.
    np.testing.assert_allclose(single, double, rtol=0, atol=10 * 6e-8 * 3.2)


def test_schedules_give_float64_with_64_bit_types(x64):
    for keys in SCHEDULES.values():
        assert rate_of(8 * K, **keys).schedule(jnp.int32(3)).dtype == jnp.float64


# --- what a user can get wrong ---------------------------------------------------------------


@pytest.mark.parametrize("warmup", ["gradual", "constant"])
def test_a_warmup_longer_than_training_is_an_error(warmup):
    with pytest.raises(ConfigError, match=r"warmup of 782 updates .* training of 781"):
        rate_of(8 * K, total=781, warmup=warmup)
    assert rate_of(8 * K, total=782, warmup=warmup).warmup_updates == 782


@pytest.mark.parametrize("warmup", ["gradual", "constant"])
def test_a_warmup_of_no_length_is_an_error(warmup):
    with pytest.raises(ConfigError, match=r"needs a length.*warmup_epochs"):
        rate_of(8 * K, warmup=warmup, warmup_epochs=0.0)
    short = r"learning_rate\.warmup_epochs=0\.001: 0\.001 epochs of .* images are less than one"
    with pytest.raises(ConfigError, match=short):
        rate_of(8 * K, warmup=warmup, warmup_epochs=1e-3)


def test_a_decay_before_the_first_update_is_an_error():
    with pytest.raises(ConfigError, match=r"decay_epochs=.*: 0\.001 epochs of .* decay later"):
        rate_of(8 * K, warmup="none", decay="steps", decay_epochs=(1e-3, 30.0))


def test_two_lengths_of_warmup_are_an_error():
    with pytest.raises(ConfigError, match=r"warmup_epochs=5\.0 and warmup_steps=10"):
        rate_of(8 * K, warmup_steps=10)
