"""A run from its config to its workdir, and on again after a stop."""

import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from lbsgd import monitor, train
from lbsgd.build import build
from lbsgd.checkpoint import Checkpoints
from lbsgd.config import default_config, resolve
from lbsgd.data.pipeline import load
from lbsgd.errors import ConfigError
from lbsgd.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent

UPDATES = 12


def tiny_config(**keys: object):
    config = default_config()
    config.update(
        {
            "batch_size": 64,
            "worker_batch_size": 16,
            "total_steps": UPDATES,
            "devices": 2,
            "model": {"name": "resnet8", "width": 0.25},
            "learning_rate": {"reference_batch_size": 16, "warmup_epochs": 0.2},
            "optimizer": {"momentum_form": "rate_inside"},
            "data": {"crop_padding": 1},
            "evaluation": {"every_steps": 5},
            "checkpoint": {"every_steps": 4, "keep": 2},
            "log": {"every_steps": 1, "tensorboard": False},
        }
    )
    config.update_from_flattened_dict(keys)
    return resolve(config)


def final_state(config, workdir) -> dict[str, np.ndarray]:
    checkpoints = Checkpoints(workdir / "checkpoints", 1)
    assert checkpoints.newest == UPDATES
    state = checkpoints.restore(build(config).abstract_state())
    checkpoints.close()
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def metrics_without_speed(workdir) -> list[dict]:
    lines = monitor.read_metrics(workdir / "metrics.jsonl")
    timed = ("images_per_second", "data_wait_percent")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    outcome = train.run(tiny_config(), workdir)
    assert outcome.complete
    return workdir


