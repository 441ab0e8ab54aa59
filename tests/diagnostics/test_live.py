"""A run that looks at itself: it trains as if it did not, and its record holds each number once."""

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hanging import HANG_SECONDS
from tiny_run import UPDATES, tiny_config

from lbsgd import train
from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.diagnostics.command import main
from lbsgd.diagnostics.noise_scale import recent
from lbsgd.diagnostics.workers_gradient import compiled
from lbsgd.run.build import build
from lbsgd.run.record.metrics import MetricsFile, read_metrics
from lbsgd.step.layer_statistics import layer_names, layer_statistics
from lbsgd.system.errors import ConfigError

ROOT = pathlib.Path(__file__).parent.parent.parent
WORKERS, PAIRS = 4, 6
EPS32 = float(np.finfo(np.float32).eps)
ON = {
    "workers.every_steps": 2,
    "confusion.every_steps": 4,
    "confusion.pairs": PAIRS,
    "confusion.batch_size": 16,
    "layers.every_steps": 3,
}


def config_with(**diagnostics: object):
    """The run of tests/train/test_train.py, so that its step is compiled once, with diagnostics."""
    keys = {f"diagnostics.{key}": value for key, value in diagnostics.items()}
    return tiny_config(**{"checkpoint.keep": 3}, **keys)


def state_after(workdir: pathlib.Path, update: int = UPDATES):
    parts = build(config_with())
    checkpoints = Checkpoints(workdir / "checkpoints", 3, parts.plan.identity(), say=pytest.fail)
    newest, state = checkpoints.restore(parts.program.abstract_state())
    checkpoints.close()
    assert newest == update
    return state


