"""Frozen parameters cost nothing and stay what they are, whatever else a run does."""

import json
import re

import jax
import numpy as np
import pytest
from compiled_text import all_reduces
from tiny_run import final_state, tiny_config
from worker_loop import small_run, written_out

from lbsgd import train
from lbsgd.data.pipeline import load_job
from lbsgd.experiments.together import run_together
from lbsgd.models.selection import trained_part
from lbsgd.run.build import build
from lbsgd.run.explain import explain, parameter_table
from lbsgd.system.errors import ConfigError

# Of ResNet-8: the stem's and the first stage's three convolutions of seven, and the head's bias.
FREEZE = ("stem*", "stage1_*", "bias")
HEAD = ("stem*", "stage*")
CONVOLUTIONS = 7


def is_frozen(name: str) -> bool:
    """By hand, of FREEZE: the name is as of `jax.tree_util.keystr`, or with slashes."""
    return any(part in name for part in ("stem", "stage1_", "bias"))


def by_name(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


# --- what is computed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freeze", "weights", "inputs"),
    [
        pytest.param((), 7, 6, id="nothing"),
        # Of the lowest that is trained no gradient goes further down.
        pytest.param(FREEZE, 4, 3, id="the lower layers"),
        pytest.param(HEAD, 0, 0, id="all but the head"),
        pytest.param(("stage3_*",), 5, 6, id="the upper layers"),
    ],
)
def test_no_gradient_of_a_frozen_kernel_is_computed(freeze, weights, inputs, monkeypatch):
    """In the traced program: forward, gradients of kernels, and those handed down."""
    # As other devices get it: of a CPU's forms, many are no convolutions.
    monkeypatch.setattr("lbsgd.step.loops.cpu_forms", lambda f: f)
    keys = {"optimizer.freeze": freeze, "dtype": "float32"}
    text = small_run(4, 2, 1, **keys).program.lower_train_step().as_text()
    assert len(re.findall(r"stablehlo\.convolution", text)) == CONVOLUTIONS + weights + inputs


@pytest.mark.parametrize(
    ("steps", "frozen"), [(1, True), pytest.param(2, False, marks=pytest.mark.long)]
)
def test_nothing_that_is_frozen_is_reduced(steps, frozen):
    """Neither gradients nor, if they are frozen, the statistics of batch norm."""
    statistics_too = {"batch_norm.frozen_statistics": frozen}
    keys = {"optimizer.freeze": FREEZE, "dtype": "float32", **statistics_too}
    run = small_run(4, 2, steps, **keys)
    state = run.plan.state_shapes
    trained = sum(x.size for name, x in leaves_of(state.params) if not is_frozen(name))
    loss_and_error = 2
    statistics = 0 if frozen else sum(x.size for _, x in leaves_of(state.batch_stats))
    compiled = run.program.compile_train_step()
    sizes = [size for _, size in all_reduces(compiled)]
    assert sum(sizes) == 4 * (loss_and_error + statistics + trained)
    whole = small_run(4, 2, steps, dtype="float32", **statistics_too).program.compile_train_step()
    assert compiled.cost_analysis()["flops"] < whole.cost_analysis()["flops"]


def leaves_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