@pytest.mark.parametrize("stops", [(1,), (4,), (7,), (11,), (2, 5, 9)])
def test_a_stopped_run_goes_on_bitwise(whole_run, tmp_path, stops):
    config = tiny_config()
    for stop in stops:
        outcome = train.run(config, tmp_path, should_stop=lambda done, stop=stop: done == stop)
        assert (outcome.updates, outcome.complete) == (stop, False)
    assert train.run(config, tmp_path).complete
    expected, found = final_state(config, whole_run), final_state(config, tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert metrics_without_speed(tmp_path) == metrics_without_speed(whole_run)


def test_a_killed_run_goes_on_from_its_last_checkpoint(whole_run, tmp_path):
    """Updates after the checkpoint are done again, and written once to the metrics."""

    def die(done: int) -> bool:
        if done == 7:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train.run(tiny_config(), tmp_path, should_stop=die)
    assert metrics_without_speed(tmp_path)[-1]["step"] > 4
    assert train.run(tiny_config(), tmp_path).complete
    assert metrics_without_speed(tmp_path) == metrics_without_speed(whole_run)


def test_a_run_goes_on_elsewhere(x64, tmp_path):
    """On other devices, with other accumulation: the same run up to the order of sums."""
    here = tiny_config(dtype="float64")
    elsewhere = tiny_config(
        dtype="float64", devices=3, accumulation_steps=2, **{"log.every_steps": 2}
    )
    assert train.run(here, tmp_path / "whole").complete
    train.run(here, tmp_path / "moved", should_stop=lambda done: done == 6)
    assert train.run(elsewhere, tmp_path / "moved").complete
    expected = final_state(here, tmp_path / "whole")
    found = final_state(elsewhere, tmp_path / "moved")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_a_complete_run_says_so(whole_run, capsys):
    before = (whole_run / "metrics.jsonl").read_text()
    outcome = train.run(tiny_config(), whole_run)
    assert outcome.complete
    assert "complete: 12 updates are done" in capsys.readouterr().out
    assert (whole_run / "metrics.jsonl").read_text() == before


def test_the_workdir_holds_the_record_of_the_run(whole_run):
    lines = monitor.read_metrics(whole_run / "metrics.jsonl")
    updates = [line for line in lines if "train_loss" in line]
    assert [line["step"] for line in updates] == list(range(1, UPDATES + 1))
    assert {
        "epoch",
        "train_error",
        "learning_rate",
        "images_per_second",
        "data_wait_percent",
    } <= updates[0].keys()
    evaluations = [line for line in lines if "val_error" in line]
    assert [line["step"] for line in evaluations] == [5, 10, 12]
    assert {"val_loss", "val_error", "val_error_top5"} <= evaluations[0].keys()
    assert updates[2]["epoch"] == pytest.approx(3 * 64 / 1437, abs=1e-6)
    machine = json.loads((whole_run / "machine.json").read_text())[0]
    assert {"packages", "device", "git_commit"} <= machine.keys()
    assert json.loads((whole_run / "config.json").read_text())["config"]["batch_size"] == 64
    assert (whole_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    # The newest two, of those at 4, 8 and the end.
    assert sorted(p.name for p in (whole_run / "checkpoints").iterdir()) == ["12", "8"]


def test_a_run_that_got_nowhere_leaves_its_workdir_to_another(tmp_path):
    """What stopped it, such as other data, may be what is different now."""
    folder = Workdir(tmp_path)
    folder.claim({"batch_size": 8}, {}, {})
    folder.metrics.touch()
    folder.claim({"batch_size": 16}, {}, {})
    assert json.loads(folder.config.read_text())["run"] == {"batch_size": 16}
    folder.metrics.write_text("{}\n")
    with pytest.raises(ConfigError, match="differs in batch_size"):
        folder.claim({"batch_size": 8}, {}, {})
    folder.metrics.unlink()
    (folder.checkpoints / "8").mkdir()
    with pytest.raises(ConfigError, match="differs in batch_size"):
        folder.claim({"batch_size": 8}, {}, {})


def test_another_run_may_not_use_the_workdir(whole_run):
    other = tiny_config(seed=1, **{"optimizer.momentum": 0.8})
    with pytest.raises(ConfigError, match=r"optimizer\.momentum \(0\.9 there, 0\.8 here\), seed"):
        train.run(other, whole_run)


def test_a_run_that_diverges_says_when(tmp_path):
    config = tiny_config(
        **{"learning_rate.reference_learning_rate": 1e30, "learning_rate.warmup": "none"}
    )
    with pytest.raises(train.DivergedError, match=r"loss of update \d+ is not finite"):
        train.run(config, tmp_path)


def test_precise_statistics_are_the_mean_over_minibatches(tmp_path):
    """Against statistics computed worker by worker, outside the step."""
    config = tiny_config(**{"batch_norm.precise_examples": 100})
    parts = build(config)
    state = jax.jit(parts.initial_state, out_shardings=parts.placement.replicated)()
    found = train.Evaluation(parts)._statistics(3, state)
    batches = parts.train_batches("precise_batch_norm")
    each = []
    for update in (3, 4):  # ceil(100 / 64) minibatches
        images = load(batches.job(update))["image"].reshape(4, 16, 8, 8, 1)
        for rows in images:
            _, left = parts.model.apply(
                {"params": state.params, "batch_stats": state.batch_stats},
                parts.preprocess(rows),
                train=True,
                mutable=["batch_stats"],
            )
            each.append(left["batch_stats"])
    expected = jax.tree.map(lambda *stats: np.mean(stats, axis=0), *each)
    # Means of 8 float32 numbers, in two orders.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError])
def test_a_run_that_ends_early_leaves_no_threads(tmp_path, error):
    before = set(threading.enumerate())

    def die(done: int) -> bool:
        raise error

    with pytest.raises(error):
        train.run(tiny_config(), tmp_path, should_stop=die)
    loading = [t for t in set(threading.enumerate()) - before if t.name.startswith("lbsgd")]
    for thread in loading:
        thread.join(60)
        assert not thread.is_alive()


# After a few updates an example takes longer than anyone would wait.
STUCK = """
import itertools
import time
from lbsgd.config import default_config
from lbsgd.data import catalogue
from lbsgd.data.sources import Splits, SyntheticSource

class Stuck(SyntheticSource):
    asked = itertools.count()
    def __getitem__(self, index):
        if next(self.asked) > 200:
            time.sleep(1000)
        return super().__getitem__(index)

catalogue.SOURCES["stuck"] = lambda config: Splits(*[Stuck(500, (8, 8, 3), 10, 0)] * 2)

def get_config(arg=""):
    config = default_config()
    config.batch_size, config.worker_batch_size, config.total_steps = 16, 8, 100
    config.model.name, config.model.width = "resnet8", 0.25
    config.data.source = "stuck"
    config.learning_rate.warmup = "none"
    config.log.tensorboard, config.log.every_steps = False, 1
    return config
"""


def test_a_second_interrupt_ends_a_run_whose_data_do_not_come(tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    command = [sys.executable, "-m", "lbsgd.main", f"--config={tmp_path / 'stuck.py'}"]
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(monitor.read_metrics(tmp_path / "run" / "metrics.jsonl")) < 2:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert "once more ends at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGINT
