"""Runs that are trained at once are each the run it would be alone."""

import hashlib
import json

import fragile
import numpy as np
import pytest
from tiny_run import UPDATES, final_state, tiny_config

from lbsgd import train
from lbsgd.experiments import group
from lbsgd.experiments.together import run_together
from lbsgd.run.build import build
from lbsgd.run.updates import OwnUpdates
from lbsgd.system.errors import ConfigError, DivergedError

SEEDS = (3, 1, 2**32 - 1)
FRAGILE = {"model.name": f"{fragile.__name__}:Fragile", "model.width": 1.0, "dtype": "float64"}
TIMES = {"images_per_second", "data_wait_percent"}


def configs_of(seeds=SEEDS, **keys):
    return [tiny_config(**FRAGILE | keys, seed=seed) for seed in seeds]


def folders(path, count=3):
    return [path / str(i) for i in range(count)]


def metrics(workdir):
    """All lines but the times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_alike(config, workdir, alone, atol=1e-9):
    """The checkpoint at the end, and every number of the metrics, to rounding."""
    found, expected = final_state(config, workdir), final_state(config, alone)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype), name
        np.testing.assert_allclose(found[name], x, rtol=1e-9, atol=atol, err_msg=name)
    lines, others = metrics(workdir), metrics(alone)
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    for line, other in zip(lines, others):
        for name, value in other.items():
            np.testing.assert_allclose(line[name], value, rtol=1e-9, atol=atol, err_msg=name)


@pytest.fixture
def batches(monkeypatch):
    """What each update of each seed was given, as digests, in order."""
    seen = {}

    def noted(updates, seed):
        def update(self, index, batch):
            images = hashlib.sha256(np.asarray(batch["image"]).tobytes()).hexdigest()
            seen.setdefault(seed(self), []).append((index, images))
            return updates(self, index, batch)

        return update

    alone, together = OwnUpdates.__call__, group.Member.__call__
    monkeypatch.setattr(
        OwnUpdates, "__call__", noted(alone, lambda own: own._numbers._plan.config.seed)
    )
    seed_of = lambda member: member.program.plan.config.seed  # noqa: E731
    monkeypatch.setattr(group.Member, "__call__", noted(together, seed_of))
    return seen


def test_each_is_the_run_that_it_is_alone(tmp_path, batches):
    """State, metrics, evaluations, and bitwise the examples in their order."""
    configs, said = configs_of(), []
    outcomes = run_together(
        configs, folders(tmp_path), on_metrics=lambda i, done, values: said.append((i, done))
    )
    together = dict(batches)
    batches.clear()
    for config, folder, outcome in zip(configs, folders(tmp_path), outcomes):
        alone = train.run(config, folder.with_suffix(".alone"), shown=False)
        assert outcome == alone
        assert_alike(config, folder, folder.with_suffix(".alone"))
    assert together == batches
    assert {len(order) for order in batches.values()} == {UPDATES}
    evaluations = 3  # after 5, 10 and 12
    assert sorted(said) == sorted(
        (i, line["step"]) for i in range(3) for line in metrics(tmp_path / str(i))
    )
    assert len(said) == 3 * (UPDATES + evaluations)


def lucky(positive):
    """Seeds whose first number is positive, or not."""
    found = []
    for seed in range(30):
        luck = build(configs_of([seed])[0]).program.start().params["luck"]
        if (float(luck[0]) > 0) is positive:
            found.append(seed)
        if len(found) == 2:
            return found
    raise AssertionError("30 coins on one side")


def test_others_go_on_where_one_diverges(tmp_path):
    broken, (first, second) = lucky(True)[0], lucky(False)
    configs = configs_of((first, broken, second), **{"model.options.breaks": True})
    outcomes = run_together(configs, folders(tmp_path))
    assert isinstance(outcomes[1], DivergedError)
    assert "the loss of update 1 is not finite" in str(outcomes[1])
    assert json.loads((tmp_path / "1" / "result.json").read_text())["diverged"]
    alone = train.run(configs[2], tmp_path / "alone", shown=False)
    assert outcomes[2] == alone
    assert outcomes[0].complete
    assert_alike(configs[2], tmp_path / "2", tmp_path / "alone")


def test_runs_that_cannot_be_together_are_a_line(tmp_path):
    ours = folders(tmp_path)
    cases = [
        (configs_of(), [ours[0]] * 3, "need a workdir each"),
        (
            [*configs_of((1, 2)), *configs_of((3,), batch_size=128)],
            ours,
            "batch_size is 64 and 128",
        ),
        (configs_of(**{"log.sinks": ("wandb",)}), ours, "take 'wandb' out of log.sinks"),
    ]
    for configs, workdirs, says in cases:
        with pytest.raises(ConfigError, match=says):
            run_together(configs, workdirs)
    assert list(tmp_path.iterdir()) == []