def metrics_of(workdir: pathlib.Path) -> list[dict]:
    lines = read_metrics(workdir / "metrics.jsonl")
    timed = ("images_per_second", "data_wait_percent")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def lists_of(workdir: pathlib.Path) -> list[dict]:
    return read_metrics(workdir / "diagnostics.jsonl", lists=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run without diagnostics."""
    workdir = tmp_path_factory.mktemp("plain")
    train.run(config_with(), workdir)
    return workdir


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """The run with all of them."""
    workdir = tmp_path_factory.mktemp("looked_at")
    train.run(config_with(**ON), workdir)
    return workdir


def test_the_run_is_bitwise_the_one_that_is_not_looked_at(plain, looked_at):
    assert not (plain / "diagnostics.jsonl").exists()
    expected, found = state_after(plain), state_after(looked_at)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    trained = [line for line in metrics_of(looked_at) if "train_loss" in line]
    assert trained == [line for line in metrics_of(plain) if "train_loss" in line]


def test_the_record_holds_what_was_measured_at_its_times(looked_at):
    metrics, lists = metrics_of(looked_at), lists_of(looked_at)
    assert [line["step"] for line in metrics] == sorted(line["step"] for line in metrics)
    noise = [line for line in metrics if "gradient_noise_scale" in line]
    assert [line["step"] for line in noise] == [2, 4, 6, 8, 10, 12]
    # That stands in the line of the update.
    assert not any("batch_size" in line for line in noise)
    assert [line["batch_size"] for line in metrics if "batch_size" in line] == [64] * UPDATES
    confusion = [line for line in metrics if "confusion_cosine_min" in line]
    assert [line["step"] for line in confusion] == [4, 8, 12]
    for name, count, prefix, of in (
        ("worker_cosines", WORKERS - 1, "worker_cosine", noise),
        ("confusion_cosines", PAIRS, "confusion_cosine", confusion),
    ):
        found = [line for line in lists if name in line]
        assert [line["step"] for line in found] == [line["step"] for line in of]
        for line, summary in zip(found, of):
            assert len(line[name]) == count
            assert summary[f"{prefix}_min"] == min(line[name])
            assert summary[f"{prefix}_mean"] == pytest.approx(np.mean(line[name]))
            assert max(map(abs, line[name])) <= 1 + 1e-4
    layers = [line for line in lists if "gradient_norm" in line]
    assert [line["step"] for line in layers] == [3, 6, 9, 12]


def test_the_mean_gradient_is_that_of_the_update(looked_at):
    """|G_b|^2, recovered from the two estimates, is the square of the update's gradient norm."""
    metrics = metrics_of(looked_at)
    norms = {line["step"]: line["gradient_norm"] for line in metrics if "gradient_norm" in line}
    for line in metrics:
        if "gradient_square" in line:
            large = line["gradient_square"] + line["gradient_covariance_trace"] / 64
            # Squares of some 5000 numbers in float32, twice, and differences of such sums.
            assert large == pytest.approx(norms[line["step"]] ** 2, rel=1e-3)


def test_a_measurement_is_of_the_minibatch_and_the_parameters_of_its_update(looked_at):
    """The line of update 2, from its minibatch and what update 1 left."""
    parts = build(config_with(**ON))
    first, second = parts.feed.train_batches().between(0, 2)
    numbers = parts.program.numbers
    step = parts.program.compile_train_step()
    state, _ = step(parts.program.start(), first, numbers.at(0))
    look = compiled(parts.plan.worker, parts.plan.placement, in_turn=False)
    found = jax.device_get(look(state.params, state.batch_stats, numbers.at(1), second))
    small, large = float(found.squares.astype(np.float64).mean()), float(found.mean_square)
    (line,) = (m for m in metrics_of(looked_at) if m["step"] == 2 and "gradient_square" in m)
    assert line["gradient_square"] == pytest.approx((64 * large - 16 * small) / 48, rel=1e-12)
    trace = (small - large) / (1 / 16 - 1 / 64)
    assert line["gradient_covariance_trace"] == pytest.approx(trace, rel=1e-12)


def test_the_noise_scale_is_a_function_of_the_metrics(looked_at):
    metrics = metrics_of(looked_at)
    for i, line in enumerate(metrics):
        if "gradient_noise_scale" in line:
            mean, error = recent(metrics[: i + 1], 5).average
            expected = {
                "gradient_square_mean": mean.gradient_square,
                "gradient_square_error": error,
                "gradient_covariance_trace_mean": mean.covariance_trace,
                "gradient_noise_scale": mean.noise_scale,
            }
            for key, number in expected.items():
                assert line[key] == (number if np.isfinite(number) else None)


def test_norms_of_layers_are_those_of_the_update(looked_at):
    metrics = {line["step"]: line for line in metrics_of(looked_at) if "gradient_norm" in line}
    lines = [line for line in lists_of(looked_at) if "gradient_norm" in line]
    names = layer_names(state_after(looked_at).params)
    assert len(names) > 20
    for line in lines:
        assert line.keys() == {"step", "epoch", "gradient_norm", "parameter_norm", "update_norm"}
        assert all(list(line[key]) == names for key in line.keys() - {"step", "epoch"})
        whole = np.linalg.norm(list(line["gradient_norm"].values()))
        assert whole == pytest.approx(metrics[line["step"]]["gradient_norm"], rel=1e-5)


@pytest.mark.long
def test_a_run_that_was_killed_has_each_line_once(looked_at, tmp_path):
    """After update 7 it goes on from checkpoint 4, whose own lines it had gone past."""

    def die(done: int) -> bool:
        if done == 7:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train.run(config_with(**ON), tmp_path, should_stop=die)
    assert lists_of(tmp_path)[-1]["step"] == 6
    assert train.run(config_with(**ON), tmp_path).complete
    assert metrics_of(tmp_path) == metrics_of(looked_at)
    assert lists_of(tmp_path) == lists_of(looked_at)


@pytest.mark.long
@pytest.mark.parametrize("stops", [(1, 2), (3, 4), (5, 11)])
def test_a_run_that_was_stopped_has_each_line_once(looked_at, tmp_path, stops):
    """Before and after measurements, which checkpoints then lie between."""
    for stop in stops:
        train.run(config_with(**ON), tmp_path, should_stop=lambda done, stop=stop: done == stop)
    assert train.run(config_with(**ON), tmp_path).complete
    assert metrics_of(tmp_path) == metrics_of(looked_at)
    assert lists_of(tmp_path) == lists_of(looked_at)


@pytest.mark.long
def test_a_confusion_that_was_cut_short_is_measured_when_the_run_goes_on(looked_at, tmp_path):
    asked = []

    def within(done: int) -> bool:
        asked.append(done)
        return asked.count(4) > 2

    outcome = train.run(config_with(**ON), tmp_path, should_stop=within)
    assert (outcome.updates, outcome.complete) == (4, False)
    assert not any("confusion_cosines" in line for line in lists_of(tmp_path))
    assert train.run(config_with(**ON), tmp_path).complete
    assert metrics_of(tmp_path) == metrics_of(looked_at)
    assert lists_of(tmp_path) == lists_of(looked_at)


@pytest.mark.long
def test_diagnostics_may_be_turned_off_and_on_again(looked_at, tmp_path):
    """Lines past the checkpoint go even then."""
    train.run(config_with(**ON), tmp_path, should_stop=lambda done: done == 8)
    for path in (tmp_path / "checkpoints").iterdir():
        if path.name != "4":
            path.rename(tmp_path / f"gone_{path.name}")
    train.run(config_with(), tmp_path, should_stop=lambda done: done == 8)
    assert max(line["step"] for line in lists_of(tmp_path)) == 4
    assert train.run(config_with(**ON), tmp_path).complete
    jax.tree.map(np.testing.assert_array_equal, state_after(tmp_path), state_after(looked_at))
    steps = [line["step"] for line in lists_of(tmp_path) if "worker_cosines" in line]
    assert steps == [2, 4, 10, 12]


# --- layers ------------------------------------------------------------------------------------


class Trust(NamedTuple):
    """As an optimizer with trust ratios has it."""

    trust_ratios: object


def test_statistics_are_of_each_array():
    random = np.random.default_rng(0)
    params, gradients, changes = (
        {"a": {"w": random.normal(size=(3, 4))}, "b": random.normal(size=5)} for _ in range(3)
    )
    ratios = {"a": {"w": np.float32(0.25)}, "b": np.float32(1.5)}
    inner = (optax.EmptyState(), (Trust(jax.tree.map(jnp.asarray, ratios)), np.zeros(3)))
    found = layer_statistics(
        *(jax.tree.map(jnp.float32, t) for t in (gradients, params, changes)), inner
    )
    assert layer_names(params) == ["a/w", "b"]
    for name, tree in (
        ("gradient_norm", gradients),
        ("parameter_norm", params),
        ("update_norm", changes),
    ):
        expected = [np.linalg.norm(tree["a"]["w"]), np.linalg.norm(tree["b"])]
        np.testing.assert_allclose(found[name], expected, rtol=12 * EPS32)
    np.testing.assert_array_equal(found["trust_ratio"], [0.25, 1.5])
    without = layer_statistics(*(3 * [{"w": jnp.ones(2)}]), (optax.EmptyState(),))
    assert "trust_ratio" not in without


# --- pictures ----------------------------------------------------------------------------------


def test_pictures_are_drawn_beside_the_run(looked_at, capsys):
    assert main([str(looked_at)]) == 0
    names = ["noise_scale.png", "cosines.png", "layers.png"]
    assert capsys.readouterr().out.splitlines() == [str(looked_at / name) for name in names]
    for name in names:
        assert (looked_at / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("plain", r"holds no diagnostics; a run measures them with --config\.diagnostics\."),
        ("empty", "is not the workdir of a run"),
        ("missing", "is not the workdir of a run"),
        ("damaged", r"diagnostics\.jsonl, line 1 is damaged"),
    ],
)
def test_without_diagnostics_there_is_a_line(plain, tmp_path, capsys, kind, message):
    folder = {"plain": plain, "missing": tmp_path / "x"}.get(kind, tmp_path)
    if kind == "damaged":
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "diagnostics.jsonl").write_text('{"step": 1, "a": ["b"]}\n')
    assert main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lbsgd: ")
    assert re.search(message, line)


