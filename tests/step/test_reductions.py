"""Workers' metrics, each reduced as declared; averaged weights; a gradient without a mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.optim.chain import build_optimizer
from lbsgd.schedule.functions import constant
from lbsgd.step.numbers import Numbers
from lbsgd.step.reduction import mean_over_devices
from lbsgd.step.train_step import Averaged, TrainState, train_step
from lbsgd.step.worker import WorkerResult, worker_gradient, worker_key
from lbsgd.workers.placement import place
from lbsgd.workers.reductions import Reduction

K, N, RATE = 5, 2, 0.1
PLACES = [(devices, steps) for devices in (1, 2, 3, 5) for steps in (1, 2)]
SHORT = [(1, 1), (2, 2), (3, 1)]
PLACEMENTS = [
    pytest.param(*place_, marks=[] if place_ in SHORT else pytest.mark.long) for place_ in PLACES
]


def pool(a, b):
    """Chan's formula: count, mean and sum of squares about it, of two sets together."""
    count = a["count"] + b["count"]
    whole = jnp.where(count > 0, count, 1.0)
    away = b["mean"] - a["mean"]
    return {
        "count": count,
        "mean": a["mean"] + away * b["count"] / whole,
        "squares": a["squares"] + b["squares"] + away**2 * a["count"] * b["count"] / whole,
    }


VARIANCE = Reduction(
    pool,
    {"count": 0.0, "mean": 0.0, "squares": 0.0},
    lambda all_: all_["squares"] / all_["count"],
)
REDUCTIONS = {"mean": "mean", "sum": "sum", "max": "max", "least": "max", "variance": VARIANCE}


def worker(params, batch_stats, numbers, rows, index) -> WorkerResult:
    """A linear loss, what it knows of its rows x, and a number that is drawn for it."""
    x = rows["x"]
    drawn = jax.random.uniform(worker_key(numbers, index), dtype=x.dtype)
    moments = {
        "count": jnp.asarray(x.size, x.dtype),
        "mean": x.mean(),
        "squares": jnp.sum((x - x.mean()) ** 2),
    }
    metrics = {"mean": x.mean(), "sum": x.sum(), "max": x.max(), "least": -x.min() - 1000.0}
    loss = jnp.mean(x @ params["w"]) * (1.0 + drawn)
    return WorkerResult(loss, {**metrics, "variance": moments}, batch_stats)


def rows() -> np.ndarray:
    return np.random.default_rng(3).normal(5.0, 2.0, (K, N, 4))


def state_of(average: bool = False) -> TrainState:
    params = {"w": jnp.arange(4.0)}
    rule = build_optimizer(constant(RATE), {"w": "kernel"}, **SGD)
    ema = Averaged({"w": jnp.arange(4.0)}, {}) if average else None
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, {}, rule.transform.init(params), zero, ema)


SGD = {"name": "sgd", "momentum": 0.0, "nesterov": False, "momentum_form": "rate_outside"}
SGD |= {"momentum_correction": True, "weight_decay": 0.0, "weight_decay_form": "coupled"}
SGD |= {"decayed_roles": ("kernel",)}


def step_on(devices: int, steps: int):
    placement = place(K * N, N, devices=devices, accumulation_steps=steps)
    rule = build_optimizer(constant(RATE), {"w": "kernel"}, **SGD)
    step = functools.partial(
        train_step,
        worker=worker,
        reductions=REDUCTIONS,
        optimizer=rule.transform,
        placement=placement,
        of_step={},
    )
    x = rows()[placement.worker_of_slot()]
    batch = {"x": jax.device_put(x, placement.batch_sharding)}
    return jax.jit(step), batch


def numbers(decay: float = 0.0) -> Numbers:
    return Numbers(np.uint32(7), np.int32(0), {"learning_rate": np.float64(RATE)}, {}, 0.9, decay)


@pytest.mark.parametrize(("devices", "steps"), PLACEMENTS)
def test_each_metric_is_reduced_as_declared_wherever_the_workers_lie(devices, steps, x64):
    step, batch = step_on(devices, steps)
    after, metrics = step(state_of(), batch, numbers())
    x = rows()
    expected = {
        "train_mean": x.mean(),
        "train_sum": x.sum(),
        "train_max": x.max(),
        # Below 0, which is what a sum would start from.
        "train_least": (-x.min(axis=(1, 2)) - 1000.0).max(),
        "train_variance": x.var(),
    }
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-12), name
    # What each worker draws is a function of seed, update and worker.
    key = jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), 0)
    drawn = [float(jax.random.uniform(jax.random.fold_in(key, j))) for j in range(K)]
    assert len(set(drawn)) == K
    gradient = np.mean([(1 + u) * x[j].mean(axis=0) for j, u in enumerate(drawn)], axis=0)
    np.testing.assert_allclose(after.params["w"], np.arange(4.0) - RATE * gradient, rtol=1e-12)


