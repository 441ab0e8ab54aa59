"""Batch sizes that change: the numbers of Smith et al., and runs against loops written by hand."""

import itertools
from collections.abc import Iterator
from fractions import Fraction

import jax
import numpy as np
import pytest
from hanging import HANG_SECONDS
from hypothesis import given, settings
from hypothesis import strategies as st

from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.run.build import Run, build
from lbsgd.run.config import default_config, resolve
from lbsgd.run.explain import explain
from lbsgd.run.program import CompiledSteps
from lbsgd.run.record.metrics import read_metrics
from lbsgd.schedule.batch_growth import build_timeline, growing_twin
from lbsgd.schedule.learning_rate import build_learning_rate
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError
from lbsgd.train import run
from lbsgd.workers.fit import memory_of

CIFAR = 50_000


def config(**keys: object):
    """Digits in float64: 64, then 128 and 256 examples from 8 workers of 8 on."""
    there = default_config()
    there.update(
        {
            "dtype": "float64",
            "batch_size": 64,
            "worker_batch_size": 8,
            "total_steps": 12,
            "devices": 1,
            "model": {"name": "cifar_resnet8", "width": 0.25},
            "learning_rate": {"reference_batch_size": 64, "decay": "none"},
            "batch_growth": {"sizes": (128, 256), "at_steps": (4, 8)},
            "data": {"crop": "none"},
            "log": {"every_steps": 1, "sinks": ()},
        }
    )
    there.update_from_flattened_dict(keys)
    return resolve(there)


def smith(batch_size: int, **growth: object):
    """The CIFAR-10 schedules of Smith et al.: factor 5 at epochs 60, 120 and 160."""
    there = default_config()
    there.update({"batch_size": batch_size, "worker_batch_size": 128})
    there.learning_rate.update({"decay_epochs": (60.0, 120.0, 160.0), "decay_factor": 0.2})
    there.batch_growth.update(growth)
    return resolve(there)


@pytest.mark.parametrize(
    ("first", "growth", "updates"),
    [
        (128, {}, 78_125),
        (128, {"in_place_of_decay": True}, 28_875),
        (640, {"in_place_of_decay": True, "largest": 5120}, 6_406),
        (3200, {"in_place_of_decay": True, "largest": 5120}, 2_305),
    ],
)
def test_updates_of_smith_et_al(first, growth, updates):
    """papers.md 3.2, rounded once at each boundary."""
    timeline = build_timeline(smith(first, **growth), CIFAR)
    assert abs(timeline.update_at_epoch(200) - updates) <= len(timeline.segments)


def test_twin_of_smith_s_second_schedule():
    assert growing_twin(128, (60, 120, 160), 0.2) == [
        (0, 128, 1),
        (60, 640, 1),
        (120, 3200, 1),
        (160, 16000, 1),
    ]


def test_past_the_cap_the_rate_decays():
    """3200 to 5120 is a factor 1.6, which leaves 3.125 of the 5; after that all 5."""
    assert growing_twin(3200, (60, 120), 0.2, largest=5120) == [
        (0, 3200, 1),
        (60, 5120, Fraction(1) / Fraction("3.125")),
        (120, 5120, Fraction(1) / Fraction("15.625")),
    ]


@given(
    st.integers(1, 50),
    st.integers(1, 64),
    st.fractions("1/20", "19/20", max_denominator=50),
    st.integers(0, 6),
    st.integers(0, 10**5),
)
@settings(deadline=None)
def test_a_twin_keeps_the_noise_of_its_decay(workers, n, factor, decays, extra):
    """rate / batch size, exactly; sizes never shrink, are whole workers, and keep the cap."""
    first, epochs = workers * n, [10 * (i + 1) for i in range(decays)]
    largest = first + extra if extra else 0
    twin = growing_twin(first, epochs, factor, worker_batch_size=n, largest=largest)
    assert [phase.epoch for phase in twin] == [0, *epochs]
    for passed, phase in enumerate(twin):
        assert phase.rate / phase.batch_size == factor**passed / first
        assert phase.batch_size % n == 0
        assert not largest or phase.batch_size <= largest
        # It could not be a worker larger.
        wanted = min(first / factor**passed, largest or float("inf"))
        assert phase.batch_size <= wanted < phase.batch_size + n
    assert all(a.batch_size <= b.batch_size for a, b in itertools.pairwise(twin))


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 99)), max_size=4),
    st.integers(1, 99),
    st.integers(0, 60),
)
@settings(deadline=None)
def test_sizes_by_update(changes, first, updates):
    starts = list(itertools.accumulate(gap for gap, _ in changes))
    sizes = [size for _, size in changes]
    timeline = Timeline.from_updates(1000, [(0, first), *zip(starts, sizes)])
    seen = 0
    for update in range(updates):
        passed = sum(start <= update for start in starts)
        assert timeline.batch_size(update) == (first, *sizes)[passed]
        assert timeline.examples_seen(update) == seen
        seen += timeline.batch_size(update)
    expected = dict.fromkeys(timeline.batch_size(t) for t in range(updates))
    assert timeline.sizes_between(0, updates) == list(expected)