# --- the command line --------------------------------------------------------------------------

FLAGS = [
    "--config=configs/digits.py",
    "--config.model.width=0.25",
    "--config.batch_size=64",
    "--config.worker_batch_size=16",
    "--config.total_epochs=0",
    "--config.total_steps=12",
    "--config.learning_rate.warmup_epochs=0.1",
    "--config.log.sinks=()",
    *(f"--config.diagnostics.{key}={value}" for key, value in ON.items()),
]


def start(workdir: pathlib.Path, *launcher: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *launcher, *FLAGS, f"--workdir={workdir}"]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG_SECONDS
    )


@pytest.mark.long
def test_from_the_command_line(tmp_path):
    done = start(tmp_path, "lbsgd.main")
    assert done.returncode == 0, done.stderr
    assert "diagnostics: gradient noise scale at 6 updates, gradient confusion of 6" in done.stdout
    assert len(re.findall("update (4|8|12)  gradient confusion: cosines of 6 ", done.stdout)) == 3
    noise = re.findall(r"update \d+  gradient noise scale.*\(\|G\|\^2 ", done.stdout)
    assert len(noise) == 6
    assert sum("preliminary" in line for line in noise) == 4
    drawn = [sys.executable, "-m", "lbsgd.main", "diagnose", str(tmp_path)]
    assert subprocess.run(drawn, cwd=ROOT, capture_output=True).returncode == 0
    assert (tmp_path / "cosines.png").exists()


@pytest.mark.long
def test_several_processes_measure_as_one(tmp_path):
    """Both, after a stop too, as one process with as many devices."""
    assert start(tmp_path / "one", "lbsgd.main").returncode == 0
    launcher = ["lbsgd.main", "launch", "--num_processes=2", "--devices_per_process=1"]
    launcher += ["--platform=cpu", "--max_restarts=0", "--"]
    done = start(tmp_path / "two", *launcher)
    assert done.returncode == 0, done.stderr
    for name, lists in (("metrics.jsonl", False), ("diagnostics.jsonl", True)):
        expected, found = (
            read_metrics(tmp_path / workdir / name, lists) for workdir in ("one", "two")
        )
        assert [line.keys() for line in found] == [line.keys() for line in expected]
        for a, b in zip(found, expected):
            for key in a.keys() & {"worker_cosines", "confusion_cosines", "worker_cosine_min"}:
                # Of one update and few after it in float32, on other sums of gradients.
                np.testing.assert_allclose(a[key], b[key], atol=2e-2)


def test_lists_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "diagnostics.jsonl"
    file = MetricsFile(path, lists=True)
    file.write(1, 0.5, {"a": [1.0, float("nan")], "b": {"c": float("inf"), "d": 2.0}})
    file.close()
    expected = {"step": 1, "epoch": 0.5, "a": [1.0, None], "b": {"c": None, "d": 2.0}}
    assert read_metrics(path, lists=True) == [expected]
    with pytest.raises(ConfigError, match="line 1 is damaged"):
        read_metrics(path)
    path.write_text(json.dumps({"step": 1, "a": [[1.0]]}) + "\n")
    with pytest.raises(ConfigError, match="line 1 is damaged"):
        read_metrics(path, lists=True)
