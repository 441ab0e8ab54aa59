"""The checkpoint of the best evaluation so far is kept, before and after a resume."""

import contextlib
import dataclasses
import json
import random

import numpy as np
import pytest
from tiny_run import tiny_config

from lbsgd.run.build import plan_run
from lbsgd.run.record.record import Record
from lbsgd.run.record.result import write_diverged
from lbsgd.run.workdir import Workdir
from lbsgd.tasks.task import Metric


@pytest.fixture(scope="module")
def plan():
    return plan_run(tiny_config(**{"checkpoint.keep": 1, "checkpoint.keep_best": True}))


@contextlib.contextmanager
def opened(plan, folder, start):
    record = Record(plan, folder, pytest.fail)
    with contextlib.closing(record):
        record.begin(start)
        yield record


def evaluated(record, done, error):
    """As the loop has it: the metrics of an evaluation, then its state."""
    values = {"val_loss": 1.0, "val_error": error}
    record.write(done, values)
    if record.is_best(values):
        record.save(done, {"x": np.array(done)}, last=False, best=True)


def test_the_best_of_a_metric_that_rises_is_its_highest(plan, tmp_path):
    """Saves by a task of one's own, before and after a resume."""
    accuracy = {"error": Metric("%", rises=True)}
    task = dataclasses.replace(plan.task, validation={**plan.task.validation, **accuracy})
    rising, folder = dataclasses.replace(plan, task=task), Workdir(tmp_path)
    tmp_path.joinpath("checkpoints").mkdir()
    for updates in [1, 2, 3], [4]:
        with opened(rising, folder, updates[0] - 1) as record:
            for done in updates:
                evaluated(record, done, {1: 60.0, 2: 80.0, 3: 70.0, 4: 50.0}[done])
                record.save(done, {"x": np.array(done)}, last=False)
    assert there(folder) == {2, 4}
    assert write_diverged(rising, folder, "stopped here") == ""
    result = json.loads(folder.result.read_text())
    assert (result["last"], result["best"], result["best_updates"]) == (50.0, 80.0, 2)


def there(folder) -> set[int]:
    return {int(path.name) for path in folder.checkpoints.iterdir()}


@pytest.mark.parametrize("seed", range(3))
def test_the_best_is_there_whatever_is_killed(plan, tmp_path, seed):
    """Of equals the later; and nothing else is, beside the newest that is due."""
    folder, chosen = Workdir(tmp_path), random.Random(seed)
    tmp_path.joinpath("checkpoints").mkdir()
    errors = [chosen.choice([50.0, 40.0, 30.0, np.nan]) for _ in range(8)]
    start, best = 0, None
    while start < 8:
        with opened(plan, folder, start) as record:
            for done in range(start + 1, min(start + chosen.randrange(1, 5), 8) + 1):
                evaluated(record, done, errors[done - 1])
                record.save(done, {"x": np.array(done)}, last=False)
                if np.isfinite(errors[done - 1]) and (
                    best is None or errors[done - 1] <= errors[best - 1]
                ):
                    best = done
                start = done
        assert there(folder) == {start, best} - {None}
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))


def test_none_is_kept_unasked(tmp_path):
    plan = plan_run(tiny_config(**{"checkpoint.keep": 1}))
    tmp_path.joinpath("checkpoints").mkdir()
    with opened(plan, Workdir(tmp_path), 0) as record:
        evaluated(record, 1, 10.0)
        record.save(2, {"x": np.array(2)}, last=False)
    assert there(Workdir(tmp_path)) == {2}
