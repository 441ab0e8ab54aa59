"""A run from its config to its workdir, and on again after a stop."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hanging import HANG_SECONDS
from tiny_run import UPDATES, final_state, tiny_config

from lbsgd import train
from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.checkpoint.store import read_manifest
from lbsgd.data.interface import Interface, read_interface
from lbsgd.data.pipeline import load_job
from lbsgd.run import workdir
from lbsgd.run.build import build
from lbsgd.run.evaluation import precise_statistics
from lbsgd.run.record.metrics import read_metrics
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[2]


def metrics_without_speed(workdir) -> list[dict]:
    lines = read_metrics(workdir / "metrics.jsonl")
    timed = ("images_per_second", "data_wait_percent")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


LONG = pytest.mark.long


# The evaluations after 5 and 12 are cut short, and made up for.
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param((1,), marks=LONG),
        pytest.param((4,), marks=LONG),
        pytest.param((7,), marks=LONG),
        pytest.param((11,), marks=LONG),
        (2, 5, 12),
    ],
)
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


def test_a_complete_run_says_so(whole_run, capsys):
    before = (whole_run / "metrics.jsonl").read_text()
    outcome = train.run(tiny_config(), whole_run)
    assert outcome.complete
    assert "complete: 12 updates are done" in capsys.readouterr().out
    assert (whole_run / "metrics.jsonl").read_text() == before


def test_the_workdir_holds_the_record_of_the_run(whole_run):
    lines = read_metrics(whole_run / "metrics.jsonl")
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


def test_workdir_and_checkpoints_say_what_the_network_takes_and_gives(whole_run):
    described = json.loads((whole_run / "config.json").read_text())["interface"]
    kept = read_manifest(whole_run / "checkpoints" / "12").interface
    digits = Interface((8, 8, 1), 0, (0.5,), (0.5,), tuple("0123456789"))
    assert read_interface(described) == read_interface(kept) == digits


def test_a_run_that_got_nowhere_leaves_its_workdir_to_another(tmp_path):
    """What stopped it, such as other data, may be what is different now."""
    folder = Workdir(tmp_path)
    folder.claim({"batch_size": 8}, {}, {}).close()
    folder.metrics.touch()
    folder.claim({"batch_size": 16}, {}, {}).close()
    assert json.loads(folder.config.read_text())["run"] == {"batch_size": 16}
    folder.metrics.write_text("{}\n")
    with pytest.raises(ConfigError, match="differs in batch_size"):
        folder.claim({"batch_size": 8}, {}, {})
    folder.metrics.unlink()
    (folder.checkpoints / "8").mkdir()
    with pytest.raises(ConfigError, match="differs in batch_size"):
        folder.claim({"batch_size": 8}, {}, {})


def test_another_validation_set_is_told_and_not_refused(tmp_path):
    """A damaged file of it may have been mended; before an evaluation that makes no difference."""
    folder, said = Workdir(tmp_path), []
    for validation, metrics in (("a", ""), ("b", '{"val_loss": 1}\n'), ("c", ""), ("b", "")):
        folder.claim({}, {}, {}, validation, said.append).close()
        with folder.metrics.open("a") as file:
            file.write(metrics)
    assert said == [
        "the validation set is not that of the evaluations before: compare them with care"
    ]


def test_a_workdir_is_one_process_s_at_a_time(tmp_path, monkeypatch):
    folder, said = Workdir(tmp_path), []
    held = folder.claim({}, {}, {})
    monkeypatch.setattr(workdir, "LOCK_SECONDS", 0.8)
    in_use = rf"in use by process {os.getpid()} on "
    with pytest.raises(ConfigError, match=rf"{in_use}.*; end that or choose another --workdir"):
        folder.claim({}, {}, {}, say=said.append)
    (line,) = said
    assert re.match(f"waits for workdir {tmp_path}, which is {in_use}", line)
    threading.Timer(0.2, held.close).start()
    folder.claim({}, {}, {}, say=said.append).close()
    folder.claim({}, {}, {}, say=pytest.fail).close()


def test_a_workdir_that_is_removed_while_training_is_noticed(tmp_path, capsys):
    def remove(done: int) -> bool:
        while done == 6 and (tmp_path / "run").exists():  # a save may be under way
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return False

    says = (
        r"metrics\.jsonl was removed, so there is no checkpoint of update 12; .* once .*/run can "
        "be written again, the same"
    )
    with pytest.raises(ConfigError, match=says):
        train.run(tiny_config(), tmp_path / "run", should_stop=remove)
    out = capsys.readouterr().out
    assert re.findall(r"metrics\.jsonl was removed, so .*", out) == [
        "metrics.jsonl was removed, so there is no checkpoint of update 8; training goes on"
    ]


@pytest.mark.parametrize("full", ["metrics", "checkpoints"])
def test_a_last_state_that_cannot_be_saved_is_said_once(tmp_path, capsys, full):
    """And not as of a run that goes on."""

    def fill(done: int) -> bool:
        if done == UPDATES - 1 and full == "metrics":
            (tmp_path / "run" / "metrics.jsonl").unlink()
        elif done == UPDATES - 1:
            [thread.join() for thread in threading.enumerate() if thread.name == "checkpoint 8"]
            (tmp_path / "run/checkpoints").rename(tmp_path / "away")
        return False

    says = {
        "metrics": r"metrics\.jsonl was removed, so there is no checkpoint of update 12; the "
        r"newest good checkpoint is .*/8; once .*/run can be written again, the same command",
        "checkpoints": r"checkpoint 12 could not be written \(.*\); the newest good one is 8; make "
        r"room or mend .*/checkpoints, and the same command resumes",
    }
    with pytest.raises(ConfigError, match=says[full]):
        train.run(tiny_config(), tmp_path / "run", should_stop=fill)
    assert not re.search("removed|could not|training goes on", capsys.readouterr().out)


def test_another_run_may_not_use_the_workdir(whole_run):
    other = tiny_config(seed=1, **{"optimizer.momentum": 0.8})
    with pytest.raises(ConfigError, match=r"optimizer\.momentum \(0\.9 there, 0\.8 here\), seed"):
        train.run(other, whole_run)


def diverging(**keys: object):
    """Diverges after a few updates."""
    rate = {"learning_rate.reference_learning_rate": 1e15, "learning_rate.warmup": "none"}
    return tiny_config(**rate, **keys)


def first_bad_update(config) -> tuple[int, float]:
    """The first update whose loss or gradient is not finite, and its learning rate."""
    parts = build(config)
    step, numbers = parts.program.compile_train_step(), parts.program.numbers
    state = parts.program.start()
    for update, batch in enumerate(parts.feed.train_batches().between(0, UPDATES)):
        state, values = step(state, batch, numbers.at(update))
        if not np.isfinite(values["train_loss"]) or not np.isfinite(values["gradient_norm"]):
            return update, numbers.reported(update)["learning_rate"]
    raise AssertionError("it does not diverge")


@pytest.mark.long
def test_a_run_that_diverges_says_when_and_keeps_what_was_finite(tmp_path):
    config = diverging(**{"checkpoint.every_steps": 1, "checkpoint.keep": 20})
    bad, rate = first_bad_update(config)
    assert 0 < bad < UPDATES - 5
    says = (
        rf"^the (loss|gradient) of update {bad + 1} is not finite \(learning rate {rate:.6g}, "
        r"gradient norm (nan|inf)\); a longer warmup, a lower "
        r"learning_rate\.reference_learning_rate or a smaller batch_size may help \(with another "
        rf"--workdir\); the newest good checkpoint is .*checkpoints/{bad}$"
    ).replace("+", r"\+")
    with pytest.raises(train.DivergedError, match=says):
        train.run(config, tmp_path)
    lines = [line for line in metrics_without_speed(tmp_path) if "train_loss" in line]
    assert [line["step"] for line in lines] == list(range(1, bad + 2))
    assert [line["step"] for line in lines if line["skipped"]] == [bad + 1]
    checkpoints = Checkpoints(
        tmp_path / "checkpoints", 1, build(config).plan.identity(), say=pytest.fail
    )
    update, state = checkpoints.restore(build(config).program.abstract_state())
    checkpoints.close()
    assert update == bad
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.long
def test_an_update_that_is_not_finite_may_be_skipped(tmp_path, capsys):
    """All after the first are, for the parameters stay as they are: it stops past the limit."""
    config = diverging(on_nonfinite="skip", max_nonfinite=2)
    bad, _ = first_bad_update(config)
    says = rf"update {bad + 3} is not finite .*; it is number 3, more than max_nonfinite=2; "
    with pytest.raises(train.DivergedError, match=says):
        train.run(config, tmp_path)
    out = capsys.readouterr().out
    for number, update in ((1, bad + 1), (2, bad + 2)):
        assert re.search(
            rf"of update {update} is not finite .*; it is skipped, number {number}", out
        )
    more = diverging(on_nonfinite="skip", max_nonfinite=100)
    assert train.run(more, tmp_path).complete
    skipped = [line["skipped"] for line in metrics_without_speed(tmp_path) if "skipped" in line]
    assert skipped == [max(0, i - bad) for i in range(1, UPDATES + 1)]


@pytest.mark.long
def test_an_evaluation_that_was_stopped_is_made_up_for(whole_run, tmp_path):
    """The checkpoint is of the update, and the first thing the run does then is to evaluate."""
    asked = []

    def in_evaluation(done: int) -> bool:
        asked.append(done)
        return 5 in asked  # first before the only batch of the evaluation

    outcome = train.run(tiny_config(), tmp_path, should_stop=in_evaluation)
    assert (outcome.updates, outcome.complete) == (5, False)
    assert "val_error" not in metrics_without_speed(tmp_path)[-1]
    assert train.run(tiny_config(), tmp_path).complete
    assert metrics_without_speed(tmp_path) == metrics_without_speed(whole_run)


@pytest.mark.long
def test_a_run_stopped_before_its_first_update_has_a_checkpoint(whole_run, tmp_path, capsys):
    outcome = train.run(tiny_config(), tmp_path, should_stop=lambda done: True)
    said = capsys.readouterr().out
    assert "stopped after update 0 of 12; the same command resumes it" in said
    # There is nothing to draw.
    assert "curves.png" not in said
    assert not (tmp_path / "curves.png").exists()
    assert (outcome.updates, outcome.complete) == (0, False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0"]
    assert train.run(tiny_config(), tmp_path).complete
    assert metrics_without_speed(tmp_path) == metrics_without_speed(whole_run)


@pytest.mark.long
def test_checkpoints_may_come_by_the_clock(tmp_path, capsys):
    keys = {"checkpoint.every_steps": 0, "checkpoint.every_minutes": 1e-9, "checkpoint.keep": 99}
    train.run(tiny_config(**keys), tmp_path)
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == list(range(UPDATES + 1))
    assert "13 checkpoints" in capsys.readouterr().out


def test_each_process_has_a_log(whole_run):
    text = (whole_run / "logs" / "0.log").read_text()
    assert "process 0 of 1: pid " in text
    assert "12 updates, " in text
    assert "compiled in" in text


@pytest.mark.long
def test_precise_statistics_are_the_mean_over_minibatches():
    """Against statistics computed worker by worker, outside the step."""
    config = tiny_config(**{"batch_norm.precise_examples": 100})
    parts = build(config)
    state = parts.program.start()
    found = precise_statistics(
        parts.program,
        parts.feed,
        parts.program.moments_step(),
        3,
        state.params,
        state.batch_stats,
    )
    batches = parts.feed.other_batches(
        "precise_batch_norm", parts.plan.timeline, parts.plan.placements
    )
    each = []
    for update in (3, 4):  # ceil(100 / 64) minibatches
        images = load_job(batches.job(update))["image"].reshape(4, 16, 8, 8, 1)
        for rows in images:
            _, left = parts.plan.network.module.apply(
                {"params": state.params, "batch_stats": state.batch_stats},
                parts.plan.preprocess(jnp.asarray(rows)),
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
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()


# After a few updates an example takes longer than anyone would wait.
STUCK = """
import itertools
import time
from lbsgd.run.config import default_config
from lbsgd.data.sources import catalogue
from lbsgd.data.source import Splits
from lbsgd.data.sources.synthetic import SyntheticSource

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
    config.model.name, config.model.width = "cifar_resnet8", 0.25
    config.data.source = "stuck"
    config.learning_rate.warmup = "none"
    config.log.sinks, config.log.every_steps = (), 1
    return config
"""


@pytest.mark.long
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
        deadline = time.monotonic() + HANG_SECONDS
        while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 2:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert "saves a checkpoint as soon as it can" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