def batches_of(parts: Run) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each update, counted through the permutation by hand."""
    position = 0
    images = np.stack([parts.feed.splits.train[i][0] for i in range(len(parts.feed.splits.train))])
    labels = np.array([parts.feed.splits.train[i][1] for i in range(len(parts.feed.splits.train))])
    order = parts.feed.train_batches().order
    for size in [64] * 4 + [128] * 4 + [256] * 4:
        _, examples = order(position + np.arange(size))
        yield images[examples].reshape(-1, 8, 8, 8, 1), labels[examples].reshape(-1, 8)
        position += size


def loop_by_hand(parts: Run, momenta: list[float], rates: list[float]):
    """Parameters after Nesterov SGD with coupled decay, one worker after the other."""

    def loss(params, images, labels):
        logits, _ = parts.plan.network.module.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        log_p = jax.nn.log_softmax(logits)
        return -log_p[np.arange(8), labels].mean()

    state = parts.program.start()
    params, stats = state.params, state.batch_stats
    gradient_of = jax.jit(jax.grad(loss))
    buffer = jax.tree.map(np.zeros_like, params)
    kernels = jax.tree.map(lambda role: role == "kernel", parts.plan.outline.roles)
    for (images, labels), m, rate in zip(batches_of(parts), momenta, rates, strict=True):
        images = (images / 255.0 - 0.5) / 0.5
        each = [gradient_of(params, x, y) for x, y in zip(images, labels)]
        g = jax.tree.map(lambda *workers: np.mean(workers, axis=0), *each)
        g = jax.tree.map(lambda g, w, k: g + 1e-4 * np.asarray(w) * k, g, params, kernels)
        buffer = jax.tree.map(lambda u, g, m=m: m * u + g, buffer, g)
        params = jax.tree.map(
            lambda w, u, g, m=m, r=rate: np.asarray(w) - r * (g + m * u), params, buffer, g
        )
    return params


def trained(parts: Run):
    """State and metrics after all updates, with the run's own steps."""
    state, metrics = parts.program.start(), []
    steps, numbers = CompiledSteps(parts.program, 0), parts.program.numbers
    for update, batch in enumerate(parts.feed.training(0)):
        state, values = steps(update)(state, batch, numbers.at(update))
        metrics.append(jax.device_get(values) | numbers.reported(update))
    steps.close()
    return state, metrics


@pytest.mark.parametrize(
    ("compensate", "momenta", "rates", "normalization"),
    [
        pytest.param("none", (0.9, 0.9, 0.9), (0.1, 0.1, 0.1), "batch", marks=pytest.mark.long),
        pytest.param("rate", (0.9, 0.9, 0.9), (0.1, 0.2, 0.4), "batch", marks=pytest.mark.long),
        pytest.param(
            "momentum", (0.9, 0.95, 0.975), (0.1, 0.1, 0.1), "batch", marks=pytest.mark.long
        ),
        # Which is compiled sooner.
        ("momentum", (0.9, 0.95, 0.975), (0.1, 0.1, 0.1), "none"),
    ],
)
def test_growing_run_is_the_loop_by_hand(x64, compensate, momenta, rates, normalization):
    """float64, 12 updates: 1e-9 leaves room for sums in another order and no more."""
    keys = {"batch_growth.compensate": compensate, "model.normalization": normalization}
    parts = build(config(**keys))
    found, metrics = trained(parts)
    expected = loop_by_hand(parts, np.repeat(momenta, 4).tolist(), np.repeat(rates, 4).tolist())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found.params, expected
    )
    sizes = np.repeat((64, 128, 256), 4)
    assert [int(values["batch_size"]) for values in metrics] == sizes.tolist()
    noise = np.repeat(rates, 4) * 1437 / (sizes * (1 - np.repeat(momenta, 4)))
    np.testing.assert_allclose([v["sgd_noise_scale"] for v in metrics], noise, rtol=1e-12)
    if compensate != "none":
        assert np.ptp(noise) < 1e-9