def test_what_is_drawn_changes_with_the_update(x64):
    step, batch = step_on(1, 1)
    state, first = step(state_of(), batch, numbers())
    _, second = step(state.replace(params=state_of().params), batch, numbers())
    assert float(first["train_loss"]) != float(second["train_loss"])


def test_a_metric_that_is_no_number_says_so(x64):
    step, batch = step_on(2, 2)
    broken = {"x": batch["x"].at[0, 0, 0, 0].set(jnp.nan)}
    _, metrics = step(state_of(), broken, numbers())
    finite = [name for name in REDUCTIONS if not np.isnan(float(metrics[f"train_{name}"]))]
    assert finite == []


def test_averaged_weights_follow_the_formula_and_skip_what_is_skipped(x64):
    step, batch = step_on(3, 2)
    state, average = state_of(average=True), np.arange(4.0)
    for decay in (0.1, 0.5, 0.9):
        state, _ = step(state, batch, numbers(decay))
        average = decay * average + (1 - decay) * np.asarray(state.params["w"])
        np.testing.assert_allclose(state.ema.params["w"], average, rtol=1e-14)
    broken = {"x": batch["x"].at[0, 0, 0, 0].set(jnp.inf)}
    after, _ = step(state, broken, numbers(0.5))
    assert int(after.skipped) == 1
    np.testing.assert_array_equal(after.ema.params["w"], state.ema.params["w"])


def test_a_workers_gradient_needs_no_mesh(x64):
    x, params = rows()[2], {"w": jnp.arange(4.0)}
    told = numbers()._replace(update_index=np.int32(4))
    gradient, result = worker_gradient(
        params, {}, told, {"x": jnp.asarray(x)}, jnp.int32(2), worker=worker
    )
    key = jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), 4)
    drawn = float(jax.random.uniform(jax.random.fold_in(key, 2)))
    np.testing.assert_allclose(gradient["w"], (1 + drawn) * x.mean(axis=0), rtol=1e-12)
    assert float(result.loss) == pytest.approx((1 + drawn) * (x @ np.arange(4.0)).mean(), rel=1e-12)
    assert float(result.metrics["sum"]) == pytest.approx(x.sum(), rel=1e-12)


DEVICES = 3
MANY = {"float32": [(2, 3), (), (0, 4), (7,)], "float64": [(5,), (1, 2)], "bfloat16": [(3,), (2,)]}


def of_devices(shapes: list[tuple[int, ...]], dtype: str) -> list[jax.Array]:
    """Random arrays `[devices, ...]`."""
    random = np.random.default_rng(1)
    return [jnp.asarray(random.normal(size=(DEVICES, *shape)), dtype) for shape in shapes]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_on_cpus_arrays_cross_in_one_message_for_each_type(platform, x64):
    """And for other platforms, whose compilers join them, each as it is; the mean is the same."""
    placement = place(DEVICES * N, N, devices=DEVICES, accumulation_steps=1)
    trees = {dtype: of_devices(shapes, dtype) for dtype, shapes in MANY.items()}

    def on_device(trees):
        own = jax.tree.map(lambda x: x[0], trees)
        result = WorkerResult(own["float64"][0][0], {"mean": own["float32"][1]}, own["bfloat16"])
        return mean_over_devices(result, {"mean": "mean"}, platform, own)

    spec = placement.batch_spec[1:]
    step = jax.jit(
        jax.shard_map(
            on_device,
            mesh=placement.mesh,
            in_specs=jax.P(*spec),
            out_specs=jax.P(),
            check_vma=False,
        )
    )
    sent = re.findall(
        r"stablehlo.all_reduce.*?\(tensor<(?:\d+x)*(\w+)>\) ->", step.lower(trees).as_text(), re.S
    )
    result, means = step(trees)
    arrays = sum(map(len, MANY.values())) + 1 + 1 + len(MANY["bfloat16"])
    assert len(sent) == (len(MANY) if platform == "cpu" else arrays)
    assert set(sent) == {"f32", "f64", "bf16"}
    # Two sums of numbers below 4, each rounded by half of eps, and a division by three.
    for dtype, tree in trees.items():
        for x, mean in zip(tree, means[dtype], strict=True):
            expected = np.mean(np.asarray(x, np.float64), axis=0)
            assert mean.dtype == x.dtype
            assert mean.shape == expected.shape
            eps = float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(np.asarray(mean, np.float64), expected, rtol=0, atol=4 * eps)
    assert float(result.loss) == float(means["float64"][0][0])
    assert float(result.metrics["mean"]) == float(means["float32"][1])