OPTIMIZERS = {
    "sgd": {},
    "inside": {"optimizer.momentum_form": "rate_inside"},
    "lars": {"optimizer.name": "lars"},
    "lamb": {"optimizer.name": "lamb"},
    "adamw": {"optimizer.name": "optax:adamw"},
    "muon": {"optimizer.name": "optax.contrib:muon", "optimizer.options": {"ns_steps": 2}},
    "direction": {"optimizer.name": "optax:scale_by_rms"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_keeps_nothing_of_what_is_frozen(name):
    keys = {**OPTIMIZERS[name], "optimizer.rate_multipliers": {"classifier": 10.0}}
    plan = build(tiny_config(**keys, **{"optimizer.freeze": FREEZE})).plan
    names = [path for path, _ in leaves_of(plan.state_shapes.opt_state)]
    assert any("stage2" in path for path in names)
    assert not any(map(is_frozen, names))


# --- what comes of it ------------------------------------------------------------------------


@pytest.mark.long
def test_what_is_trained_moves_by_its_own_gradient_alone(x64):
    """Two updates against a loop over workers, momentum and decay by hand in numpy."""
    keys = {"optimizer.freeze": FREEZE, "optimizer.rate_multipliers": {"classifier": 3.0}}
    run = small_run(4, 2, 2, **keys)
    state, numbers = run.program.start(), run.program.numbers
    step = run.program.compile_train_step()
    buffer = {}
    for update, batch in enumerate(run.feed.train_batches().between(0, 2)):
        before = by_name(state.params)
        mean = gradient(run, state, update)
        state, metrics = step(state, batch, numbers.at(update))
        rate = numbers.reported(update)["learning_rate"]
        squares = 0.0
        for name, w in by_name(state.params).items():
            if is_frozen(name):
                np.testing.assert_array_equal(w, before[name], err_msg=name)
                continue
            squares += np.sum(mean[name] ** 2)
            g = mean[name] + (1e-4 * before[name] if "kernel" in name else 0.0)
            buffer[name] = 0.9 * buffer.get(name, 0.0) + g
            mu = 3.0 if "classifier" in name else 1.0
            expected = before[name] - mu * rate * (g + 0.9 * buffer[name])
            # Sums of some thousand terms; numbers of order 1.
            np.testing.assert_allclose(w, expected, rtol=1e-10, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(squares), rtol=1e-10)


def gradient(run, state, update: int) -> dict[str, np.ndarray]:
    """The mean over workers of the gradient of all parameters, by name."""
    one = small_run(4, 1, 1)
    rows = load_job(one.feed.train_batches().job(update))
    flat = written_out(run, state, {key: x[0] for key, x in rows.items()}).mean(0)
    parts, start = {}, 0
    for name, leaf in by_name(state.params).items():
        parts[name] = flat[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
    return parts


LOOKED_AT = {
    "ema.decay": 0.9,
    "batch_norm.frozen_statistics": True,
    "diagnostics.workers.every_steps": 4,
    "diagnostics.confusion.every_steps": 6,
    "diagnostics.confusion.pairs": 2,
    "diagnostics.layers.every_steps": 6,
}


def run_config(**keys):
    whole = {"optimizer.freeze": FREEZE, "dtype": "float64", "evaluation.every_steps": 12}
    return tiny_config(**{**whole, **LOOKED_AT, **keys})


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """The workdir of a run on two devices that measures all there is."""
    jax.config.update("jax_enable_x64", True)
    workdir = tmp_path_factory.mktemp("two")
    train.run(run_config(), workdir)
    yield workdir
    jax.config.update("jax_enable_x64", False)


@pytest.mark.long
def test_what_is_frozen_is_what_it_was_and_so_is_its_average(on_two):
    config = run_config()
    end, start = final_state(config, on_two), by_name(build(config).program.start())
    assert end.keys() == start.keys()
    moved = {name for name, x in end.items() if not np.array_equal(x, start[name])}
    frozen = {name for name in end if is_frozen(name) or "batch_stats" in name}
    assert frozen
    assert not frozen & moved
    assert {name for name in end if "params" in name} - frozen <= moved


@pytest.mark.long
def test_the_table_of_parameters_and_the_plan_show_it(on_two):
    table = (on_two / "parameters.txt").read_text()
    for line in table.splitlines():
        if "/" in line:
            assert ("frozen" in line) == is_frozen(line), line
    rows = [line for line in table.splitlines() if "frozen" in line]
    assert not any("yes" in line for line in rows)
    plan = build(run_config(**{"optimizer.rate_multipliers": {"stage3_*": 0.5}})).plan
    (line,) = (line for line in explain(plan) if line.startswith("frozen: "))
    arrays = jax.tree.leaves(trained_part(plan.outline.params, plan.trained))
    assert f"{len(arrays)} of 23 parameter arrays are trained" in line
    assert f"{sum(x.size for x in arrays):,} of " in line
    assert any("rate times 0.5 on 'stage3_*'" in line for line in explain(plan))
    assert any(re.search(r"stage3_.*\b0\.5\b", line) for line in parameter_table(plan).splitlines())


@pytest.mark.long
def test_diagnostics_are_of_what_is_trained(on_two):
    lines = map(json.loads, (on_two / "diagnostics.jsonl").read_text().splitlines())
    layers = [line for line in lines if "gradient_norm" in line]
    assert layers
    for line in layers:
        assert line["gradient_norm"]
        assert not any(map(is_frozen, line["gradient_norm"]))
    metrics = list(map(json.loads, (on_two / "metrics.jsonl").read_text().splitlines()))
    norms = {line["step"]: line["gradient_norm"] for line in metrics if "gradient_norm" in line}
    looked = [line for line in metrics if "gradient_square" in line]
    assert looked
    for line in looked:
        # |G_b|^2 recovered from the two estimates, as in test_live.
        large = line["gradient_square"] + line["gradient_covariance_trace"] / 64
        assert large == pytest.approx(norms[line["step"]] ** 2, rel=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_on_elsewhere_as_if_it_had_not_stopped(x64, tmp_path, name):
    """On one device; and stopped after 7 updates, then on five, with idle slots."""
    keys = {**OPTIMIZERS[name], "optimizer.rate_multipliers": {"classifier": 10.0}}
    one, five = (run_config(**keys, devices=devices) for devices in (1, 5))
    train.run(one, tmp_path / "one")
    train.run(one, tmp_path / "five", should_stop=lambda done: done == 7)
    train.run(five, tmp_path / "five")
    assert_alike(final_state(five, tmp_path / "five"), final_state(one, tmp_path / "one"))


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["ring", "binary_blocks"])
def test_every_all_reduce_gives_the_same(on_two, tmp_path, algorithm):
    exchange = {"allreduce.algorithm": algorithm, "allreduce.bucket_mib": 0.01}
    config = run_config(**exchange, devices=4, accumulation_steps=1)
    train.run(config, tmp_path)
    assert_alike(final_state(config, tmp_path), final_state(run_config(), on_two))


@pytest.mark.long
def test_several_seeds_at_once_are_each_what_it_is_alone(on_two, tmp_path):
    configs = [run_config(seed=seed) for seed in (0, 1)]
    folders = [tmp_path / "0", tmp_path / "1"]
    for result in run_together(configs, folders):
        if isinstance(result, Exception):
            raise result
    assert_alike(final_state(configs[0], folders[0]), final_state(run_config(), on_two))


# --- mistakes --------------------------------------------------------------------------------


def test_with_frozen_statistics_a_worker_may_have_one_example():
    """It has no moments of its own, which would leave nothing of one value to learn from."""
    # Of images of 4x4 the last stage has one value a channel.
    images = {"data.source": "synthetic", "data.image_size": 4, "data.synthetic_examples": 500}
    one = {"worker_batch_size": 1, "data.crop": "none", **images}
    with pytest.raises(ConfigError, match="and no gradient passes it"):
        build(tiny_config(**one))
    plan = build(tiny_config(**one, **{"batch_norm.frozen_statistics": True})).plan
    assert "which do not move" in "\n".join(explain(plan))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"optimizer.freeze": ("stgae1_*",)}, "the nearest that does is 'stage1_block1'"),
        ({"optimizer.freeze": ("*",)}, "leaves no parameter to be trained"),
        ({"optimizer.freeze": (1,)}, r"optimizer.freeze must hold roles or patterns"),
        ({"optimizer.freeze": ("",)}, r"optimizer.freeze must hold roles or patterns"),
        ({"optimizer.rate_multipliers": {"head": 10.0}}, "rate_multipliers: 'head' matches no"),
        ({"optimizer.rate_multipliers": {"classifier": 0}}, "must hold numbers above 0"),
        ({"optimizer.rate_multipliers": {"classifier": "x"}}, "must hold numbers above 0"),
        ({"optimizer.rate_multipliers": {"classifier": float("nan")}}, "must hold numbers above 0"),
        ({"optimizer.rate_multipliers": {"classifier": {"x": 1.0}}}, "must hold numbers above 0"),
        (
            {"optimizer.freeze": ("stem*",), "optimizer.rate_multipliers": {"stem_conv": 2.0}},
            "all that 'stem_conv' matches is frozen",
        ),
    ],
)
def test_mistakes_end_in_one_line(keys, told):
    with pytest.raises(ConfigError, match=told) as error:
        build(tiny_config(**keys))
    assert "\n" not in str(error.value)