@pytest.mark.parametrize(
    ("devices", "steps", "group"),
    [
        pytest.param(8, 1, 1, id="8 devices", marks=pytest.mark.long),
        pytest.param(3, 2, 1, id="3 devices, accumulation, idle slots", marks=pytest.mark.long),
        pytest.param(4, 1, 4, id="groups over devices, then in one", marks=pytest.mark.long),
    ],
)
def test_growing_run_is_the_same_in_every_place(x64, devices, steps, group):
    keys = {"batch_norm.synced_workers": group}
    expected, _ = trained(build(config(**keys)))
    found, _ = trained(build(config(devices=devices, accumulation_steps=steps, **keys)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, expected
    )


def test_each_example_once_an_epoch_across_the_changes():
    parts = build(config(dtype="float32", total_steps=30))
    batches, seen = parts.feed.train_batches(), []
    for update in range(30):
        epochs, examples = batches.examples(update)
        assert examples.size == (64, 128, 256)[min(update // 4, 2)]
        seen += zip(epochs.ravel().tolist(), examples.ravel().tolist())
    count = len(parts.feed.splits.train)
    whole = len(seen) // count
    assert whole == 4
    for epoch in range(whole):
        mine = seen[epoch * count : (epoch + 1) * count]
        assert sorted(mine) == [(epoch, example) for example in range(count)]


@pytest.mark.long
@pytest.mark.parametrize("stop", [4, 8])
def test_a_run_stopped_at_a_change_goes_on_bitwise(tmp_path, stop):
    there = config(dtype="float32", **{"learning_rate.decay": "cosine"})
    whole = run(there, tmp_path / "whole")
    stopped = run(there, tmp_path / "parts", should_stop=lambda done: done == stop)
    assert (whole.complete, stopped.complete, stopped.updates) == (True, False, stop)
    assert run(there, tmp_path / "parts").complete
    parts = build(there)

    def state_of(name):
        folder = tmp_path / name / "checkpoints"
        return Checkpoints(folder, 3, parts.plan.identity(), say=pytest.fail).restore(
            parts.program.abstract_state()
        )

    assert state_of("whole")[0] == state_of("parts")[0] == 12
    jax.tree.map(np.testing.assert_array_equal, state_of("whole")[1], state_of("parts")[1])
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    timed = {"images_per_second", "data_wait_percent"}
    without_times = [[{k: v for k, v in li.items() if k not in timed} for li in f] for f in lines]
    assert without_times[0] == without_times[1]
    batch_sizes = [line["batch_size"] for line in lines[1] if "batch_size" in line]
    assert batch_sizes == [64] * 4 + [128] * 4 + [256] * 4


@pytest.mark.long
def test_one_compilation_for_each_size_from_where_the_run_is():
    """Sizes that come back are not compiled again, those behind the run not at all; and a size
    that no one has asked for yet is being compiled by a thread.
    """
    keys = {"batch_growth.sizes": (128, 64, 128), "batch_growth.at_steps": (3, 6, 9)}
    parts = build(config(dtype="float32", **keys))
    steps = CompiledSteps(parts.program, 0)
    assert all(future.result(timeout=HANG_SECONDS) for future in steps._steps.values())
    first = [steps(update) for update in range(12)]
    assert len(set(map(id, first))) == 2
    assert all(first[t] is first[0 if t // 3 % 2 == 0 else 3] for t in range(12))
    steps.close()
    late = CompiledSteps(parts.program, 9)
    assert late(11) is late(9)
    with pytest.raises(KeyError):
        late(6)  # 64 was behind
    late.close()


@pytest.mark.parametrize("begin", ["warmup", "start"])
@pytest.mark.parametrize("kind", ["cosine", "polynomial"])
def test_a_rate_that_varies_with_time_varies_with_examples(kind, begin):
    """Whatever the sizes, it is the rate that a constant size has at the same example.

    The batch grows within the warmup, and again after it.
    """
    keys = {"learning_rate.decay": kind, "learning_rate.warmup_from": "zero", "total_steps": 0}
    keys |= {"learning_rate.warmup_epochs": 0.0, "learning_rate.warmup_examples": 64 * 8}
    keys |= {"total_examples": 64 * 28, "dtype": "float32", "learning_rate.decay_from": begin}
    grown = config(**keys)
    timeline = build_timeline(grown, 1437)
    schedule = build_learning_rate(grown, timeline, 12).schedule
    steady = config(**keys, **{"batch_growth.sizes": (), "batch_growth.at_steps": ()})
    reference = build_learning_rate(steady, build_timeline(steady, 1437), 28).schedule
    for update in range(13):
        same = timeline.examples_seen(update) // 64
        assert float(schedule(update)) == pytest.approx(float(reference(same)), rel=1e-6, abs=1e-9)


@pytest.mark.long
def test_automatic_accumulation_is_chosen_for_each_size(tmp_path, monkeypatch):
    """With memory for the first size's workers at once, and no more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = build(config(dtype="float32"))

    def needs(placement):
        batch = placement.slots * 8 * (8 * 8 + 4)
        return memory_of(plain.program.compile_train_step(placement), batch) + 7 * batch

    limit = int(1.3 * needs(plain.plan.placements[64]))  # some more, as there is a bound by a line
    found = build(
        config(dtype="float32", accumulation_steps=0, device_memory_gib=limit / 2**30)
    ).plan.placements
    assert found[64].accumulation_steps == 1 < found[256].accumulation_steps
    assert all(needs(placement) <= limit for placement in found.values())


NONE = {"sizes": (), "at_steps": ()}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"at_steps": ()}, "there are 2 sizes and 0 times"),
        ({"at_epochs": (1.0, 2.0)}, "say the same thing"),
        ({"at_steps": (8, 4)}, "changes at 8, 4; these must be above 0 and increase"),
        ({"at_steps": (0, 4)}, "changes at 0, 4; these must be above 0"),
        ({"sizes": (100, 200)}, "not a multiple of worker_batch_size"),
        ({"sizes": (12.5, 64)}, "whole and positive"),
        ({"at_steps": (4.5, 8)}, "whole numbers"),
        ({"sizes": (128,), "at_steps": (), "at_epochs": (0.01,)}, "64 would last no update"),
        ({"at_steps": (), "at_epochs": (1.0, 1.001)}, "128 would last no update, for 256 begins"),
        ({"in_place_of_decay": True}, "both say how the batch grows"),
        ({**NONE, "in_place_of_decay": True}, "needs a decay that it takes the place of"),
        ({**NONE, "in_place_of_decay": True, "compensate": "rate"}, "compensate would undo"),
    ],
)
def test_mistakes_are_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(config(**{f"batch_growth.{key}": value for key, value in keys.items()}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"batch_growth.compensate": "momentum", "optimizer.name": "lamb"},
            "optimizer.name='lamb' has not",
        ),
        (
            {"batch_growth.compensate": "rate", "learning_rate.scaling": "none"},
            "follows learning_rate.scaling",
        ),
        (
            {
                "batch_growth.compensate": "rate",
                "learning_rate.decay": "polynomial",
                "learning_rate.decay_end_rate": 0.01,
            },
            "decay_end_rate wants to be absolute",
        ),
        (
            {"batch_growth.compensate": "momentum", "batch_growth.sizes": (8, 64)}
            | {"optimizer.momentum": 0.5},
            "start with the smallest size",
        ),
    ],
)
def test_what_does_not_go_together_is_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(config(**keys))


@pytest.mark.parametrize("decays", [(0.0, 30.0), (0.01, 30.0), (30.0, 30.05, 60.0)])
def test_decays_that_leave_a_size_no_update_are_named(decays):
    keys = {"learning_rate.decay": "steps", "learning_rate.decay_epochs": decays}
    keys |= {"batch_growth.in_place_of_decay": True, "learning_rate.decay_factor": 0.5}
    with pytest.raises(ConfigError, match=r"must be above 0|would last no update"):
        build(config(**keys, **{f"batch_growth.{key}": value for key, value in NONE.items()}))


def test_explain_says_what_changes_with_the_size():
    lines = explain(build(config(**{"batch_growth.compensate": "momentum"})).plan)
    assert "minibatch: kn=128 from update 4 (epoch 0.1781), k=16 workers of n=8" in " ".join(lines)
    assert "minibatch: momentum 0.9, 0.95, 0.975, so that the noise scale stays" in lines
    late = explain(build(config(total_steps=6)).plan)
    assert "minibatch: kn=256 would begin past the end, at update 8" in late


def test_explain_says_the_rates_of_a_capped_twin():
    keys = {"learning_rate.decay": "steps", "learning_rate.decay_epochs": (0.4, 0.7)}
    keys |= {"learning_rate.decay_factor": 0.2, "batch_growth.in_place_of_decay": True}
    keys |= {"batch_growth.largest": 128, "total_steps": 20}
    keys |= {f"batch_growth.{key}": value for key, value in NONE.items()}
    text = " ".join(explain(build(config(**keys)).plan))
    # 0.1 x 0.2 x 2 where the batch doubles, then x0.2 as it no longer grows.
    assert "kn=128 from update 9" in text
    assert "where the batch does not grow, it decays: 0.04 from update 9, 0.008 from update" in text


def test_a_cap_below_the_first_size_is_named():
    with pytest.raises(ConfigError, match=r"largest=64 is less than batch_size=128"):
        build_timeline(smith(128, in_place_of_decay=True, largest=64), CIFAR)
